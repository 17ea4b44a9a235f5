"""The parity case of pocket-music: the likeliest codes of two captions in transformers, and their sound."""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from common import Case, distance, reload_as

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "assets/pocket/audio/pocket-music"
CAPTIONS = ["a lively scale of bells in G major at 125 beats a minute", "a flute in D minor at 94 bpm"]
FRAMES = 40


@torch.inference_mode()
def run(model, inputs):
    """Greedy codes and their sound; refuses a near-tie."""
    seen = {}
    apply = type(model.decoder).apply_delay_pattern_mask

    def keep(codes, mask):
        seen["codes"] = apply(codes, mask)
        return seen["codes"]

    model.decoder.apply_delay_pattern_mask = keep
    out = model.generate(
        **inputs, max_new_tokens=FRAMES, guidance_scale=1.0, do_sample=False, output_scores=True, return_dict_in_generate=True)
    for scores in out.scores:
        best, second = scores.float().topk(2).values.T
        if (best - second).min() < 1e-3:
            raise RuntimeError("a step is a near-tie")
    special = model.config.decoder.pad_token_id
    rows = [row[row != special] for row in seen["codes"]]
    codes = torch.stack(rows).reshape(1, len(CAPTIONS), model.decoder.num_codebooks, -1)
    return {"audio_codes": codes.clone(), "audio_values": out.sequences.float().contiguous().clone()}


def main():
    load = reload_as(MusicgenForConditionalGeneration)
    tokens = AutoTokenizer.from_pretrained(FOLDER)(CAPTIONS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    expected = run(load(FOLDER), inputs)
    if distance(expected, run(load(FOLDER), inputs)) > 0.1:
        sys.exit("the answer does not repeat")
    case = Case("pocket/music", "MusicGen")
    case.write("MusicgenForConditionalGeneration", "generate", inputs, expected,
               {"model_ref": "pocket-music", "max_new_tokens": FRAMES, "guidance_scale": 1.0}, note="the published weights")


if __name__ == "__main__":
    main()
