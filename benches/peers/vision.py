#!/usr/bin/env python3
"""Times what reads and makes pictures, official shapes, random weights, two threads, beside PyTorch in turns.

    cargo build --release
    python benches/peers/vision.py target/release/fauna --rounds 5
    python benches/peers/vision.py target/release/fauna --only clip

CLIP ViT-B/32 and a cut IDEFICS-9B (4 of 32 layers, 2 of them with cross-attention, 4 layers of vision) beside
transformers; DALL·E mini and its VQGAN beside min-dalle. PyTorch computes in float32, each work in a process of its own
that is loaded and warmed once and stopped (SIGSTOP) while `fauna` works; `fauna bench` starts afresh each turn and warms
itself up. A ratio is PyTorch's seconds over `fauna`'s of one round, so above 1 `fauna` is the faster.
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
# A prompt of text tokens beside the pictures, and what is written after it.
PROMPT, NEW = 64, 32


@dataclass(frozen=True)
class Work:
    """One measurement: what `fauna bench` is told, and the function below that does the same in PyTorch."""

    name: str
    config: str
    bench: tuple
    torch: str


WORKS = [
    Work("CLIP ViT-B/32, 32 pictures", "clip-vit-base-patch32",
         ("--task", "embed", "--tokens", "0", "--images", "1", "--batch", "32"), "clip_pictures"),
    Work("CLIP ViT-B/32, 64 prompts of 77 tokens", "clip-vit-base-patch32",
         ("--task", "forward", "--tokens", "77", "--batch", "64"), "clip_prompts"),
    Work("DALL·E mini, one guided picture of 256 tokens", "dalle-mini",
         ("--task", "generate", "--tokens", "64"), "dalle_picture"),
    Work("VQGAN, codes to one picture", "dalle-mini", ("--task", "decode", "--tokens", "0", "--images", "1"), "vqgan_decode"),
    Work(f"IDEFICS-9B cut, {NEW} tokens after {PROMPT} and a picture", "idefics-9b-cut",
         ("--task", "generate", "--tokens", str(PROMPT), "--images", "1", "--new-tokens", str(NEW)), "idefics"),
]


# ---------------------------------------------------------------- PyTorch's side


def config_of(name):
    return json.loads((CONFIGS / name / "config.json").read_text())


def clip(config):
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config_of(config))).eval()


def clip_pictures(torch, config):
    model, pixels = clip(config), torch.rand(32, 3, 224, 224)
    return lambda: model.get_image_features(pixel_values=pixels)


def clip_prompts(torch, config):
    model, ids = clip(config), torch.randint(5, 49000, (64, 77))
    ids[:, -1] = 49407
    return lambda: model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))


def dalle_picture(torch, config):
    """min-dalle's own loop: the text once, 256 guided steps, the picture."""
    from min_dalle.models import DalleBartDecoder, DalleBartEncoder

    c = config_of(config)
    encoder = DalleBartEncoder(
        layer_count=c["encoder_layers"], embed_count=c["d_model"], attention_head_count=c["encoder_attention_heads"],
        text_vocab_count=c["encoder_vocab_size"], text_token_count=c["max_text_length"],
        glu_embed_count=c["encoder_ffn_dim"], device="cpu").eval()
    decoder = DalleBartDecoder(
        image_vocab_count=c["image_vocab_size"], embed_count=c["d_model"],
        attention_head_count=c["decoder_attention_heads"], glu_embed_count=c["decoder_ffn_dim"],
        layer_count=c["decoder_layers"], device="cpu").eval()
    paint = vqgan_decode(torch, config)
    text = torch.randint(5, 50000, (2, c["max_text_length"]))
    length, settings = c["image_length"], torch.tensor([1.0, 256.0, 10.0])

    def run():
        states = encoder(text)
        mask = text.not_equal(1)[:, None, None, :]
        attention = torch.zeros(c["decoder_layers"], 4, length, c["d_model"])
        tokens = torch.full((1, length + 1), c["decoder_start_token_id"])
        for i in range(length):
            tokens[:, i + 1], attention = decoder.sample_tokens(
                settings=settings, attention_mask=mask, encoder_state=states, attention_state=attention,
                prev_tokens=tokens[:, [i]], token_index=torch.tensor([i]))
        paint()

    return run


def vqgan_decode(torch, config):
    from min_dalle.models import VQGanDetokenizer

    detokenizer = VQGanDetokenizer().eval()
    codes = torch.randint(0, 16384, (1, 256))
    return lambda: detokenizer(False, codes)


def idefics(torch, config):
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    model = IdeficsForVisionText2Text(IdeficsConfig(**config_of(config))).eval()
    ids, pixels = torch.randint(5, 32000, (1, PROMPT)), torch.rand(1, 1, 3, 224, 224)
    seen = torch.ones(1, PROMPT, 1, dtype=torch.long)
    return lambda: model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_attention_mask=seen,
        do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)


def work(index):
    """Answers each line with the seconds that one run took and the peak of memory."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    run = globals()[WORKS[index].torch](torch, WORKS[index].config)
    with torch.inference_mode():
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
            print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


# ---------------------------------------------------------------- in turns


def start(index):
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment, cwd=Path(__file__).resolve().parent)
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"PyTorch could not load; see: {sys.executable} {__file__} --work {index}")
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
    """The median of two runs, the peak of memory, and the size of the weights."""
    # A folder that holds the official configuration alone.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fauna", nargs="?", help="the binary")
    parser.add_argument("--only", default="", help="works whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="time fauna only")
    parser.add_argument("--formats", default="", help="more for fauna bench: --dtype bf16, --quantize q8_0")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        return work(arguments.work)
    if not arguments.fauna:
        parser.error("the binary is wanted: target/release/fauna")
    binary = str(Path(arguments.fauna).resolve())
    for index, task in enumerate(WORKS):
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


if __name__ == "__main__":
    main()
