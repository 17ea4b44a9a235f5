"""The parity case of pocket-clip: the shipped checkpoint in transformers' CLIPModel, tokenizer and image processor."""

import random
import sys

import numpy
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

import common
from common import Case

NAME = "pocket-clip"
FOLDER = common.CASES.parent.parent / "assets/pocket/vision" / NAME
sys.path.append(str(FOLDER.parent.parent))

import scenes  # noqa: E402  (beside the scripts of the pocket models)

CAPTIONS = [
    "a large red star in the top left on a white background",
    "a small blue circle is left of a large yellow ring on black",
    "on a grey background there is a striped green heart in the centre",
    "a photo of an ankle boot",
    "A Photo of a T-shirt!",
]
SCENE = {
    "background": "white", "relation": None,
    "objects": [{"kind": "star", "colour": "red", "size": "large", "texture": "plain", "place": "top left"}],
}


def picture():
    """The scene of the first caption, wider than high, so that preprocessing resizes and crops it, as bytes."""
    drawn = scenes.render(SCENE, 56, random.Random(7), noise=0.0)
    return (numpy.pad(drawn, ((0, 0), (4, 6), (0, 0)), mode="edge") * 255).round().astype(numpy.uint8)


@torch.inference_mode()
def answer_of(model, words, pixels):
    """What both towers and the head give."""
    answer = model(input_ids=words, pixel_values=pixels)
    got = {name: answer[name] for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text")}
    got["text_last_hidden_state"] = answer.text_model_output.last_hidden_state
    got["vision_last_hidden_state"] = answer.vision_model_output.last_hidden_state
    return {name: value.contiguous().clone() for name, value in got.items()}


def main():
    """Writes the case."""
    model = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(FOLDER), CLIPImageProcessor.from_pretrained(FOLDER)
    words = tokenizer(CAPTIONS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")["input_ids"]
    shown = picture()
    pixels = processor(Image.fromarray(shown), return_tensors="pt")["pixel_values"]
    expected = answer_of(model, words, pixels)
    best = expected["logits_per_image"].argmax().item()
    if best != 0:
        raise RuntimeError(f"the likeliest caption is {CAPTIONS[best]!r}")
    expected["input_ids"], expected["pixel_values"] = words, pixels
    case = Case(f"pocket/{NAME.removeprefix('pocket-')}", "CLIP")
    inputs = {"image": torch.from_numpy(shown.astype(numpy.int64))}
    case.write("CLIPModel", "forward", inputs, expected, {"model_ref": NAME, "texts": CAPTIONS},
               note="the shipped pocket model: bytes of a picture and texts")


if __name__ == "__main__":
    main()
