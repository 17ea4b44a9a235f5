#!/usr/bin/env python3
"""Writes the files of the tour that are made: pictures of scenes, shapes and a scan, and a distorted crystal of table salt.

    assets/tour/make.py

Needs Python 3.11 with assets/pocket/requirements.txt.
"""

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "pocket"))

import flamingo  # noqa: E402
import med  # noqa: E402
import numpy  # noqa: E402
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


def shapes():
    """Four shapes of four colours, then one of the second colour."""
    draw = random.Random(8)
    things = [("circle", "red"), ("star", "blue"), ("heart", "green"), ("square", "yellow"), ("ring", "blue")]
    for number, (kind, colour) in enumerate(things, 1):
        thing = {"kind": kind, "colour": colour, "size": "large", "texture": "plain", "place": "centre"}
        scenes.write_png(HERE / f"shape-{number}.png", flamingo.picture(thing, draw))


def scan():
    picture, _ = med.draw_scan(3, "left", random.Random(5))
    scenes.write_png(HERE / "scan.png", numpy.repeat(picture[:, :, None], 3, axis=2))


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
shapes()
scan()
salt()
