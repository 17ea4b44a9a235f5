#!/usr/bin/env python3
"""Benchmarks MusicGen (small architecture, random weights, two threads): `fauna` against transformers, alternating.

    cargo build --release
    python benches/peers/musicgen.py target/release/fauna
    python benches/peers/musicgen.py target/release/fauna --formats q8_0,q4_0 --steps 1500 --rounds 1 --alone

One piece from 20 text tokens with guidance scale 3, hence a batch of two in every step; greedy decoding. A run includes
the text encoder, the decoding steps and the codec. Prints the steps per second over whole runs, and from the difference
between a short and a long run, which excludes constant costs. Transformers computes in float32 in a process of its own,
which is loaded and warmed up once, and stopped (SIGSTOP) while `fauna` runs; `--alone` skips it.
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

from tasks import REPOSITORY, SCRATCH, THREADS

TOKENS, GUIDANCE = 20, 3.0
# With the delay pattern, more steps than codebooks are needed for a frame.
SHORT = 20
CONFIG = REPOSITORY / "benches" / "configs" / "musicgen-small" / "config.json"


def config_folder():
    """A folder with only the official config and the guidance scale."""
    folder = SCRATCH / "musicgen-small"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(CONFIG.read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": GUIDANCE}))
    return folder


def work():
    """The transformers worker: answers each line, a number of steps, with their seconds and peak memory."""
    import torch
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration

    torch.set_num_threads(THREADS)
    config = MusicgenConfig.from_pretrained(config_folder())
    model = MusicgenForConditionalGeneration(config).eval()
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()
    ids = torch.randint(5, config.text_encoder.vocab_size, (1, TOKENS))
    model.generation_config.pad_token_id = model.generation_config.decoder_start_token_id = 2048

    def run(steps):
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                           guidance_scale=GUIDANCE, max_new_tokens=steps)
        return time.perf_counter() - start

    run(SHORT)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = run(int(line))
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


class Transformers:
    name = "transformers f32"

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment, cwd=Path(__file__).resolve().parent)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"transformers could not load; see: {sys.executable} {__file__} --work")
        self.process.send_signal(signal.SIGSTOP)

    def turn(self, steps):
        self.process.send_signal(signal.SIGCONT)
        answers = [self.ask(count) for count in (SHORT, steps)]
        self.process.send_signal(signal.SIGSTOP)
        return [answer["seconds"] for answer in answers], answers[-1]["peak"]

    def ask(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


class Fauna:
    """A new process for each run, with one warm-up run."""

    def __init__(self, binary, form):
        self.name = f"fauna {form}"
        self.command = [binary, "bench", str(config_folder()), "--task", "generate", "--random-weights", "--tokens",
                        str(TOKENS), "--threads", str(THREADS), "--runs", "1", "--json"]
        if form != "f32":
            self.command += ["--dtype" if form in ("bf16", "f16") else "--quantize", form]

    def turn(self, steps):
        reports = [self.report(count) for count in (SHORT, steps)]
        return [report["runs"][0] for report in reports], reports[-1]["peak_memory_bytes"]

    def report(self, steps):
        done = subprocess.run([*self.command, "--new-tokens", str(steps)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"exit status {done.returncode}: {' '.join(self.command)}")
        return json.loads(done.stdout)

    def close(self):
        pass


def spread(values):
    return f"{statistics.median(values):7.1f} ({min(values):.1f} to {max(values):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fauna", nargs="?", help="the binary")
    parser.add_argument("--formats", default="f32,bf16,q8_0,q4_0")
    parser.add_argument("--steps", type=int, default=120, help="steps of a long run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="time fauna only")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work()
    binary = arguments.fauna and str(Path(arguments.fauna).resolve())
    runners = [Fauna(binary, form) for form in arguments.formats.split(",") if binary and form]
    try:
        runners += [] if arguments.alone else [Transformers()]
        turns = {runner.name: [] for runner in runners}
        for _ in range(arguments.rounds):
            for runner in runners:
                turns[runner.name].append(runner.turn(arguments.steps))
    finally:
        for runner in runners:
            runner.close()
    more = arguments.steps - SHORT
    print(f"{arguments.steps} steps, {arguments.rounds} rounds: steps per second, median (minimum to maximum)")
    print(f"{'':18} {'whole runs':>24} {'between':>24} {'peak memory':>12}")
    for name, rounds in turns.items():
        whole = spread([arguments.steps / seconds[1] for seconds, _ in rounds])
        between = spread([more / (seconds[1] - seconds[0]) for seconds, _ in rounds])
        peak = max(peak for _, peak in rounds) / 1e6
        print(f"{name:18} {whole:>24} {between:>24} {peak:9.0f} MB", flush=True)


if __name__ == "__main__":
    main()
