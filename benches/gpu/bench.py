"""Benchmarks `fauna` against PyTorch on one GPU, alternating, official architectures with random weights; writes JSON and a table.

    python3 benches/gpu/bench.py FAUNA OUT.json

Needs PyTorch with CUDA and transformers. PyTorch runs eagerly with fused attention, its KV cache on the GPU.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS, RUNS = 2, 3

# Name, config folder, task of `fauna bench`, dtype, batch size, tokens, new tokens, images.
SHAPES = [
    ("BERT base, 32 texts of 128 tokens", "tests/releases/google-bert__bert-base-uncased", "forward", "f32", 32, 128, 0, 0),
    ("GPT-2, decoding", "tests/releases/openai-community__gpt2", "generate", "bf16", 1, 32, 128, 0),
    ("StarCoder-1B, decoding", "benches/configs/starcoderbase-1b", "generate", "bf16", 1, 32, 128, 0),
    ("StarCoder-1B, prompt of 512 tokens", "benches/configs/starcoderbase-1b", "prefill", "bf16", 1, 512, 0, 0),
    ("StarCoder2-3B, decoding", "benches/configs/starcoder2-3b", "generate", "bf16", 1, 32, 64, 0),
    ("CLIP ViT-L/14, 16 images", "benches/configs/clip-vit-large-patch14", "forward", "f32", 16, 16, 0, 1),
]


def of_fauna(fauna, shape):
    _, folder, task, dtype, rows, tokens, new, images = shape
    command = [fauna, "bench", str(REPOSITORY / folder), "--random-weights", "--device", "cuda", "--dtype", dtype,
               "--task", task, "--batch", str(rows), "--tokens", str(tokens), "--new-tokens", str(max(new, 1)),
               "--images", str(images), "--runs", str(RUNS), "--json", "--quiet"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-800:])
    said = json.loads(done.stdout)
    if task == "generate":
        return [said["decode_per_second"]]
    return [rows * (1 if images else tokens) / seconds for seconds in said["runs"]]


class Torch:
    """The PyTorch model of a shape on the GPU."""

    def __init__(self, shape):
        import torch
        import transformers

        self.torch, self.shape = torch, shape
        _, folder, task, dtype, *_ = shape
        config = transformers.AutoConfig.from_pretrained(REPOSITORY / folder)
        kind = transformers.AutoModel if task == "forward" else transformers.AutoModelForCausalLM
        with torch.device("cuda"):
            self.model = kind.from_config(config, attn_implementation="sdpa").eval()
        self.model = self.model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        self.words = getattr(config, "vocab_size", None) or config.text_config.vocab_size
        self.side = config.vision_config.image_size if task == "forward" and hasattr(config, "vision_config") else 0

    def run(self):
        torch, (_, _, task, _, rows, tokens, new, images) = self.torch, self.shape
        ids = torch.randint(5, min(self.words, 25000), (rows, tokens), device="cuda")
        with torch.inference_mode():
            if task == "forward":
                inputs = {"input_ids": ids}
                if images:
                    inputs["pixel_values"] = torch.rand(rows, 3, self.side, self.side, device="cuda")
                started = time.perf_counter()
                self.model(**inputs)
                torch.cuda.synchronize()
                return rows * (1 if images else tokens) / (time.perf_counter() - started)
            if task == "prefill":
                started = time.perf_counter()
                self.model.generate(ids, max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=0)
                torch.cuda.synchronize()
                return rows * tokens / (time.perf_counter() - started)
            ends = []
            for count in (1, new):
                started = time.perf_counter()
                self.model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
                torch.cuda.synchronize()
                ends.append(time.perf_counter() - started)
            return rows * (new - 1) / (ends[1] - ends[0])


def main(fauna, out):
    import torch

    rows = []
    for shape in SHAPES:
        row = {"name": shape[0], "dtype": shape[3], "gpu": torch.cuda.get_device_name()}
        try:
            peer = Torch(shape)
            peer.run()
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours += of_fauna(fauna, shape)
                theirs += [peer.run() for _ in range(RUNS)]
            row |= {"fauna": ours, "pytorch": theirs, "ratio": statistics.median(ours) / statistics.median(theirs)}
            print(f"{shape[0]:40} {shape[3]:5} fauna {statistics.median(ours):10.1f}  PyTorch {statistics.median(theirs):10.1f} "
                  f" ratio {row['ratio']:.2f} ({min(ours) / max(theirs):.2f} to {max(ours) / min(theirs):.2f})", flush=True)  # fmt: skip
            del peer
        except Exception as error:  # A failure does not stop the other shapes.
            row["error"] = str(error)
            print(f"{shape[0]:40} {shape[3]:5} failed: {error}", flush=True)
        torch.cuda.empty_cache()
        rows.append(row)
        Path(out).write_text(json.dumps(rows, indent=1))


main(*sys.argv[1:])
