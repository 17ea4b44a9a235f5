"""Writes the data sets `v2` and `v3` in the layouts of LeRobot 2.1 and 3.0 (pyarrow 26.0.1, pandas 3.1.1, Pillow 13.0.0)."""

import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).parent
LENGTHS = [3, 2]
TASKS = ["push the cube", "lift the cube"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 10, 20)).save(out, "PNG")
    return out.getvalue()


def table(episodes, list_type):
    """Step s of episode e: the action is [e, s], the state [e, s, 0.5], the picture's red 100 e + s."""
    steps = [(e, s) for e in episodes for s in range(LENGTHS[e])]
    first = [sum(LENGTHS[:e]) for e in range(len(LENGTHS))]
    return pa.table({
        "observation.images.top": pa.array(
            [{"bytes": png(100 * e + s), "path": f"frame_{s:06d}.png"} for e, s in steps], IMAGE),
        "observation.state": pa.array([[e, s, 0.5] for e, s in steps], list_type(3)),
        "action": pa.array([[e, s] for e, s in steps], list_type(2)),
        "next.reward": pa.array([0.0 for _ in steps], pa.float32()),
        "timestamp": pa.array([s / 10 for _, s in steps], pa.float32()),
        "frame_index": pa.array([s for _, s in steps], pa.int64()),
        "episode_index": pa.array([e for e, _ in steps], pa.int64()),
        "index": pa.array([first[e] + s for e, s in steps], pa.int64()),
        "task_index": pa.array([e for e, _ in steps], pa.int64()),
    })


def info(version, data_path):
    number = lambda dtype: {"dtype": dtype, "shape": [1], "names": None}
    return {
        "codebase_version": version, "robot_type": "arm", "total_episodes": 2, "total_frames": 5, "total_tasks": 2,
        "chunks_size": 1000, "fps": 10, "splits": {"train": "0:2"}, "data_path": data_path, "video_path": None,
        "features": {
            "observation.images.top": {"dtype": "image", "shape": [3, 4, 3], "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
            "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
            "next.reward": number("float32"), "timestamp": number("float32"), "frame_index": number("int64"),
            "episode_index": number("int64"), "index": number("int64"), "task_index": number("int64"),
        },
    }


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def main():
    root = HERE / "v2"
    write(root / "meta/info.json", json.dumps(
        info("v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"), indent=1))
    write(root / "meta/tasks.jsonl", lines({"task_index": i, "task": t} for i, t in enumerate(TASKS)))
    write(root / "meta/episodes.jsonl", lines(
        {"episode_index": e, "tasks": [TASKS[e]], "length": n} for e, n in enumerate(LENGTHS)))
    (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
    for e in range(2):
        pq.write_table(table([e], lambda n: pa.list_(pa.float32())), root / f"data/chunk-000/episode_{e:06d}.parquet")

    root = HERE / "v3"
    write(root / "meta/info.json", json.dumps(
        info("v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"), indent=1))
    pd.DataFrame({"task_index": [0, 1]}, index=TASKS).to_parquet(root / "meta/tasks.parquet")
    (root / "meta/episodes/chunk-000").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({
        "episode_index": [0, 1], "tasks": [[TASKS[0]], [TASKS[1]]], "length": LENGTHS, "data/chunk_index": [0, 0],
        "data/file_index": [0, 0], "dataset_from_index": [0, 3], "dataset_to_index": [3, 5],
    }), root / "meta/episodes/chunk-000/file-000.parquet")
    (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
    # Two row groups, the second of which begins within an episode.
    pq.write_table(table([0, 1], lambda n: pa.list_(pa.float32(), n)), root / "data/chunk-000/file-000.parquet",
                   row_group_size=2)

    # Episode 0 of `v2` with a column that is not what it should be.
    root = HERE / "wrong"
    root.mkdir(exist_ok=True)
    good = table([0], lambda n: pa.list_(pa.float32())).drop_columns(["next.reward", "timestamp", "index"])
    action = good.schema.get_field_index("action")

    def write_with(name, values, kind):
        column = pa.array(values, pa.list_(kind))
        pq.write_table(good.set_column(action, "action", column), root / f"{name}.parquet")

    write_with("texts", [["a", "b"]] * 3, pa.string())
    write_with("nulls", [[0, 1], [0, None], [0, 1]], pa.float32())
    write_with("nan", [[0, 1], [0, float("nan")], [0, 1]], pa.float32())
    write_with("short", [[0, 1], [0, 1], [0]], pa.float32())
    pq.write_table(good.drop_columns(["action"]), root / "without.parquet")
    paths = pa.array(["a.png"] * 3)
    pq.write_table(good.set_column(0, "observation.images.top", paths), root / "paths.parquet")


main()
