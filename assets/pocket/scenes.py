"""Rendered scenes with captions: coloured shapes on a background, drawn, described and recognized by code alone.

A scene is a dictionary with a background, one or two objects (kind, colour, size, texture, place) and, of two objects, the
relation of the first to the second. Pictures are arrays (height, width, 3) of floats in 0 to 1. Everything random comes from
the `random.Random` that the caller gives.
"""

import itertools
import math
import struct
import zlib
from pathlib import Path

import numpy

KINDS = ["circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"]
COLOURS = {
    "red": (0.86, 0.10, 0.12), "orange": (1.00, 0.55, 0.05), "yellow": (0.96, 0.90, 0.12), "green": (0.10, 0.65, 0.18),
    "cyan": (0.15, 0.85, 0.90), "blue": (0.12, 0.22, 0.88), "purple": (0.48, 0.12, 0.70), "pink": (1.00, 0.45, 0.78),
}
# Radius as a share of the picture's side.
SIZES = {"small": 0.13, "large": 0.20}
TEXTURES = ["plain", "striped", "dotted", "checked"]
BACKGROUNDS = {"white": 0.95, "grey": 0.55, "black": 0.07}
# Centres as shares of the picture's side, from the left and from the top.
PLACES = {
    "top left": (0.24, 0.24), "top": (0.5, 0.24), "top right": (0.76, 0.24),
    "left": (0.24, 0.5), "centre": (0.5, 0.5), "right": (0.76, 0.5),
    "bottom left": (0.24, 0.76), "bottom": (0.5, 0.76), "bottom right": (0.76, 0.76),
}
# Centres of the first and the second object of each relation.
RELATIONS = {
    "left of": ((0.27, 0.5), (0.73, 0.5)), "right of": ((0.73, 0.5), (0.27, 0.5)),
    "above": ((0.5, 0.27), (0.5, 0.73)), "below": ((0.5, 0.73), (0.5, 0.27)),
}
# The second shade of a texture, as a share of the colour.
SHADE = 0.6
# Samples per pixel, along each axis.
SAMPLES = 4


# ---- descriptions --------------------------------------------------------------------------------------------------


def draw_object(draw, sizes=tuple(SIZES), textures=tuple(TEXTURES)):
    """A random object without its place."""
    return {
        "kind": draw.choice(KINDS), "colour": draw.choice(list(COLOURS)), "size": draw.choice(sizes),
        "texture": draw.choice(textures),
    }


def one_object(draw, sizes=tuple(SIZES), textures=tuple(TEXTURES), backgrounds=tuple(BACKGROUNDS)):
    """A random scene of one object."""
    thing = draw_object(draw, sizes, textures)
    thing["place"] = draw.choice(list(PLACES))
    return {"background": draw.choice(backgrounds), "objects": [thing], "relation": None}


def two_objects(draw, sizes=tuple(SIZES), textures=tuple(TEXTURES), backgrounds=tuple(BACKGROUNDS)):
    """A random scene of two objects that differ in kind or colour."""
    first, second = draw_object(draw, sizes, textures), draw_object(draw, sizes, textures)
    while (first["kind"], first["colour"]) == (second["kind"], second["colour"]):
        second = draw_object(draw, sizes, textures)
    relation = draw.choice(list(RELATIONS))
    return {"background": draw.choice(backgrounds), "objects": [first, second], "relation": relation}


def meaning(scene):
    """What a caption tells of a scene, as a value that can be compared: a relation and its opposite are one."""
    things = [tuple(sorted(thing.items())) for thing in scene["objects"]]
    opposite = {"right of": "left of", "below": "above"}
    relation = scene["relation"]
    if relation in opposite:
        things, relation = things[::-1], opposite[relation]
    return scene["background"], relation, tuple(things)


def noun(thing):
    """An object in words: "large striped red star"."""
    words = [thing["size"], thing["texture"], thing["colour"], thing["kind"]]
    return " ".join(word for word in words if word != "plain")


def with_article(words):
    """Words behind "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


ONE = [
    "{thing} in the {place} on a {background} background",
    "a picture of {thing} in the {place}, {background} background",
    "{thing} at the {place} of a {background} picture",
    "on a {background} background there is {thing} in the {place}",
    "in the {place}: {thing} on {background}",
    "a photo of {thing} on {background}, {place}",
]
TWO = [
    "{first} {relation} {second} on a {background} background",
    "a picture of {first} {relation} {second}, {background} background",
    "on a {background} background there is {first} {relation} {second}",
    "{first} is {relation} {second} on {background}",
    "a photo of {first} {relation} {second} on {background}",
]


def captions(scene):
    """All captions of a scene, each of which tells all of it."""
    things = [with_article(noun(thing)) for thing in scene["objects"]]
    if scene["relation"] is None:
        parts = {"thing": things[0], "place": scene["objects"][0]["place"], "background": scene["background"]}
        return [phrase.format(**parts) for phrase in ONE]
    parts = {"first": things[0], "second": things[1], "relation": scene["relation"], "background": scene["background"]}
    return [phrase.format(**parts) for phrase in TWO]


# ---- drawing -------------------------------------------------------------------------------------------------------


def polygon(corners):
    """The inside of a polygon that is star-shaped about the origin, by the crossings of a ray."""
    def inside(x, y):
        found = numpy.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
            if y0 != y1:
                crossed = (y0 > y) != (y1 > y)
                found ^= crossed & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        return found
    return inside


def around(*radii):
    """Corners around the origin, with these radii in turn, the first at the top."""
    turns = [math.tau * index / len(radii) for index in range(len(radii))]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in zip(radii, turns)]


# The inside of each kind as a function of coordinates, x to the right and y down, for a radius of about 1.
SHAPES = {
    "circle": lambda x, y: x * x + y * y < 0.9,
    "square": lambda x, y: numpy.maximum(abs(x), abs(y)) < 0.84,
    "triangle": polygon([(0.0, -1.0), (1.05, 0.85), (-1.05, 0.85)]),
    "star": polygon(around(*[1.15, 0.46] * 5)),
    "ring": lambda x, y: (x * x + y * y < 1.0) & (x * x + y * y > 0.3),
    "cross": lambda x, y: (numpy.minimum(abs(x), abs(y)) < 0.33) & (numpy.maximum(abs(x), abs(y)) < 1.0),
    "diamond": lambda x, y: abs(x) * 1.3 + abs(y) < 1.1,
    "heart": lambda x, y: ((x * 1.1) ** 2 + (y * 1.15 + 0.8 * numpy.sqrt(abs(x)) - 0.25) ** 2) < 0.85,
}


def coverage(kind, centre, radius, side):
    """The covered share of each pixel, (side, side), of a shape whose centre and radius are in pixels."""
    at = (numpy.arange(side * SAMPLES) + 0.5) / SAMPLES
    x, y = (at[None, :] - centre[0]) / radius, (at[:, None] - centre[1]) / radius
    x, y = numpy.broadcast_arrays(x, y)
    inside = SHAPES[kind](x, y).astype(numpy.float64)
    return inside.reshape(side, SAMPLES, side, SAMPLES).mean((1, 3))


def pattern(texture, centre, radius, side):
    """Where a texture has the colour (1) and where its second shade (0), (side, side)."""
    at = numpy.arange(side) + 0.5
    x, y = numpy.broadcast_arrays((at[None, :] - centre[0]) / radius, (at[:, None] - centre[1]) / radius)
    wave = lambda t: numpy.sin(math.tau * t * 1.25)
    if texture == "striped":
        return (wave((x + y) * 0.9) > 0).astype(float)
    if texture == "checked":
        return (wave(x) * wave(y) > 0).astype(float)
    if texture == "dotted":
        return 1 - ((wave(x) > 0.1) & (wave(y) > 0.1)).astype(float)
    return numpy.ones((side, side))


def render(scene, side, draw, jitter=0.03, noise=0.012, variation=1.0):
    """Draws a scene of `side` by `side` pixels.

    Places vary by `jitter`, each pixel has `noise`; radii and colours vary a little, and the background has a tint and a
    gradient, scaled by `variation`.
    """
    vary = lambda amount: draw.uniform(-amount, amount) * variation
    level = BACKGROUNDS[scene["background"]] + vary(0.04)
    slope_x, slope_y = vary(0.05), vary(0.05)
    ramp = (numpy.arange(side) + 0.5) / side - 0.5
    plane = level + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    picture = plane[:, :, None] + numpy.array([vary(0.02) for _ in range(3)])
    centres = RELATIONS.get(scene["relation"]) or [PLACES[thing["place"]] for thing in scene["objects"]]
    for thing, (x, y) in zip(scene["objects"], centres):
        centre = (x + draw.uniform(-jitter, jitter)) * side, (y + draw.uniform(-jitter, jitter)) * side
        radius = SIZES[thing["size"]] * (1 + vary(0.08)) * side
        colour = numpy.array(COLOURS[thing["colour"]]) + numpy.array([vary(0.04) for _ in range(3)])
        shade = SHADE + (1 - SHADE) * pattern(thing["texture"], centre, radius, side)
        cover = coverage(thing["kind"], centre, radius, side)[:, :, None]
        picture = picture * (1 - cover) + colour * shade[:, :, None] * cover
    if noise:
        grain = numpy.random.default_rng(draw.getrandbits(64)).normal(0, noise, picture.shape)
        picture = picture + grain
    return picture.clip(0, 1)


# ---- recognition ---------------------------------------------------------------------------------------------------


def find_objects(picture, least=0.008, chroma=0.2):
    """The objects of a square picture, the largest first, as dictionaries.

    Objects are connected pixels of a saturated colour with at least the share `least` of the picture's area. Each has its
    `colour` (that of most pixels), `place` (the nearest by the centre), `centre` and `radius` (shares of the side), `size`
    (the nearest), `kind` (the best overlap with drawn shapes) and `overlap` (intersection over union with the best, 0 to 1).
    """
    side = picture.shape[0]
    saturated = picture.max(2) - picture.min(2) > chroma
    found = []
    for mask in components(saturated):
        if mask.sum() < least * side * side:
            continue
        colour = colour_of(picture[mask])
        mask = fill(mask, picture, colour)
        kind, overlap, centre, radius = kind_of(mask)
        centre = centre[0] / side, centre[1] / side
        near = lambda place: math.dist(PLACES[place], centre)
        found.append({
            "kind": kind, "colour": colour, "place": min(PLACES, key=near), "centre": centre, "radius": radius / side,
            "size": min(SIZES, key=lambda size: abs(SIZES[size] * side - radius)), "overlap": overlap, "area": int(mask.sum()),
        })
    return sorted(found, key=lambda thing: -thing["area"])


def components(mask):
    """The parts of a mask that are connected, with diagonals, as masks."""
    left = mask.copy()
    while left.any():
        part = numpy.zeros_like(mask)
        waiting = [tuple(numpy.argwhere(left)[0])]
        left[waiting[0]] = False
        while waiting:
            y, x = waiting.pop()
            part[y, x] = True
            for row, column in itertools.product(range(max(y - 1, 0), y + 2), range(max(x - 1, 0), x + 2)):
                if row < mask.shape[0] and column < mask.shape[1] and left[row, column]:
                    left[row, column] = False
                    waiting.append((row, column))
        yield part


def colour_of(pixels):
    """The colour that is nearest, in either shade, to most of the pixels, (count, 3)."""
    names = list(COLOURS)
    palette = numpy.array([COLOURS[name] for name in names])
    shades = numpy.stack([palette, palette * SHADE])
    distance = ((pixels[None, None] - shades[:, :, None]) ** 2).sum(3).min(0)
    # Pixels of an edge are mixed with the background, and are as far from all.
    sure = distance.min(0) < 0.08
    votes = distance[:, sure] if sure.any() else distance
    return names[int(numpy.bincount(votes.argmin(0), minlength=len(names)).argmax())]


def fill(mask, picture, colour):
    """The pixels of a mask that are covered by the object for half or more, judged by their saturation."""
    full = numpy.array(COLOURS[colour])
    spread = picture.max(2) - picture.min(2)
    expected = (full.max() - full.min()) * (picture.max(2) / full.max()).clip(SHADE, 1)
    kept = mask & (spread > 0.5 * expected)
    return kept if kept.any() else mask


def kind_of(mask):
    """The kind of a mask with its overlap, centre and radius in pixels."""
    rows, columns = numpy.nonzero(mask)
    middle = columns.mean() + 0.5, rows.mean() + 0.5
    # A window around the object, for speed.
    reach = int(max(numpy.ptp(rows), numpy.ptp(columns)) / 2 + 5)
    left, top = int(middle[0]) - reach, int(middle[1]) - reach
    window = numpy.zeros((2 * reach, 2 * reach), bool)
    inside = mask[max(top, 0):top + 2 * reach, max(left, 0):left + 2 * reach]
    window[max(-top, 0):max(-top, 0) + inside.shape[0], max(-left, 0):max(-left, 0) + inside.shape[1]] = inside
    best = ("", -1.0, middle, 0.0)
    for kind in KINDS:
        area, offset = moments(kind)
        radius = math.sqrt(mask.sum() / area)
        for scale, dx, dy in itertools.product((0.94, 1.0, 1.06), (-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5)):
            size = radius * scale
            centre = middle[0] - offset[0] * size + dx, middle[1] - offset[1] * size + dy
            drawn = coverage(kind, (centre[0] - left, centre[1] - top), size, 2 * reach) >= 0.5
            overlap = (drawn & window).sum() / max((drawn | window).sum(), 1)
            if overlap > best[1]:
                best = (kind, float(overlap), centre, size)
    return best


def moments(kind, cache={}):
    """The area and the centre of mass of a kind with radius 1."""
    if kind not in cache:
        drawn = coverage(kind, (100.0, 100.0), 60.0, 200)
        at, total = numpy.arange(200) + 0.5, drawn.sum()
        x, y = (drawn.sum(0) @ at) / total - 100, (drawn.sum(1) @ at) / total - 100
        cache[kind] = total / 3600, (x / 60, y / 60)
    return cache[kind]


# ---- files ---------------------------------------------------------------------------------------------------------


def write_png(path, picture):
    """Writes a picture, floats in 0 to 1 or bytes, (height, width, 3) or (height, width), as a PNG."""
    if picture.dtype != numpy.uint8:
        picture = (picture * 255).round().clip(0, 255).astype(numpy.uint8)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    colours = 2 if picture.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], 8, colours, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def read_png(path):
    """Reads a PNG of 8 bits without a palette and interlacing as floats in 0 to 1, (height, width, 3)."""
    data = Path(path).read_bytes()
    at, packed, header = 8, b"", None
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += length + 12
    width, height, depth, colours, _, _, interlaced = header
    if depth != 8 or colours not in (0, 2, 4, 6) or interlaced:
        raise ValueError(f"{path}: only PNGs of 8 bits per channel, without a palette and interlacing, are read")
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    rows = numpy.frombuffer(zlib.decompress(packed), numpy.uint8).reshape(height, 1 + width * channels)
    pixels = unfilter(rows, channels).reshape(height, width, channels)
    pixels = pixels[:, :, :3] if channels >= 3 else numpy.repeat(pixels[:, :, :1], 3, 2)
    return pixels / 255.0


def unfilter(rows, step):
    """Undoes the filters of the rows of a PNG."""
    before, out = numpy.zeros(rows.shape[1] - 1, int), []
    for row in rows:
        kind, row = row[0], row[1:].astype(int)
        if kind == 2:
            row = row + before & 255
        elif kind:
            for index in range(len(row)):
                a = row[index - step] if index >= step else 0
                b, c = before[index], before[index - step] if index >= step else 0
                row[index] = row[index] + (a, None, (a + b) // 2, paeth(a, b, c))[kind - 1] & 255
        out.append(row)
        before = row
    return numpy.array(out)


def paeth(a, b, c):
    """The predictor of a PNG's fourth filter: of the pixels left, above and above left."""
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    return a if to_a <= to_b and to_a <= to_c else b if to_b <= to_c else c


def sheet(pictures, columns, gap=2):
    """Pictures of one size side by side."""
    side = pictures[0].shape[0] + gap
    count = -(-len(pictures) // columns)
    whole = numpy.full((count * side + gap, columns * side + gap, 3), 0.5)
    for index, picture in enumerate(pictures):
        y, x = divmod(index, columns)
        whole[gap + y * side:(y + 1) * side, gap + x * side:(x + 1) * side] = picture
    return whole
