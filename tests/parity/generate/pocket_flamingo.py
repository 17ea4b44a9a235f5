"""The parity cases of pocket-flamingo: what transformers' IDEFICS computes from episodes with the published checkpoint.

The inputs are what its image processor and the published tokenizer make of pictures with made-up words.
"""

import random
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image
from transformers import AutoTokenizer, IdeficsForVisionText2Text, IdeficsImageProcessor

from common import Case, forward, generate, reload_as, run_all

NAME = "pocket-flamingo"
ASSETS = Path(__file__).resolve().parents[3] / "assets/pocket"
FOLDER = ASSETS / "vision" / NAME
sys.path.insert(0, str(ASSETS))

import scenes  # noqa: E402

CLASS = "IdeficsImageProcessor and IdeficsForVisionText2Text"
load = reload_as(IdeficsForVisionText2Text)
AROUND, PLACE = "<fake_token_around_image>", "<image>"
SIDE = 32
NAMES = {"colour": {"red": "dax", "blue": "wug", "green": "toma"}, "kind": {"star": "gorp", "ring": "kiv", "heart": "nov"}}


def picture(trait, value, draw):
    """A picture of a shape with a trait."""
    thing = {**scenes.draw_object(draw, ("large",), ("plain",)), "place": "centre", trait: value}
    shown = scenes.render({"background": "grey", "objects": [thing], "relation": None}, SIDE, draw)
    return Image.fromarray((shown * 255).round().astype(numpy.uint8))


def inputs_of(seed, traits, shots):
    """An episode of `shots` examples for each of `traits`, and a picture after them."""
    draw, texts, images = random.Random(seed), [], []
    for trait in traits:
        values = draw.choices(list(NAMES[trait]), k=shots + 1)
        words = [f"{trait} {NAMES[trait][value]}" for value in values[:-1]] + [""]
        texts.append("<s>" + "".join(f"{AROUND}{PLACE}{AROUND}{word}\n\n" for word in words).rstrip("\n"))
        images.append([picture(trait, value, draw) for value in values])
    tokenizer, processor = AutoTokenizer.from_pretrained(FOLDER), IdeficsImageProcessor.from_pretrained(FOLDER)
    rows = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    number = (rows == tokenizer.convert_tokens_to_ids(PLACE)).long().cumsum(1)
    latest = torch.nn.functional.one_hot(number, shots + 2)[:, :, 1:]
    pixels = torch.stack([processor(row, return_tensors="pt").reshape(shots + 1, 3, SIDE, SIDE) for row in images])
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows), "pixel_values": pixels, "image_attention_mask": latest}


def logits(name):
    """The logits of an episode of colours and one of kinds."""
    inputs = inputs_of(51, ["colour", "kind"], 4)
    run = lambda model: forward(model, inputs, ["logits"])
    case = Case(name, "Flamingo")
    options = {"model_ref": NAME, "dtype": "float32"}
    case.write(CLASS, "forward", inputs, run(load(FOLDER)), options, note="the published pocket-flamingo")
    case.check_repeats(lambda _: load(FOLDER), run)


def word(name):
    """The word of the last picture of an episode."""
    inputs = inputs_of(52, ["kind"], 8)
    asked = {"max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": 2}
    run = lambda model: generate(model, inputs, asked)
    case = Case(name, "Flamingo")
    options = {"model_ref": NAME, "dtype": "float32", **asked}
    case.write(CLASS, "generate", inputs, run(load(FOLDER)), options, note="the published pocket-flamingo")
    case.check_repeats(lambda _: load(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/flamingo": logits, "pocket/flamingo_generate": word}, sys.argv[1:])
