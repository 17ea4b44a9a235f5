#!/usr/bin/env python3
"""Benchmarks the kernels of training against PyTorch on the same shapes, alternating.

    cargo bench -p fauna-kernels --bench training --no-run
    python benches/peers/training.py target/release/deps/training-<hash> [--only linear] [--rounds 7] [--threads 2]

Prints the median, minimum and maximum over the rounds of the time of PyTorch divided by ours. With `--threads 1`
processor time is compared, which other load on the machine changes less.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

LINEAR = ["1024 576 1536", "1024 1536 576", "2048 128 512", "1024 576 49152"]
# batch, heads, key/value heads, sequence, head dimension, causal
ATTENTION = ["4 9 3 256 64 causal", "8 4 4 256 32 causal", "64 4 4 50 64 full"]


def linear(words):
    rows, inputs, outputs = map(int, words[:3])
    x, grad, w = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(outputs, inputs)
    if words[3] == "forward":
        y = torch.empty(rows, outputs)
        return lambda: torch.mm(x, w.T, out=y)
    if words[3] == "input":
        dx = torch.empty(rows, inputs)
        return lambda: torch.mm(grad, w, out=dx)
    dw, db = torch.empty(outputs, inputs), torch.empty(outputs)

    def weight():
        torch.mm(grad.T, x, out=dw)
        torch.sum(grad, 0, out=db)
    return weight


def attention(words):
    batch, heads, kv_heads, sequence, dim = map(int, words[:5])
    causal, group = words[5] == "causal", heads // kv_heads
    make = lambda h: torch.randn(batch, sequence, h, dim).transpose(1, 2).requires_grad_()
    q, k, v = make(heads), make(kv_heads), make(kv_heads)
    grad = torch.randn(batch, heads, sequence, dim)

    def run():
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=group > 1)
        torch.autograd.grad(y, (q, k, v), grad)
    return run


def clock(threads):
    return time.thread_time() if threads == 1 else time.perf_counter()


def seconds(run, threads):
    """The mean of as many runs as take 50 ms, as on the other side."""
    wall, begin, runs = time.perf_counter(), clock(threads), 0
    while time.perf_counter() - wall < 0.05:
        run()
        runs += 1
    return (clock(threads) - begin) / runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = subprocess.Popen([options.binary, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "THREADS": str(options.threads)})
    names = [f"linear {sizes} {part}" for sizes in LINEAR for part in ("forward", "input", "weight")]
    names += [f"attention {sizes}" for sizes in ATTENTION]
    for name in (name for name in names if options.only in name):
        kind, *words = name.split(" ")
        run = {"linear": linear, "attention": attention}[kind](words)
        run()
        mine, theirs = [], []
        for _ in range(options.rounds):
            print(name, file=ours.stdin, flush=True)
            mine.append(float(ours.stdout.readline().split()[options.threads == 1]))
            theirs.append(seconds(run, options.threads))
            time.sleep(0.02)
        ratios = sorted(b / a for a, b in zip(mine, theirs))
        print(f"{name:36} ours {min(mine) * 1e3:8.2f} ms, PyTorch {min(theirs) * 1e3:8.2f} ms at best; "
              f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
              f"of the best {min(theirs) / min(mine):.2f}", flush=True)


if __name__ == "__main__":
    main()
