"""The parity case of pocket-codec: what transformers hears and makes again of a second of music."""

import sys
from pathlib import Path

import torch
from transformers import EncodecModel

from common import Case, distance, reload_as

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "assets/pocket/audio/pocket-codec"


def music(samples=8000):
    """Two tones that start and fade, 8 kHz."""
    t = torch.arange(samples) / 8000
    fades = torch.exp(-6 * (t % 0.32)) + 0.5 * torch.exp(-3 * (t % 0.64))
    return (0.25 * fades * (torch.sin(2 * torch.pi * 440 * t) + torch.sin(2 * torch.pi * 110 * t)))[None, None]


@torch.inference_mode()
def run(model, sound):
    """Codes and sound."""
    out = model(input_values=sound, bandwidth=0.4)
    return {"audio_codes": out.audio_codes.clone(), "audio_values": out.audio_values.float().contiguous().clone()}


@torch.inference_mode()
def check_margin(model, sound):
    """No code may be chosen by a hair."""
    residual = model.encoder(sound).transpose(1, 2).flatten(0, 1)
    for layer in model.quantizer.layers:
        distances = torch.cdist(residual, layer.codebook.embed).square()
        best, second = distances.topk(2, largest=False).values.T
        if (second - best).min() < 1e-4:
            raise RuntimeError("a code is chosen by a hair")
        residual = residual - layer.codebook.embed[distances.argmin(1)]


def main():
    model, sound = reload_as(EncodecModel)(FOLDER), music()
    check_margin(model, sound)
    expected = run(model, sound)
    if distance(expected, run(reload_as(EncodecModel)(FOLDER), sound)) > 0.1:
        sys.exit("the answer does not repeat")
    case = Case("pocket/codec", "EnCodec")
    case.write("EncodecModel", "forward", {"input_values": sound}, expected, {"model_ref": "pocket-codec", "bandwidth": 0.4},
               note="the published weights")


if __name__ == "__main__":
    main()
