#!/usr/bin/env python3
"""Benchmarks EnCodec (32 kHz architecture, random weights, two threads): `fauna` against transformers, alternating.

    cargo build --release
    python benches/peers/encodec.py target/release/fauna --seconds 30 --rounds 5

Encodes noise to codes and decodes them. Transformers has a process of its own, which is loaded and warmed up once, and
stopped (SIGSTOP) while `fauna` runs; `fauna` is a new process in each turn and does its own warm-up. The ratio of a round
is the time of transformers divided by that of `fauna`, so that `fauna` is faster above 1.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

THREADS = 2
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "encodec_32khz"
TASKS = ("encode", "decode")


def work(seconds):
    """The transformers worker: answers each line, a task, with its seconds and peak memory."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    model = EncodecModel(EncodecConfig(**json.loads((CONFIG / "config.json").read_text()))).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    sound = torch.rand(1, 1, int(seconds * 32000)) - 0.5
    codes = torch.randint(2048, (1, 1, 4, int(seconds * 50)))
    calls = {"encode": lambda: model.encode(sound), "decode": lambda: model.decode(codes, [None])}

    def run(task):
        start = time.perf_counter()
        with torch.inference_mode():
            calls[task]()
        return time.perf_counter() - start

    for task in TASKS:
        run(task)
    print("ready", flush=True)
    for line in sys.stdin:
        taken = run(line.strip())
        peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
        print(json.dumps({"seconds": taken, "peak": peak}), flush=True)


def start(seconds):
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen([sys.executable, __file__, "--work", "--seconds", str(seconds)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"transformers could not load; see: {sys.executable} {__file__} --work")
    process.send_signal(signal.SIGSTOP)
    return process


def ask(process, task):
    process.send_signal(signal.SIGCONT)
    process.stdin.write(f"{task}\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    return answer["seconds"], answer["peak"]


def fauna(binary, task, seconds):
    done = subprocess.run([binary, "bench", str(CONFIG), "--task", task, "--random-weights", "--seconds", str(seconds),
                           "--threads", str(THREADS), "--runs", "1", "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}")
    report = json.loads(done.stdout)
    return report["runs"][0], report["peak_memory_bytes"]


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fauna", nargs="?", help="the binary")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the audio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.seconds)
    if not arguments.fauna:
        parser.error("the binary is required: target/release/fauna")
    peer = start(arguments.seconds)
    try:
        for task in TASKS:
            rounds = [(fauna(arguments.fauna, task, arguments.seconds), ask(peer, task))
                      for _ in range(arguments.rounds)]
            ours, theirs = zip(*rounds)
            ratios = [their[0] / our[0] for our, their in rounds]
            print(f"{task}: fauna {spread([our[0] for our in ours])} s, {max(our[1] for our in ours) / 1e6:.0f} MB; "
                  f"transformers {spread([their[0] for their in theirs])} s, "
                  f"{max(their[1] for their in theirs) / 1e6:.0f} MB; {spread(ratios)} times as fast", flush=True)
    finally:
        peer.send_signal(signal.SIGCONT)
        peer.kill()


if __name__ == "__main__":
    main()
