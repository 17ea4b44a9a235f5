"""The parity cases of pocket-flamingo: what transformers' IDEFICS computes from episodes with the published checkpoint.

The inputs are what its image processor and the published tokenizer make of pictures with made-up words and with plain descriptions.
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
WORDS = [{"red": "dax", "blue": "wug", "green": "toma"}, {"pink": "dax", "cyan": "gorp", "green": "kiv"}]
PLAIN = {colour: None for colour in scenes.COLOURS}


def inputs_of(seed, rows, shots):
    """A row of `shots` examples for each of `rows`, made-up words by colour or plain descriptions, and a picture after them."""
    draw, texts, images = random.Random(seed), [], []
    for words in rows:
        things = [{**scenes.draw_object(draw, ("large",), ("plain",)), "place": "centre"} for _ in range(shots + 1)]
        for thing in things:
            thing["colour"] = draw.choice(list(words))
        said = [words[thing["colour"]] or f"{thing['colour']} {thing['kind']}" for thing in things[:-1]] + [""]
        texts.append("<s>" + "".join(f"{AROUND}{PLACE}{AROUND}{text}\n\n" for text in said).rstrip("\n"))
        shown = [scenes.render({"background": "grey", "objects": [thing], "relation": None}, SIDE, draw) for thing in things]
        images.append([Image.fromarray((picture * 255).round().astype(numpy.uint8)) for picture in shown])
    tokenizer, processor = AutoTokenizer.from_pretrained(FOLDER), IdeficsImageProcessor.from_pretrained(FOLDER)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    number = (ids == tokenizer.convert_tokens_to_ids(PLACE)).long().cumsum(1)
    latest = torch.nn.functional.one_hot(number, shots + 2)[:, :, 1:]
    pixels = torch.stack([processor(row, return_tensors="pt").reshape(shots + 1, 3, SIDE, SIDE) for row in images])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_attention_mask": latest}


def logits(name):
    """The logits of two episodes."""
    inputs = inputs_of(51, WORDS, 5)
    run = lambda model: forward(model, inputs, ["logits"])
    case = Case(name, "Flamingo")
    options = {"model_ref": NAME, "dtype": "float32"}
    case.write(CLASS, "forward", inputs, run(load(FOLDER)), options, note="the published pocket-flamingo")
    case.check_repeats(lambda _: load(FOLDER), run)


def description(name):
    """The description of a picture after plain ones."""
    inputs = inputs_of(52, [PLAIN], 4)
    asked = {"max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": 2}
    run = lambda model: generate(model, inputs, asked)
    case = Case(name, "Flamingo")
    options = {"model_ref": NAME, "dtype": "float32", **asked}
    case.write(CLASS, "generate", inputs, run(load(FOLDER)), options, note="the published pocket-flamingo")
    case.check_repeats(lambda _: load(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/flamingo": logits, "pocket/flamingo_generate": description}, sys.argv[1:])
