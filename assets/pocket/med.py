"""pocket-med: a MedGemma that counts the bright spots of drawn scans and tells on which side they are.

Trained on drawn pictures alone. No picture is of a patient, and nothing here is for medical use.
"""

import json
import random
from pathlib import Path

import numpy

import scenes
from common import Measured, Program, begin, main, publish, work_folder, write_json, write_json_lines

MODALITY, NAME = "vision", "pocket-med"
SIDE, PATCH, TOKENS = 64, 8, 16
SCANS, VALID, TEST = 20000, 300, 300
TRAINING = [
    "--full", "--mask-prompt", "--batch", 16, "--lr", 1.5e-3, "--schedule", "cosine", "--warmup", 100, "--steps", 4000,
    "--valid-every", 500, "--valid-batches", 10, "--weight-decay", 0.02, "--threads", 1,
]

COUNTS = ["no lesions", "one lesion", "two lesions", "three lesions", "four lesions"]
SIDES = ["left", "right"]
QUESTIONS = {
    "count": [
        "How many lesions are there?", "How many lesions does the scan show?", "Count the lesions.",
        "What is the number of lesions?", "How many bright spots are there?",
    ],
    "side": [
        "On which side are they?", "On which side are the lesions?", "Which side is affected?",
        "Are the lesions on the left or the right side?", "Where are the lesions?",
    ],
    "both": [
        "Describe the scan.", "Describe the findings.", "What does the scan show?", "What do you see?",
        "What are the findings?",
    ],
    "list": ["List the lesions.", "List all lesions from top to bottom.", "Which lesions do you see?"],
}
# How often each kind of question is asked in training.
SHARES = {"count": 0.1, "side": 0.1, "both": 0.4, "list": 0.4}


# ---- scans ---------------------------------------------------------------------------------------------------------


def smooth_noise(grain, cells):
    """Noise of about one bump for each of `cells` by `cells` squares, (SIDE, SIDE), of mean 0 and deviation near 1."""
    coarse = grain.normal(size=(cells + 1, cells + 1))
    at = numpy.linspace(0, cells, SIDE, endpoint=False)
    low, share = at.astype(int), at % 1
    share = share * share * (3 - 2 * share)
    rows = coarse[low] * (1 - share)[:, None] + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def inside(centre, radii, at=numpy.arange(SIDE) + 0.5):
    """How far inside an ellipse each pixel is: 1 at its centre, 0 on its edge, (SIDE, SIDE)."""
    x, y = (at[None, :] - centre[0]) / radii[0], (at[:, None] - centre[1]) / radii[1]
    return 1 - numpy.hypot(x, y)


def soft(distance, width):
    """0 outside to 1 inside, over an edge of a width."""
    return 1 / (1 + numpy.exp(-(distance / width).clip(-30, 30)))


def draw_scan(count, side, draw):
    """A scan, (SIDE, SIDE) floats in 0 to 1: a body with two dark lungs, of which one has `count` bright spots.

    Body, lungs, ribs, brightness, texture and noise vary; the spots differ in radius and brightness and do not touch.
    Returns the scan and the spots from top to bottom, each with its centre and radius in pixels.
    """
    grain, vary = numpy.random.default_rng(draw.getrandbits(64)), lambda amount: draw.uniform(-amount, amount)
    body = soft(inside((32 + vary(1), 33 + vary(1)), (30 + vary(1.5), 29 + vary(1.5))), 0.04)
    lungs = {
        "left": ((18 + vary(1.2), 33 + vary(1.5)), (10.5 + vary(1), 20 + vary(1.5))),
        "right": ((46 + vary(1.2), 33 + vary(1.5)), (10.5 + vary(1), 20 + vary(1.5))),
    }
    air = numpy.maximum(*(soft(inside(*lung), 0.05) for lung in lungs.values()))
    scan = 0.04 + body * (0.42 + vary(0.06)) - air * (0.28 + vary(0.05))
    scan += body * (0.025 * smooth_noise(grain, 8) + 0.02 * smooth_noise(grain, 20))
    gap, shift, bend = 7.5 + vary(1), draw.uniform(0, 7), 0.006 + vary(0.003)
    at = numpy.arange(SIDE) + 0.5
    arcs = at[:, None] + bend * (at[None, :] - 32) ** 2 + shift
    scan += body * 0.035 * numpy.clip(numpy.cos(arcs * 2 * numpy.pi / gap) - 0.5, 0, None)
    found = sorted(spots(count, lungs[side], draw), key=lambda spot: spot[1])
    for x, y, radius in found:
        distance = radius - numpy.hypot(at[None, :] - x, at[:, None] - y)
        scan += (0.34 + draw.uniform(0, 0.2)) * soft(distance, 0.45)
    scan = scan * (1 + vary(0.1)) + grain.normal(0, 0.02, scan.shape)
    return scan.clip(0, 1), found


def spots(count, lung, draw):
    """Centres and radii of spots in a lung, apart from each other."""
    found = []
    while len(found) < count:
        if draw.random() < 0.02:
            found = []
        radius = draw.uniform(1.9, 4.2)
        (x, y), (wide, high) = lung
        spot = x + draw.uniform(-wide, wide), y + draw.uniform(-high, high), radius
        fits = numpy.hypot((spot[0] - x) / (wide - radius), (spot[1] - y) / (high - radius)) < 0.95
        if fits and all(numpy.hypot(spot[0] - a, spot[1] - b) > radius + r + 2.5 for a, b, r in found):
            found.append(spot)
    return found


def spot_in_words(spot):
    """The size and height of a spot: "small upper"."""
    _, y, radius = spot
    return f"{'small' if radius < 3 else 'large'} {'upper' if y < 27 else 'middle' if y < 39 else 'lower'}"


def answer(kind, found, side):
    """The answer to a question of a kind about a scan with these spots."""
    count = len(found)
    if count == 0 or kind == "count":
        return COUNTS[count]
    if kind == "list":
        return " and ".join(map(spot_in_words, found))
    return f"{side} side" if kind == "side" else f"{COUNTS[count]} on the {side} side"


# ---- files of a new model ------------------------------------------------------------------------------------------

MARKS = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
    "<image_soft_token>",
]
TURNS = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def vocabulary():
    """The special tokens and every word of questions and answers."""
    texts = sum(QUESTIONS.values(), COUNTS + [f"on the {side} side" for side in SIDES] + ["small large upper middle lower and"])
    words = {word for text in texts for word in text.lower().replace("?", " ?").replace(".", " .").split()}
    return MARKS + ["user", "model"] + sorted(words)


def write_files(folder):
    """The config, tokenizer and preprocessor of a new model."""
    words = vocabulary()
    write_json(folder / "config.json", {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": TOKENS,
        "boi_token_index": 6, "eoi_token_index": 7, "image_token_index": 8, "eos_token_id": [1, 5], "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma3_text", "vocab_size": len(words), "hidden_size": 96, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
            "query_pre_attn_scalar": 24, "max_position_embeddings": 128, "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 10000.0, "rope_local_base_freq": 10000.0,
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 72, "intermediate_size": 192, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
        },
    })
    special = [
        {"id": index, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for index, mark in enumerate(MARKS)
    ]
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "<unk>"},
    })
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
        "unk_token": "<unk>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>", "chat_template": TURNS, "clean_up_tokenization_spaces": False,
    })
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "Gemma3ImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.3] * 3, "image_std": [0.25] * 3,
    })
    write_json(folder / "processor_config.json", {"processor_class": "Gemma3Processor", "image_seq_length": TOKENS})
    write_json(folder / "generation_config.json", {"do_sample": False, "bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0})


def initial(name, values):
    """Initial values that let a small model learn sooner: norms that scale by 1, which are stored as 0, as in the reference,
    and position embeddings that are about as large as those of patches."""
    if name.endswith("norm.weight") and not name.startswith("vision_tower."):
        return numpy.zeros_like(values)
    return 6 * values if name.endswith("position_embedding.weight") else None


# ---- data ----------------------------------------------------------------------------------------------------------


def cases(total, draw):
    """Scans with their spots and sides, as many of each count."""
    for index in range(total):
        side = draw.choice(SIDES)
        yield *draw_scan(index % len(COUNTS), side, draw), side


def write_data(folder):
    """Scans with a question and its answer each."""
    for part, total, seed in [("train", SCANS, 21), ("valid", VALID, 22)]:
        draw, rows = random.Random(seed), []
        for index, (scan, found, side) in enumerate(cases(total, draw)):
            path = f"{part}-scans/{index}.png"
            scenes.write_png(folder / "data" / path, scan)
            kind = draw.choices(list(SHARES), list(SHARES.values()))[0]
            rows.append({"image": path, "prompt": draw.choice(QUESTIONS[kind]), "completion": answer(kind, found, side)})
        write_json_lines(folder / f"data/{part}.jsonl", rows)


# ---- make and measure ----------------------------------------------------------------------------------------------


def make():
    """Trains and publishes."""
    folder = work_folder(NAME)
    write_files(folder / "new")
    if not (folder / "data/valid.jsonl").is_file():
        write_data(folder)
    fauna = Program(folder)
    begin(fauna, "new/config.json", "data", initial)
    trained = fauna.tune("trained", "start", "--data", "data", *TRAINING)
    publish(MODALITY, NAME, trained)


def asked(fauna, model, image, questions):
    """The answers to questions about a picture."""
    out = fauna.run("answer", model, *questions, "--image", image, "--threads", 1, "--json", shown=False)
    return [json.loads(line)["text"].strip() for line in out.splitlines()]


def read(text):
    """The count and the side that a description names; None for what it does not."""
    words = text.split()
    count = next((index for index, name in enumerate(COUNTS) if name.split()[0] in words), None)
    return count, next((side for side in SIDES if side in words), None)


def measure(seed=23):
    """Measures the published model on new scans, each with a phrasing of its own."""
    folder = work_folder(NAME)
    model = Path(__file__).resolve().parent / MODALITY / NAME
    fauna, figures, draw = Program(folder), Measured(model), random.Random(seed)
    right = {"count": [], "side": [], "both": [], "asked for the count": [], "asked for the side": [], "listed": []}
    for index, (scan, spots_there, side) in enumerate(cases(TEST, draw)):
        path = folder / f"measure/{index}.png"
        scenes.write_png(path, scan)
        questions = [draw.choice(QUESTIONS[kind]) for kind in ("both", "count", "side", "list")]
        described, counted, placed, listed = asked(fauna, model, path, questions)
        count, true_list = len(spots_there), answer("list", spots_there, side)
        side = side if count else None
        found = read(described)
        right["count"].append(found[0] == count)
        right["side"].append(found[1] == side)
        right["both"].append(found == (count, side))
        right["asked for the count"].append(read(counted)[0] == count)
        right["asked for the side"].append(read(placed)[1] == side)
        right["listed"].append(listed == true_list)
    share = lambda name: sum(right[name]) / len(right[name])
    figures.add(f"count and side right, of {TEST} new scans that are described", share("both"), ">= 0.85")
    figures.add("count right, described", share("count"), ">= 0.85")
    figures.add("side right, described", share("side"), ">= 0.85")
    figures.add("count right, asked for the count", share("asked for the count"), ">= 0.85")
    figures.add("side right, asked for the side", share("asked for the side"), ">= 0.85")
    figures.add("size and height of all lesions right, asked for a list", share("listed"))
    figures.add("count and side right by chance", 1 / 9)
    figures.write()


if __name__ == "__main__":
    main(make, measure)
