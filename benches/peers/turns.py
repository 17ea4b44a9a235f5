"""Alternating runs of `fauna` and PyTorch, shared by the programs in this folder.

A program lists its tasks, each with the arguments of `fauna bench` and the function that prepares the same in PyTorch:
it takes `torch` and the name of the config, and returns the function to time.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tasks import REPOSITORY, SCRATCH, THREADS

CONFIGS = REPOSITORY / "benches" / "configs"


@dataclass(frozen=True)
class Work:
    """One measurement: the arguments of `fauna bench`, and the function that does the same in PyTorch."""

    name: str
    config: str
    bench: tuple
    torch: str
    # Whether PyTorch needs gradients.
    slopes: bool = False


def config_of(name):
    return json.loads((CONFIGS / name / "config.json").read_text())


def work(task, prepare):
    """Answers each line with the seconds of one run and the peak memory."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    run = prepare(torch, task.config)
    with torch.inference_mode(not task.slopes):
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
            print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def start(index):
    program = sys.argv[0]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(
        [sys.executable, program, "--work", str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment)
    # Skip messages of the library.
    if "ready\n" not in iter(process.stdout.readline, ""):
        raise SystemExit(f"PyTorch could not load; see: {sys.executable} {program} --work {index}")
    process.send_signal(signal.SIGSTOP)
    return process


def ask(process):
    process.send_signal(signal.SIGCONT)
    process.stdin.write("run\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    return answer["seconds"], answer["peak"]


def fauna(binary, work, formats):
    """The median of two runs, the peak memory, and the size of the weights."""
    # A folder with only the official config.
    folder = SCRATCH / work.config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes((CONFIGS / work.config / "config.json").read_bytes())
    command = [binary, "bench", str(folder), *work.bench, "--random-weights", "--threads", str(THREADS), "--runs", "2",
               "--json", *formats]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}: {' '.join(command)}")
    report = json.loads(done.stdout)
    return statistics.median(report["runs"]), report["peak_memory_bytes"], report["weights_bytes"]


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(about, works, functions):
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("fauna", nargs="?", help="the binary")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="time fauna only")
    parser.add_argument("--formats", default="", help="additional options of fauna bench: --dtype bf16, --quantize q8_0")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        task = works[arguments.work]
        return work(task, functions[task.torch])
    if not arguments.fauna:
        parser.error("the binary is required: target/release/fauna")
    binary = str(Path(arguments.fauna).resolve())
    for index, task in enumerate(works):
        if arguments.only.lower() not in task.name.lower():
            continue
        peer = None if arguments.alone else start(index)
        try:
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                ours.append(fauna(binary, task, arguments.formats.split()))
                theirs += [] if peer is None else [ask(peer)]
        finally:
            if peer is not None:
                peer.send_signal(signal.SIGCONT)
                peer.kill()
                peer.wait()
        line = (f"{task.name}: fauna {spread([seconds for seconds, _, _ in ours])} s, "
                f"{max(peak for _, peak, _ in ours) / 1e6:.0f} MB over weights of {ours[0][2] / 1e6:.0f} MB")
        if theirs:
            ratios = [their[0] / our[0] for our, their in zip(ours, theirs)]
            line += (f"; PyTorch {spread([seconds for seconds, _ in theirs])} s, "
                     f"{max(peak for _, peak in theirs) / 1e6:.0f} MB; {spread(ratios)} times as fast")
        print(line, flush=True)
