"""pocket-codec: an EnCodec of 8 kHz and 25 frames per second, for the music of synth.py.

`fauna tune` does not train codebooks, so they are set before the training and stay: each of the two has a grid of 4 x 4 x 4 x 4
points in four dimensions of its own of the eight of a latent (finite scalar quantization, Mentzer et al. 2023, arXiv
2309.15505, as residual vector quantization), and the encoder learns to use them.
"""

import json
import shutil
import struct
import sys

import numpy as np

import synth
from common import Measured, Program, main, publish, work_folder, write_json

CONFIG = {
    "architectures": ["EncodecModel"], "model_type": "encodec", "sampling_rate": synth.RATE, "audio_channels": 1,
    "target_bandwidths": [0.4], "normalize": False, "chunk_length_s": None, "overlap": None, "hidden_size": 8,
    "codebook_dim": 8, "num_filters": 16, "num_residual_layers": 1, "upsampling_ratios": [8, 8, 5],
    "norm_type": "weight_norm", "kernel_size": 7, "last_kernel_size": 3, "residual_kernel_size": 3,
    "dilation_growth_rate": 2, "use_causal_conv": True, "pad_mode": "reflect", "compress": 2, "num_lstm_layers": 1,
    "trim_right_ratio": 1.0, "codebook_size": 256, "use_conv_shortcut": True,
}
SPACING = 0.4
TRAINING = (
    "--full", "--steps", 2000, "--batch", 8, "--lr", 0.002, "--schedule", "cosine", "--warmup", 50, "--valid-every", 200,
    "--threads", 1, "--seed", 1, "--loss", "mel_windows=[512]", "--loss", "mel_bins=96", "--loss", "mel_floor=0.0003",
    "--loss", "lambda_time=4", "--loss", "lambda_commitment=0.2",
)


def read_tensors(path):
    """The float32 tensors of a safetensors file."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        assert entry["dtype"] == "F32", name
        tensors[name] = np.frombuffer(data[8 + length + first:8 + length + last], "<f4").reshape(entry["shape"])
    return tensors


def write_tensors(path, tensors):
    """Writes float32 tensors."""
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name, tensor in sorted(tensors.items()):
        part = np.ascontiguousarray(tensor, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(part)]}
        at += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def grid(codebook):
    """The 256 entries of a codebook: four levels in each of four dimensions."""
    entries = np.zeros((256, 8), np.float32)
    for code in range(256):
        for axis in range(4):
            entries[code, 4 * codebook + axis] = SPACING * ((code >> 2 * axis & 3) - 1.5)
    return entries


def data(folder):
    """Seconds of music that begin with a frame: five of every piece."""
    for part, count, seed in (("train", 2000, 11), ("valid", 8, 12)):
        if (folder / "data" / part).is_dir():
            continue
        for i, (_, sound, _) in enumerate(synth.pieces(part, count, seed)):
            random = np.random.default_rng([seed, i])
            for j in range(3 if part == "train" else 3):
                start = int(random.integers(synth.FRAMES - 24)) * synth.FRAME
                synth.write_wav(folder / "data" / part / f"{i:04d}-{j}.wav", sound[start:start + synth.RATE])


def initial(program):
    """Random weights with the codebooks of `grid`."""
    start = program.folder / "start"
    if not (start / "model.safetensors").is_file():
        write_json(program.folder / "config/config.json", CONFIG)
        first = program.tune(
            "first", "--from-config", "config/config.json", "--data", "data", "--steps", 1, "--batch", 1, "--lr", 1e-30,
            "--valid-batches", 1, "--threads", 1, "--loss", "mel_windows=[256]",
        )
        start.mkdir(exist_ok=True)
        tensors = read_tensors(first / "model.safetensors")
        for q in range(2):
            tensors[f"quantizer.layers.{q}.codebook.embed"] = grid(q)
        write_json(start / "config.json", CONFIG)
        write_tensors(start / "model.safetensors", tensors)
    return start


def complete(trained, prefix=""):
    """A copy of a checkpoint with the moving averages of the codebooks, which releases have and only training reads."""
    folder = trained.parent / "complete"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("training_state.*"))
    tensors = read_tensors(folder / "model.safetensors")
    for q in range(2):
        name = f"{prefix}quantizer.layers.{q}.codebook"
        averages = {"inited": np.ones(1), "cluster_size": np.ones(256), "embed_avg": tensors[f"{name}.embed"]}
        tensors |= {f"{name}.{kind}": values for kind, values in averages.items()}
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def make():
    """Trains and publishes."""
    program = Program(work_folder("codec"))
    data(program.folder)
    initial(program)
    publish("audio", "pocket-codec", complete(program.tune("tuned", "start", "--data", "data", *TRAINING)))


def again(program, model, sound):
    """What the codec makes of `sound`."""
    synth.write_wav(program.folder / "heard.wav", sound)
    for name in ("codes.safetensors", "again.wav"):
        (program.folder / name).unlink(missing_ok=True)
    program.run("codec", "encode", model, "--audio", "heard.wav", "--out", "codes.safetensors", "--threads", 1, shown=False)
    program.run("codec", "decode", model, "--codes", "codes.safetensors", "--out", "again.wav", "--threads", 1, shown=False)
    return synth.read_wav(program.folder / "again.wav")


def verdicts(program, model, part, count, seed):
    """What is right in true pieces and in those that went through the codec."""
    true, made = [], []
    for piece, sound, _ in synth.pieces(part, count, seed):
        true.append(synth.verdict(sound, piece))
        made.append(synth.verdict(again(program, model, sound), piece))
    return synth.shares(true), synth.shares(made)


def measure(count=100):
    """Measures pieces of combinations that were not in training."""
    program = Program(work_folder("codec"))
    folder = synth.Path(__file__).resolve().parent / "audio/pocket-codec"
    true, made = verdicts(program, folder, "test", count, 21)
    measured = Measured(folder)
    for name in ("tempo", "key", "instrument"):
        measured.add(f"{name} right in {count} held-out pieces", true[name])
        measured.add(f"{name} right after the codec", made[name], f">= {0.9 * true[name]:.3f}")
    measured.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["try"]:
        # A checkpoint of the run on pieces of the validation set.
        print(verdicts(Program(work_folder("codec")), synth.Path(sys.argv[2]).resolve(), "valid", int(sys.argv[3]), 22))
    else:
        main(make, measure)
