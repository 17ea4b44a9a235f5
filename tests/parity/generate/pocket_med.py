"""The parity cases of pocket-med: what transformers' Gemma 3 computes from drawn scans with the published checkpoint.

The inputs are what its processor makes of the pictures and of the published tokenizer, template and processor files.
"""

import sys
from pathlib import Path

import numpy
from PIL import Image
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from common import Case, forward, generate, reload_as, run_all

NAME = "pocket-med"
FOLDER = Path(__file__).resolve().parents[3] / "assets/pocket/vision" / NAME
SIDE = 64
# Centres and radii of spots.
TWO = [(20, 24, 3), (16, 40, 2.5)]
THREE = [(46, 20, 2.5), (44, 33, 3.5), (48, 45, 2)]
FOUR = [(20, 20, 2), (16, 30, 3), (21, 38, 2.5), (18, 47, 2)]
# As many tokens each, so that no row is padded.
QUESTIONS = ["How many lesions are there?", "On which side are they?", "What are the findings?"]
CLASS = "Gemma3Processor and Gemma3ForConditionalGeneration"
load = reload_as(Gemma3ForConditionalGeneration)


def scan(spots):
    """Two dark lungs in a body, with bright spots."""
    y, x = numpy.mgrid[:SIDE, :SIDE] + 0.5
    within = lambda a, b, wide, high: numpy.hypot((x - a) / wide, (y - b) / high) < 1
    made = 10 + 100.0 * within(32, 33, 30, 29) - 70 * within(18, 33, 10.5, 20) - 70 * within(46, 33, 10.5, 20)
    for a, b, radius in spots:
        made += 110 * within(a, b, radius, radius)
    return Image.fromarray(made.astype(numpy.uint8)).convert("RGB")


def inputs_of(questions, spots):
    """Questions about scans, each as a conversation."""
    processor = AutoProcessor.from_pretrained(FOLDER)
    pictures = [[scan(of_one)] for of_one in spots]
    turns = [[{"role": "user", "content": f"<start_of_image>{question}"}] for question in questions]
    texts = [processor.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    made = processor(text=texts, images=pictures, return_tensors="pt", add_special_tokens=False)
    return {key: made[key] for key in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")}


def logits(name):
    """The logits of two questions, and the embeddings of their pictures."""
    inputs = inputs_of(QUESTIONS[:2], [THREE, TWO])
    case = Case(name, "Med-PaLM M")

    def run(model):
        out = forward(model, inputs, ["logits"])
        return out | {"image_hidden_states": model(**inputs).image_hidden_states.detach().contiguous().clone()}

    options = {"model_ref": NAME, "dtype": "float32"}
    case.write(CLASS, "forward", inputs, run(load(FOLDER)), options, note="the published pocket-med")
    case.check_repeats(lambda _: load(FOLDER), run)


def description(name):
    """The description of a scan."""
    inputs = inputs_of(QUESTIONS[2:], [FOUR])
    asked = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": [1, 5]}
    case = Case(name, "Med-PaLM M")
    run = lambda model: generate(model, inputs, asked)
    options = {"model_ref": NAME, "dtype": "float32", **asked, "do_sample": False}
    case.write(CLASS, "generate", inputs, run(load(FOLDER)), options, note="the published pocket-med")
    case.check_repeats(lambda _: load(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/med": logits, "pocket/med_generate": description}, sys.argv[1:])
