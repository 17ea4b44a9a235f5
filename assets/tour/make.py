#!/usr/bin/env python3
"""Writes the files of the tour that are made: pictures of scenes, and a distorted crystal of table salt.

    assets/tour/make.py

Needs Python 3.11 with assets/pocket/requirements.txt.
"""

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "pocket"))

import scenes  # noqa: E402

# Colour, kind, size, texture, place, background.
PICTURES = [
    ("red", "star", "large", "plain", "top left", "white"),
    ("blue", "ring", "small", "plain", "centre", "black"),
    ("green", "heart", "large", "striped", "right", "grey"),
]


def pictures():
    draw = random.Random(5)
    for number, (colour, kind, size, texture, place, background) in enumerate(PICTURES, 1):
        thing = {"kind": kind, "colour": colour, "size": size, "texture": texture, "place": place}
        scene = {"background": background, "objects": [thing], "relation": None}
        scenes.write_png(HERE / f"scene-{number}.png", scenes.render(scene, 40, draw))


def salt():
    draw, side = random.Random(3), 5.35
    cell = [[side * 1.03, 0.12, 0.0], [0.0, side * 0.98, 0.1], [0.05, 0.0, side]]
    sodium = [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    chlorine = [((x + 0.5) % 1, y, z) for x, y, z in sodium]
    written = lambda values: " ".join(f"{value:.4f}" for value in values)  # noqa: E731
    rows = []
    for element, places in (("Na", sodium), ("Cl", chlorine)):
        for place in places:
            moved = [value + draw.uniform(-0.02, 0.02) for value in place]
            position = [sum(moved[k] * cell[k][axis] for k in range(3)) for axis in range(3)]
            rows.append(f"{element} {written(position)}")
    lattice = " ".join(written(vector) for vector in cell)
    lines = ["8", f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"', *rows]
    (HERE / "salt.xyz").write_text("\n".join(lines) + "\n")


pictures()
salt()
