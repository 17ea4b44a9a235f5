"""The parity case of pocket-policy: what OpenVLA's wiring over timm and transformers computes with the published
checkpoint, from a drawn picture and two instructions. Run with timm 0.9.16 on PYTHONPATH, as `openvla.py`."""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from common import Case, run_all
from openvla import REFERENCE, SYSTEM, reload

NAME = "pocket-policy"
FOLDER = Path(__file__).resolve().parents[3] / "assets/pocket/robotics" / NAME
INSTRUCTIONS = ["pick up the red block", "grab the blue cube"]


def picture(side, places):
    """A wooden table with coloured squares, from -1 to 1: (3, side, side)."""
    seen = torch.tensor([0.80, 0.66, 0.49]).reshape(3, 1, 1).repeat(1, side, side)
    seen[:, :, :: side // 6] *= 0.87
    for (x, y), colour in places:
        seen[:, y : y + side // 12, x : x + side // 12] = torch.tensor(colour).reshape(3, 1, 1)
    return 2 * seen - 1


def forward(name):
    model = reload(FOLDER)
    side = model.config["image_sizes"][0]
    red, blue = [0.86, 0.20, 0.18], [0.20, 0.42, 0.85]
    seen = [picture(side, [((10, 30), red), ((60, 45), blue)]), picture(side, [((41, 39), red), ((22, 70), blue)])]
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    prompts = [f"In: What action should the robot take to {words}?\nOut:" for words in INSTRUCTIONS]
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    longest = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "pixel_values": torch.stack(seen),
    }

    @torch.inference_mode()
    def run(network):
        return {field: value.float().contiguous().clone() for field, value in network(**inputs).items()}

    case = Case(name, SYSTEM)
    case.write(REFERENCE, "forward", inputs, run(model), {"model_ref": NAME, "output_projector_features": True},
               note="the published pocket-policy")
    case.check_repeats(lambda _: reload(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/policy": forward}, sys.argv[1:])
