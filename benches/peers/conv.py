#!/usr/bin/env python3
"""Benchmarks PyTorch's convolutions and LSTM on the shapes of `shared/benches/conv.rs`, with two threads.

    python benches/peers/conv.py

Prints median, minimum and maximum of five runs, after one warm-up run.
"""

import time

import torch
import torch.nn.functional as F

torch.set_num_threads(2)

# inputs, outputs, kernel, stride, frames out
CONVOLUTIONS = [
    (128, 1024, 7, 1, 1500), (512, 256, 3, 1, 12000), (256, 512, 1, 1, 12000), (256, 128, 3, 1, 60000),
    (128, 64, 3, 1, 240000), (64, 32, 3, 1, 960000), (32, 64, 1, 1, 960000), (64, 1, 7, 1, 960000),
    (1, 64, 7, 1, 960000), (64, 128, 8, 4, 240000), (128, 256, 8, 4, 60000), (256, 512, 10, 5, 12000),
    (512, 1024, 16, 8, 1500), (1024, 128, 7, 1, 1500),
]
# inputs, outputs, kernel, stride, frames in
TRANSPOSED = [(1024, 512, 16, 8, 1500), (512, 256, 10, 5, 12000), (256, 128, 8, 4, 60000), (128, 64, 8, 4, 240000)]


def report(name, run):
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    print(f"{name:44} {times[2]:7.1f} ms ({times[0]:.1f} to {times[4]:.1f})", flush=True)


@torch.inference_mode()
def main():
    for inputs, outputs, kernel, stride, frames in CONVOLUTIONS:
        x = torch.randn(1, inputs, (frames - 1) * stride + kernel)
        weight, bias = torch.randn(outputs, inputs, kernel), torch.randn(outputs)
        report(f"conv {inputs} to {outputs}, kernel {kernel}, stride {stride}",
               lambda: F.conv1d(x, weight, bias, stride))
    for inputs, outputs, kernel, stride, frames in TRANSPOSED:
        x = torch.randn(1, inputs, frames)
        weight, bias = torch.randn(inputs, outputs, kernel), torch.randn(outputs)
        report(f"transposed {inputs} to {outputs}, kernel {kernel}, stride {stride}",
               lambda: F.conv_transpose1d(x, weight, bias, stride))
    lstm, x = torch.nn.LSTM(1024, 1024, 2), torch.randn(1500, 1, 1024)
    report("lstm, two layers of 1024", lambda: lstm(x))
    x = torch.randn(1, 64, 960000)
    report("elu of 64 channels", lambda: F.elu(x))
    report("pad of 64 channels", lambda: F.pad(x, (1, 1), "reflect"))


if __name__ == "__main__":
    main()
