"""What the scripts of the pocket models share: the program, work folders, packages with data, bfloat16, the figures.

A script makes one model from fixed seeds, writes it into the crate of its modality, and measures it:

    assets/pocket/NAME.py make         trains, publishes, measures
    assets/pocket/NAME.py measure      measures the published model again

Needs Python 3.11 with requirements.txt and `cargo build --release --bin fauna --example tabletop_episodes`, or the program
that FAUNA names. Data and runs are written into target/pocket/NAME. A run that was interrupted goes on.
"""

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


class Program:
    """`fauna`, and the folder in which it runs."""

    def __init__(self, folder):
        self.folder = Path(folder)
        program = Path(os.environ.get("FAUNA", REPOSITORY / "target/release/fauna")).resolve()
        self.program, self.examples = str(program), program.parent / "examples"

    def run(self, *arguments, text=None, shown=True):
        """Runs `fauna`, with `text` as its input, and returns what it prints."""
        arguments = [str(argument) for argument in arguments]
        if shown:
            print("$ fauna", shlex.join(arguments), flush=True)
        done = subprocess.run(
            [self.program, "--quiet", *arguments], cwd=self.folder, stdout=subprocess.PIPE, text=True, input=text, check=False
        )
        if done.returncode != 0:
            sys.exit(f"fauna {arguments[0]} ended with {done.returncode}")
        return done.stdout

    def json(self, *arguments, text=None, shown=True):
        """Runs `fauna --json` and returns the value that it prints."""
        return json.loads(self.run("--json", *arguments, text=text, shown=shown))

    def example(self, name, *arguments):
        """Runs an example and returns what it prints."""
        arguments = [str(argument) for argument in arguments]
        print("$", name, shlex.join(arguments), flush=True)
        done = subprocess.run([self.examples / name, *arguments], cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def tune(self, out, *arguments):
        """Runs `fauna tune --out OUT`, goes on with a run that was interrupted, and leaves one that is finished."""
        out = self.folder / out
        finished, begun = out / "finished.json", time.monotonic()
        asked = [str(argument) for argument in arguments]
        if finished.is_file() and json.loads(finished.read_text()) == asked:
            return out / "best" if (out / "best").is_dir() else out / "last"
        resumed = ["--resume"] if (out / "last").is_dir() else []
        if not resumed:
            shutil.rmtree(out, ignore_errors=True)
        self.run("tune", *asked, "--out", out, *resumed)
        finished.write_text(json.dumps(asked))
        losses = [row["validation_loss"] for row in json_lines(out / "log.jsonl") if "validation_loss" in row]
        if losses:
            print(f"  validation loss {losses[0]:.4g} before, {min(losses):.4g} after", end=", ")
        print(f"{time.monotonic() - begun:.0f} s", flush=True)
        return out / "best" if (out / "best").is_dir() else out / "last"


def work_folder(name):
    """The folder of a model's data and runs."""
    folder = REPOSITORY / "target/pocket" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def debian_package(name):
    """The unpacked Debian package `name`, which apt-get downloads at first use."""
    folder = REPOSITORY / "target/pocket/packages"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).is_dir():
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
        package = sorted(folder.glob(f"{name}_*.deb"))[-1]
        subprocess.run(["dpkg", "-x", package, folder / f"{name}.part"], check=True)
        (folder / f"{name}.part").rename(folder / name)
    return folder / name


def json_lines(path):
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_json_lines(path, rows):
    """Writes JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path, value):
    """Writes a JSON file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def to_bfloat16(source, target):
    """Copies a safetensors file with its float32 tensors rounded to bfloat16 (to the nearest, ties to even)."""
    import numpy

    data = Path(source).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header, begin = json.loads(data[8:8 + length]), 8 + length
    parts, at, new = [], 0, {}
    if "__metadata__" in header:
        new["__metadata__"] = header.pop("__metadata__")
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        part, dtype = data[begin + first:begin + last], entry["dtype"]
        if dtype == "F32":
            bits = numpy.frombuffer(part, "<u4")
            part = ((bits + (0x7FFF + (bits >> 16 & 1)).astype("<u4")) >> 16).astype("<u2").tobytes()
            dtype = "BF16"
        new[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(new, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def begin(fauna, config, data, change, *arguments):
    """A folder with the initial weights of a new model, changed as `changed` does."""
    least = ["--steps", 1, "--lr", 1e-9, "--batch", 1, "--valid-every", 1, "--valid-batches", 1]
    new = fauna.tune("begun", "--from-config", config, "--data", data, *least, *arguments)
    return changed(new, fauna.folder / "start", change)


def changed(source, target, change):
    """Copies a trained checkpoint, if it is not there, with each weight changed by `change(name, values)`, which may return
    None to leave it. The values are a float32 array of the weight's shape."""
    import numpy

    if target.is_dir():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns("training_state.*"))
    path = part / "model.safetensors"
    data = bytearray(path.read_bytes())
    values_at = 8 + struct.unpack("<Q", data[:8])[0]
    for name, entry in json.loads(data[8:values_at]).items():
        if name != "__metadata__":
            first, last = (values_at + offset for offset in entry["data_offsets"])
            new = change(name, numpy.frombuffer(bytes(data[first:last]), "<f4").reshape(entry["shape"]))
            if new is not None:
                data[first:last] = new.astype("<f4").tobytes()
    path.write_bytes(data)
    part.rename(target)
    return target


def publish(modality, name, trained):
    """Copies a trained checkpoint into the crate of its modality, its weights as bfloat16. Returns the folder."""
    folder = HERE / modality / name
    for path in sorted(Path(trained).rglob("*")):
        if path.is_dir() or path.name.startswith("training_state."):
            continue
        target = folder / path.relative_to(trained)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            to_bfloat16(path, target)
        else:
            shutil.copyfile(path, target)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.relative_to(REPOSITORY)}: {size / 1e6:.2f} MB", flush=True)
    return folder


class Measured:
    """The figures of a model, each with its goal, written as measured.json beside its weights."""

    def __init__(self, folder):
        self.path, self.figures = Path(folder) / "measured.json", []

    def add(self, what, value, goal=None, unit="", digits=3):
        """Adds a figure. `goal` is a condition as text: ">= 0.9", "<= 20" or "0.75 to 0.85"."""
        value = float(f"{value:.{digits}g}")
        figure = {"what": what, "value": value, "unit": unit, "goal": goal, "met": meets(value, goal)}
        self.figures.append({key: entry for key, entry in figure.items() if entry not in (None, "")})
        print(f"{what}: {value:g} {unit}{f' (goal {goal})' if goal else ''}", flush=True)

    def write(self):
        """Writes the figures."""
        write_json(self.path, self.figures)


def meets(value, goal):
    """Whether a value meets a goal; None without one."""
    if goal is None:
        return None
    if " to " in goal:
        low, high = map(float, goal.split(" to "))
        return low <= value <= high
    sign, bound = goal.split()
    return value >= float(bound) if sign == ">=" else value <= float(bound)


def main(make, measure):
    """The command line of a script: `make` trains, publishes and measures, `measure` measures alone."""
    usage = f"usage: {Path(sys.argv[0]).name} make|measure"
    if len(sys.argv) != 2 or sys.argv[1] not in ("make", "measure"):
        sys.exit(usage)
    if sys.argv[1] == "make":
        make()
    measure()
