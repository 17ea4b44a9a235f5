#!/usr/bin/env python3
"""Benchmarks `fauna` against PyTorch, ONNX Runtime and llama.cpp on the same tasks, alternating, and prints ratios.

    cargo build --release
    python3 scripts/fetch_test_models.py
    python3 -m venv .venv && .venv/bin/pip install -r benches/peers/requirements.txt
    .venv/bin/python benches/peers/bench.py target/release/fauna

Every peer has a process of its own, which is loaded and warmed up once, and stopped (SIGSTOP) while another one
runs. In a round each does `--runs` runs; the ratio of a round is the median throughput of `fauna` divided by that of
the peer, so that `fauna` is faster above 1. All use two threads.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from tasks import TASKS, THREADS, config_folder

HERE = Path(__file__).resolve().parent


class Peer:
    """A worker process that does one run at a time and is stopped between its turns."""

    def __init__(self, index, name):
        self.name = name
        self.task = TASKS[index]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(index), name], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name} could not load; see: {sys.executable} {HERE / 'worker.py'} {index} {name}")
        self.process.send_signal(signal.SIGSTOP)

    def turn(self, runs):
        """Throughput of `runs` runs, and the peak memory."""
        self.process.send_signal(signal.SIGCONT)
        answers = [self.ask() for _ in range(runs)]
        self.process.send_signal(signal.SIGSTOP)
        return {"rates": [rate(self.task, a["seconds"], a["first"]) for a in answers], "peak": answers[-1]["peak"]}

    def ask(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


def rate(task, seconds, first):
    """Sentences per second, prompt tokens per second, or new tokens per second after the first."""
    if task.kind == "embed":
        return task.batch / seconds
    if task.kind in ("forward", "prefill"):
        return task.batch * task.tokens / seconds
    return task.batch * (task.new_tokens - 1) / (seconds - first)


class Fauna:
    """`fauna bench`: a new process in each turn, since it loads in milliseconds and does its own warm-up."""

    name = "fauna"

    def __init__(self, binary, task):
        self.task = task
        source = config_folder(task.source) if task.random_weights else task.source
        self.command = [binary, "bench", str(source), "--task", task.kind, "--batch", str(task.batch),
                        "--tokens", str(task.tokens), "--threads", str(THREADS), "--json"]
        if task.new_tokens:
            self.command += ["--new-tokens", str(task.new_tokens)]
        if task.dtype != "gguf":
            self.command += ["--dtype", task.dtype]
        if task.random_weights:
            self.command += ["--random-weights"]

    def turn(self, runs):
        done = subprocess.run([*self.command, "--runs", str(runs)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"exit status {done.returncode}: {' '.join(self.command)}")
        report = json.loads(done.stdout)
        rates = report["items_per_second"]
        return {"rates": [rates["median"]], "peak": report["peak_memory_bytes"]}

    def close(self):
        pass


def measure(index, binary, rounds, runs):
    """All turns of one task: fauna, peer, fauna, peer, ..."""
    task = TASKS[index]
    runners = [Fauna(binary, task)] if binary else []
    try:
        runners += [Peer(index, name) for name in task.peers]
        turns = {runner.name: [] for runner in runners}
        for _ in range(rounds):
            for runner in runners:
                turns[runner.name].append(runner.turn(runs))
    finally:
        for runner in runners:
            runner.close()
    return summary(task, turns)


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(task, turns):
    """Throughput of each runner over all rounds, and the ratio of fauna to each peer per round."""
    medians = {name: [statistics.median(turn["rates"]) for turn in rounds] for name, rounds in turns.items()}
    ratios = {name: spread([ours / theirs for ours, theirs in zip(medians["fauna"], theirs_all)])
              for name, theirs_all in medians.items() if name != "fauna" and "fauna" in medians}
    return {"task": task.name, "unit": f"{task.unit}/s",
            "rates": {name: spread(values) for name, values in medians.items()}, "ratios": ratios,
            "peak_memory_bytes": {name: max(t["peak"] for t in rounds) for name, rounds in turns.items()},
            "memory_goal_bytes": int(1.3 * task.weights_bytes + 100e6)}


def show(result):
    print(f"\n{result['task']}  ({result['unit']}: median, min, max of rounds)")
    for name, rates in result["rates"].items():
        line = f"  {name:12} {rates['median']:9.1f} {rates['min']:9.1f} {rates['max']:9.1f}"
        line += f"   peak {result['peak_memory_bytes'][name] / 1e6:6.0f} MB"
        if name == "fauna":
            line += f" (goal {result['memory_goal_bytes'] / 1e6:.0f})"
        elif name in result["ratios"]:
            ratio = result["ratios"][name]
            line += f"   fauna is {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f})"
        print(line, flush=True)


def processor():
    for line in open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fauna", nargs="?", help="the binary; without it only the other libraries run")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3, help="runs per turn")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    binary = str(Path(arguments.fauna).resolve()) if arguments.fauna else None

    chosen = [i for i, task in enumerate(TASKS) if arguments.only.lower() in task.name.lower()]
    if any("onnxruntime" in TASKS[i].peers for i in chosen):
        subprocess.run([sys.executable, str(HERE / "worker.py"), "--export"], check=True, cwd=HERE,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"{processor()}, {THREADS} threads, {arguments.rounds} rounds of {arguments.runs} runs")
    results = []
    for index in chosen:
        results.append(measure(index, binary, arguments.rounds, arguments.runs))
        show(results[-1])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"processor": processor(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
