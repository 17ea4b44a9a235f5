#!/usr/bin/env python3
"""Times transformers' EnCodec in the shape of the official 32 kHz codec, random weights, two threads.

    python benches/peers/encodec.py [seconds of sound]

Prints seconds for encoding and for decoding, the best of three after one to warm up, and the peak memory.
"""

import resource
import sys
import time

import torch
from transformers import EncodecConfig, EncodecModel

torch.set_num_threads(2)
torch.manual_seed(1)

SHAPE = dict(sampling_rate=32000, target_bandwidths=[2.2], upsampling_ratios=[8, 5, 4, 4], num_filters=64,
             codebook_size=2048, use_causal_conv=False, use_conv_shortcut=False)


@torch.inference_mode()
def main(seconds):
    model = EncodecModel(EncodecConfig(**SHAPE)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    sound = torch.rand(1, 1, int(seconds * 32000)) - 0.5
    codes = torch.randint(2048, (1, 1, 4, int(seconds * 50)))
    work = {"encode": lambda: model.encode(sound), "decode": lambda: model.decode(codes, [None])}
    for name, run in work.items():
        run()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {min(times):.2f} s for {seconds:g} s of sound, peak memory {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30)
