#!/usr/bin/env python3
"""Benchmarks training steps against PyTorch (and peft) on the same model and batch, alternating.

    cargo bench --bench train_step --no-run
    python benches/peers/train.py target/release/deps/train_step-<hash> [--only gpt] [--rounds 5] [--steps 3]

Both train the same architecture with random weights in float32 on one batch with AdamW, on two threads; PyTorch with
fused attention and the fused AdamW. Prints the median, minimum and maximum over the rounds of PyTorch's time per step
divided by ours, and the peak memory of both processes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

THREADS = 2


def gpt(folder):
    """A GPT-2 of 1.3 M parameters, 8 rows of 256 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel
    config = GPT2Config(vocab_size=1024, n_positions=256, n_embd=128, n_layer=6, n_head=4, bos_token_id=0,
                        eos_token_id=0, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    return lambda: GPT2LMHeadModel(config), tokens(8, 256, 1024), None, config, GPT2LMHeadModel


def smollm2(folder):
    """SmolLM2-135M with a LoRA of rank 8 on all linear layers, 4 rows of 256 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
                         rope_theta=100000, tie_word_embeddings=True, rms_norm_eps=1e-5)
    return lambda: LlamaForCausalLM(config), tokens(4, 256, 49152), 8, config, LlamaForCausalLM


def vit(folder):
    """CLIP with a ViT of 12 layers of 256 over 16 pictures of 224 by 224 in patches of 16, and a small text tower."""
    import torch
    from transformers import CLIPConfig, CLIPModel
    config = CLIPConfig(
        vision_config=dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=4,
                           image_size=224, patch_size=16, projection_dim=128),
        text_config=dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
                         vocab_size=1024, max_position_embeddings=16, projection_dim=128, bos_token_id=1,
                         eos_token_id=2, pad_token_id=0),
        projection_dim=128)
    ids = torch.randint(3, 1024, (16, 16))
    ids[:, -1] = 2
    inputs = {"input_ids": ids, "pixel_values": torch.randn(16, 3, 224, 224)}
    return lambda: CLIPModel(config), inputs, None, config, CLIPModel


def bolt(folder):
    """The shape of Chronos-Bolt-tiny, 32 series of 512 steps, 64 steps to forecast."""
    import torch
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config
    quantiles = [i / 10 for i in range(1, 10)]
    config = T5Config(
        vocab_size=2, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_decoder_layers=4, num_heads=4,
        dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        initializer_factor=0.05, reg_token_id=1, is_gated_act=False, dense_act_fn="relu",
        chronos_config=dict(context_length=2048, prediction_length=64, input_patch_size=16, input_patch_stride=16,
                            quantiles=quantiles, use_reg_token=True))
    steps = torch.arange(576) / 7
    series = torch.sin(steps + torch.randn(32, 1)) + 0.1 * torch.randn(32, 576)
    inputs = {"context": series[:, :512].contiguous(), "target": series[:, 512:].contiguous(),
              "target_mask": torch.ones(32, 64)}
    return lambda: ChronosBoltModelForForecasting(config), inputs, None, config, ChronosBoltModelForForecasting


MODELS = {"gpt": gpt, "smollm2_lora": smollm2, "vit": vit, "chronos_bolt_tiny": bolt}


def tokens(rows, time, vocabulary):
    import torch
    ids = torch.randint(3, vocabulary, (rows, time))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def worker(name):
    """PyTorch's side: the first line says it is ready; for each line it takes steps and prints their seconds."""
    import resource
    import time
    import torch
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    make, inputs, lora, _, _ = MODELS[name](None)
    model = make()
    if lora:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear"))
    model.train()
    if hasattr(model, "config") and hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if name == "chronos_bolt_tiny":
        inputs["target_mask"] = inputs["target_mask"].bool()
    if name == "vit":
        inputs["return_loss"] = True
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            last = loss.item()
            seconds.append(time.perf_counter() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": last, "peak": peak}), flush=True)


class Turn:
    """A process that only runs while it is asked."""

    def __init__(self, command, first=None):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if first:
            self.say(first)
        self.about = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def steps(self, count):
        self.process.send_signal(signal.SIGCONT)
        self.say(str(count))
        answer = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--recompute", action="store_true", help="recompute activations (PyTorch keeps them)")
    options = parser.parse_args()
    import torch
    from safetensors.torch import save_file
    for name, make in MODELS.items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        _, inputs, lora, config, model_class = make(None)
        with tempfile.TemporaryDirectory() as folder:
            config.architectures = [model_class.__name__]
            config.save_pretrained(folder)
            batch = Path(folder) / "batch.safetensors"
            save_file({key: value.contiguous() for key, value in inputs.items()}, batch)
            work = {"model": folder, "inputs": str(batch), "lora": lora, "random": 1, "threads": THREADS,
                    "recompute": options.recompute, "loss": {}}
            ours = Turn([options.binary], json.dumps(work))
            peer = Turn([sys.executable, __file__, "worker", name])
            ratios, times = [], ([], [])
            for turn in (ours, peer):
                turn.steps(1)
            for _ in range(options.rounds):
                a, b = ours.steps(options.steps), peer.steps(options.steps)
                a_median, b_median = statistics.median(a["seconds"]), statistics.median(b["seconds"])
                times[0].append(a_median)
                times[1].append(b_median)
                ratios.append(b_median / a_median)
            print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of PyTorch's speed; "
                  f"{statistics.median(times[0]):.3f} s against {statistics.median(times[1]):.3f} s a step; "
                  f"peak {a['peak'] / 2**20:.0f} against {b['peak'] / 2**20:.0f} MiB; "
                  f"{ours.about['parameters']} and {peer.about['parameters']} parameters; "
                  f"loss {a['loss']:.3f} and {b['loss']:.3f}", flush=True)
            ours.end()
            peer.end()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
    else:
        main()
