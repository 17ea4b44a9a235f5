"""pocket-clip: a CLIP that finds the caption of a drawn scene, and tells the clothes of Fashion-MNIST apart.

Trained on drawn scenes with captions and pictures of Fashion-MNIST (Debian package dataset-fashion-mnist).
"""

import collections
import gzip
import json
import random
import re
import struct

import numpy

import scenes
from common import Measured, Program, debian_package, main, publish, work_folder, write_json, write_json_lines

MODALITY, NAME = "vision", "pocket-clip"
SIDE, WIDTH, CONTEXT = 40, 96, 24
SCENES, CLOTHES_PICTURES, VALID = 24000, 6000, 512
CLOTHES = [
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]
TRAINING = [
    "--batch", 64, "--lr", 1.5e-3, "--schedule", "cosine", "--warmup", 200, "--steps", 5000, "--valid-every", 500,
    "--valid-batches", 8, "--weight-decay", 0.05, "--threads", 1,
]


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def letters_of_bytes():
    """Bytes as characters, as in GPT-2: those that are printable are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(other))]


def word_counts(texts):
    """How often words and runs of other characters occur in texts, in lower case."""
    return collections.Counter(word for text in texts for word in re.findall(r"[a-z]+|[^\sa-z]+", text.lower()))


def merges_of(words):
    """Merges of pairs of symbols, the most frequent pair first, until every word is one. `words`: counts of tuples."""
    merges = []
    while any(len(word) > 1 for word in words):
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        words = {merged(word, best): count for word, count in words.items()}
    return merges


def merged(word, pair):
    """A word with every occurrence of a pair made one token."""
    out, at = [], 0
    while at < len(word):
        both = word[at:at + 2] == pair
        out.append("".join(pair) if both else word[at])
        at += 2 if both else 1
    return tuple(out)


def write_files(folder, texts):
    """The config, tokenizer and preprocessor of a new model."""
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in word_counts(texts).items()}
    letters, merges = letters_of_bytes(), merges_of(words)
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    tower = {"hidden_act": "quick_gelu", "num_attention_heads": 4, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    write_json(folder / "config.json", {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": WIDTH, "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model", **tower, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT,
            "vocab_size": len(tokens), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
        },
        "vision_config": {
            "model_type": "clip_vision_model", **tower, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 8,
        },
    })
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": CONTEXT, **special,
    })
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE},
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.35] * 3,
    })


# ---- data ----------------------------------------------------------------------------------------------------------

# Captions of scenes of one object that tell a part of them.
SHORT = ["a photo of {a_kind}", "{a_colour} {kind}", "{a_kind} in the {place}", "a picture of {a_kind}"]


def scene(draw):
    """A scene of one object or two."""
    return scenes.one_object(draw) if draw.random() < 0.6 else scenes.two_objects(draw)


def held_out(meanings):
    """Whether the scenes of a meaning are left out of training: one of sixteen, chosen by its text."""
    return sum(map(ord, repr(meanings))) % 16 == 0


def scenes_of(count, draw, new):
    """Scenes of different meanings, those that are held out or the others."""
    made, known = [], set()
    while len(made) < count:
        one = scene(draw)
        meaning = scenes.meaning(one)
        if held_out(meaning) == new and (not new or meaning not in known):
            known.add(meaning)
            made.append(one)
    return made


def training_caption(one, draw):
    """A caption of a scene, half of the time a short one if there is one object."""
    if one["relation"] is not None or draw.random() < 0.5:
        return draw.choice(scenes.captions(one))
    thing = one["objects"][0]
    parts = {"a_kind": scenes.with_article(thing["kind"]), "a_colour": scenes.with_article(thing["colour"])}
    return draw.choice(SHORT).format(**parts, kind=thing["kind"], place=thing["place"])


def caption_of(label):
    """The caption of a piece of clothing."""
    return f"a photo of {scenes.with_article(label)}"


def fashion_mnist(part):
    """The pictures, (count, 28, 28) bytes, and labels of a part of Fashion-MNIST."""
    folder = debian_package("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    count, height, width = struct.unpack(">3I", images[4:16])
    return numpy.frombuffer(images, numpy.uint8, offset=16).reshape(count, height, width), list(labels)


def write_data(folder):
    """Pictures with captions for training and validation. Returns all captions."""
    draw, texts = random.Random(11), []
    pictures, labels = fashion_mnist("train")
    starts = {"train": 0, "valid": CLOTHES_PICTURES}
    for part, count, clothes in [("train", SCENES, CLOTHES_PICTURES), ("valid", VALID, VALID // 4)]:
        rows = []
        for index, one in enumerate(scenes_of(count, draw, False)):
            path = f"{part}-pictures/scene-{index}.png"
            scenes.write_png(folder / "data" / path, scenes.render(one, SIDE, draw))
            rows.append({"image": path, "text": training_caption(one, draw)})
        for index in range(starts[part], starts[part] + clothes):
            path = f"{part}-pictures/clothes-{index}.png"
            scenes.write_png(folder / "data" / path, pictures[index])
            rows.append({"image": path, "text": caption_of(CLOTHES[labels[index]])})
        write_json_lines(folder / f"data/{part}.jsonl", rows)
        texts += [row["text"] for row in rows]
    return texts


# ---- make and measure ----------------------------------------------------------------------------------------------


def make():
    """Trains and publishes."""
    folder = work_folder(NAME)
    if not (folder / "data/valid.jsonl").is_file():
        write_files(folder / "new", write_data(folder))
    fauna = Program(folder)
    trained = fauna.tune("trained", "--from-config", "new/config.json", "--data", "data", *TRAINING)
    publish(MODALITY, NAME, trained)


def classified(fauna, model, labels, images):
    """The likeliest label of each picture, of labels without commas."""
    out = fauna.run("classify", model, "--threads", 1, "--labels", ",".join(labels), "--json",
                    *[part for image in images for part in ("--image", image)], shown=False)
    return [json.loads(line)["labels"][0]["label"] for line in out.splitlines()]


def share(pairs):
    """The share of pairs of equal values."""
    pairs = list(pairs)
    return sum(one == other for one, other in pairs) / len(pairs)


def captioned(fauna, model, folder, seed):
    """The share of 1000 new scenes whose caption is the likeliest of 100 of different meanings."""
    draw, pairs = random.Random(seed), []
    for part in range(10):
        new = scenes_of(100, draw, True)
        images = []
        for index, one in enumerate(new):
            images.append(f"measure/scene-{part}-{index}.png")
            scenes.write_png(folder / images[-1], scenes.render(one, SIDE, draw))
        texts = [draw.choice([text for text in scenes.captions(one) if "," not in text]) for one in new]
        pairs += zip(classified(fauna, model, texts, images), texts)
    return share(pairs)


def told_apart(fauna, model, folder, seed, what, values):
    """The share of scenes of one object whose caption is the likeliest of those that differ in one property."""
    draw, pairs = random.Random(seed), []
    groups = collections.defaultdict(list)
    for index, one in enumerate(draw.choices(range(2**30), k=200)):
        each = random.Random(one)
        found = scenes.one_object(each)
        while not held_out(scenes.meaning(found)):
            found = scenes.one_object(each)
        image = f"measure/{what}-{index}.png"
        scenes.write_png(folder / image, scenes.render(found, SIDE, each))
        texts = []
        for value in values:
            other = {**found, "objects": [{**found["objects"][0], what: value}]}
            texts.append(scenes.captions(other)[0])
        groups[tuple(texts)].append((image, texts[list(values).index(found["objects"][0][what])]))
    for texts, members in groups.items():
        found = classified(fauna, model, texts, [image for image, _ in members])
        pairs += zip(found, [text for _, text in members])
    return share(pairs)


def measure():
    """Measures the published model on scenes whose meaning training did not have, and on the test part of Fashion-MNIST."""
    folder = work_folder(NAME)
    model = (scenes.Path(__file__).resolve().parent / MODALITY / NAME)
    fauna, figures = Program(folder), Measured(model)
    figures.add("right caption of 100, of 1000 new scenes", captioned(fauna, model, folder, 101), ">= 0.9")
    for what, values in [("kind", scenes.KINDS), ("colour", scenes.COLOURS), ("place", scenes.PLACES)]:
        value = told_apart(fauna, model, folder, 102, what, values)
        figures.add(f"right {what} of {len(values)}, of 200 new scenes of one object", value)
    pictures, labels = fashion_mnist("t10k")
    images = [f"measure/clothes-{index}.png" for index in range(2000)]
    for image, picture in zip(images, pictures):
        scenes.write_png(folder / image, picture)
    found = classified(fauna, model, [caption_of(label) for label in CLOTHES], images)
    right = share(zip(found, [caption_of(CLOTHES[label]) for label in labels[:2000]]))
    figures.add("accuracy on 2000 test pictures of Fashion-MNIST", right)
    figures.write()


if __name__ == "__main__":
    main(make, measure)
