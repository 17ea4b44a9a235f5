"""Checkpoints without the bytes that a seed gives again.

    python seeded.py pack FOLDER...    every weights file of the cases below FOLDER becomes NAME.seeded
    python seeded.py unpack FILE...    NAME again, beside FILE.seeded

The random weights of a tiny model are what `torch.randn` drew from the case's seed, scaled. `pack` finds them in the
bytes of the file, whatever its format: eight of sixteen normal numbers that torch draws together have the angle that
the other eight have (Box and Muller), and an angle tells where in the generator's sequence a number stands, whatever it
was multiplied by. What is found is made again, compared bit by bit and replaced by its place in the sequence. The format
is described in shared/src/parity/seeded.rs, which writes the file out for `fauna parity`.

A run of a generator packs the case it wrote, except those in PLAIN, whose checkpoints serve elsewhere as well.
"""

import fnmatch
import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CASES = Path(__file__).resolve().parent.parent
FORMAT, ENDING = "fauna-seeded-1", ".seeded"

# Cases whose checkpoints the documentation, examples and other tests open by their names.
PLAIN = """
    bert/question_answering bert/sentence_mean_normalized bert/sentence_today_prompt bert/sentence_today_two_dense
    bert/sequence_classification bert/text_cased_token_classification bert/text_uncased_masked_lm
    chronos/bolt_predict_short clip/end_to_end
    dalle/dvae_encode dalle/mini_generate encodec/decode_24khz_trim_right_ratio encodec/encode_*
    flamingo/idefics_generate flamingo/open_mpt_generate
    genslm/embed_71_tokens genslm/embed_older_file genslm/embed_sequences gpt_oss/generate_conversation
    llama/generate llama/gguf_q8_0 llama/text_left_padding
    llark/answer llark/hear_mean llark/hear_short llark/jukebox_decode_openai llark/pipeline llark/read
    medgemma/generate_whole_way musicgen/generate_mono_guided openvla/forward_single
    orb/orbmol_v2_molecule orb/v3_conservative_crystal orb/v3_conservative_molecule orb/v3_conservative_omol
    orb/v3_direct_crystal orb/v3_direct_more_heads
    siglip/end_to_end starcoder/bigcode_forward_shared_key starcoder/generate_fim_text
""".split()

# Text, and what is small.
NO_WEIGHTS = (".json", ".txt", ".model", ".jinja", ".md", ".py", ENDING)
SMALLEST = 8 << 10

# How the generators scale noise: GAIN * noise, GAIN * noise / sqrt(whole number), ADD + GAIN * noise.
GAINS = (1.3, 0.3, 0.7, 1.0, 2.0, 2.5, 1.6, 0.5, 0.2, 3.0, 1.5, 0.8, 0.6, 0.4, 0.08, 1.2, 1.8, 0.9, 0.1, 1.4, 5.2)
ADDS = (0.0, 1.0, 0.6)

TURN = 1 << 24
TYPES = {"f32": (torch.float32, 4, 2.0**-24), "f16": (torch.float16, 2, 2.0**-11), "bf16": (torch.bfloat16, 2, 2.0**-8)}


class Sequence:
    """What torch's generator gives after `manual_seed`, as 24 bits each, and where in it each value stands."""

    def __init__(self, seed, length):
        self.seed, self.length = seed % (1 << 32), length
        bits = np.random.MT19937()
        bits._legacy_seeding(self.seed)
        self.bits = (bits.random_raw(length) & (TURN - 1)).astype(np.int64)
        self.order = np.argsort(self.bits, kind="stable")
        self.sorted = self.bits[self.order]

    def noise(self, at, count):
        random = torch.Generator().manual_seed(self.seed)
        torch.rand(at, generator=random)
        return torch.randn(count, generator=random)


class View:
    """A file read as numbers of one type from one alignment on, less `add`, and the angle of each with the eighth
    after it. `good` are the numbers that may begin sixteen of noise."""

    def __init__(self, data, dtype, offset, add):
        self.dtype, self.offset, self.add = dtype, offset, add
        kind, self.size, precision = TYPES[dtype]
        whole = bytearray(data[offset : offset + (len(data) - offset) // self.size * self.size])
        self.numbers = torch.frombuffer(whole, dtype=kind).double().numpy() if whole else np.zeros(0)
        with np.errstate(all="ignore"):
            x, y = self.numbers[:-8] - add, self.numbers[8:] - add
            angle = np.arctan2(y, x) / (2 * np.pi) % 1 * TURN
            radius = np.hypot(x, y)
            largest = np.maximum(np.abs(self.numbers[:-8]), np.abs(self.numbers[8:]))
            slack = precision * largest / radius / (2 * np.pi) * TURN * 1.5 + 60
            known = np.isfinite(angle) & (radius < 60) & (radius > 1e-6) & (slack < TURN / 16) & (x != 0) & (y != 0)
        self.angle, self.slack = np.where(known, angle, 0.0), np.where(known, slack, 0.0)
        self.good = known[: max(0, len(known) - 7)].copy()
        for k in range(1, 8):
            self.good &= known[k : k + len(self.good)]

    def agrees(self, here, there, k, sequence):
        off = np.abs(sequence.bits[there + 8 + k] - self.angle[here + k])
        return np.minimum(off, TURN - off) <= self.slack[here + k]

    def places(self, here, sequence):
        """The numbers of `here` that begin sixteen of noise, and the place of each in the sequence."""
        low = np.searchsorted(sequence.sorted, self.angle[here] - self.slack[here])
        high = np.searchsorted(sequence.sorted, self.angle[here] + self.slack[here], side="right")
        count = high - low
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        here, there = np.repeat(here, count), sequence.order[np.repeat(low, count) + within] - 8
        inside = (there >= 0) & (there + 32 <= sequence.length)
        here, there = here[inside], there[inside]
        for k in range(1, 8):
            same = self.agrees(here, there, k, sequence)
            here, there = here[same], there[same]
        return here, there

    def follows(self, here, there, sequence, most):
        """How many of the next `most` sixteens follow one another from `here` as from `there`."""
        steps = 16 * np.arange(most)
        steps = steps[(here + steps < len(self.good)) & (there + steps + 32 <= sequence.length)]
        same = self.good[here + steps].copy()
        for k in range(8):
            same &= self.agrees(here + steps, there + steps, k, sequence)
        return int(np.argmin(same)) if not same.all() else len(same)

    def chain(self, here, there, sequence):
        done, most = 0, 64
        while (more := self.follows(here + 16 * done, there + 16 * done, sequence, most)) == most:
            done, most = done + more, most * 2
        return done + more


class Scales:
    """Finds what noise was scaled by; what was found before is tried first."""

    def __init__(self):
        self.known = []

    def guesses(self, noise, numbers, add, dtype, rounded):
        with np.errstate(all="ignore"):
            scale = float((noise * (numbers - add)).sum() / (noise * noise).sum())
        if not np.isfinite(scale) or scale <= 0:
            return
        exact = dtype == "f32" and not rounded
        for mul, div, added in list(self.known):
            if added == add and abs(mul / div / scale - 1) < (1e-4 if exact else 0.03):
                yield mul, div
        for gain in GAINS:
            if abs(gain / scale - 1) < 0.02:
                yield gain, 1.0
        for gain in GAINS:
            root = (gain / scale) ** 2
            if not 1.5 < root < 2e5 or exact and abs(root - round(root)) > 1e-3 * max(1, root / 1000):
                continue
            around = 0.51 if exact else max(1, root * 0.02)
            whole = range(max(2, int(np.floor(root - around))), int(np.ceil(root + around)) + 1)
            for fan in sorted(whole, key=lambda value: abs(value - root))[:9]:
                yield gain, fan**0.5
                yield gain * fan**-0.5, 1.0
        if exact:
            for off in range(-6, 7):
                value = np.float32(scale)
                for _ in range(abs(off)):
                    value = np.nextafter(value, np.float32(np.inf if off > 0 else 0))
                yield float(value), 1.0

    def fit(self, noise, view, start, whole):
        """The scale that makes the numbers from `start` on, and how many: all of them if `whole`."""
        count = len(noise)
        numbers = view.numbers[start : start + count]
        wanted = bits(torch.tensor(numbers).to(TYPES[view.dtype][0]))
        rounded = rounding(wanted) if view.dtype == "f32" else None
        plain, best, tried = noise.double().numpy(), (None, 0), set()
        for sample in (count,) if whole else (min(count, 256), 16):
            for mul, div in self.guesses(plain[:sample], numbers[:sample], view.add, view.dtype, rounded):
                scale = (mul, div, view.add, rounded)
                if scale in tried:
                    continue
                tried.add(scale)
                if (bits(scaled(noise[:16], view.dtype, *scale)) != wanted[:16]).any():
                    continue
                wrong = np.nonzero(bits(scaled(noise, view.dtype, *scale)) != wanted)[0]
                good = int(wrong[0]) if len(wrong) else count
                best = max(best, (scale, good), key=lambda pair: pair[1])
                if good == count:
                    break
            if best[1] == count:
                break
        if best[0] is None or whole and best[1] < count:
            return None, 0
        if best[0][:3] not in self.known:
            self.known.insert(0, best[0][:3])
        return best


def bits(values):
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int16).numpy()


def rounding(wanted):
    """What float32 numbers were rounded to before."""
    return "bf16" if not (wanted & 0xFFFF).any() else "f16" if not (wanted & 0x1FFF).any() else None


def scaled(noise, dtype, mul, div, add, rounded):
    """`noise * mul / div + add` in float32, as it is stored."""
    values = noise * float(np.float32(mul)) / float(np.float32(div)) + add
    if rounded:
        values = values.to(TYPES[rounded][0]).float()
    return values.to(TYPES[dtype][0])


# ---------------------------------------------------------------- what of a file comes from a seed


def drawn(view, here, there, sequence, scales):
    """The draw that begins at or before the sixteen numbers `here`: its first number, place, count and scale.

    Where the count is no multiple of sixteen, torch draws the last sixteen anew, over the end of those before.
    """
    chain = view.chain(here, there, sequence)
    end, next_place = here + 16 * chain, there + 16 * chain
    draws = []
    for rest in range(15, 0, -1):
        if end + rest < len(view.good) and view.good[end + rest] and view.follows(
                end + rest, next_place + 16 + rest, sequence, 1):
            draws.append((here, there, 16 * (chain + 1) + rest))
    if chain == 1:
        # Too short for sixteen that nothing overwrote.
        draws += [(here - rest, there - rest - 16, 16 + rest) for rest in range(15, 0, -1)]
    draws.append((here, there, 16 * chain))
    for start, place, count in draws:
        if start >= 0 and place >= 0 and start + count <= len(view.numbers):
            scale, _ = scales.fit(sequence.noise(place, count), view, start, whole=True)
            if scale:
                return start, place, count, scale
    # One tensor after another, drawn one after another, and scaled unlike.
    scale, good = scales.fit(sequence.noise(there, 16 * chain), view, here, whole=False)
    return (here, there, good // 16 * 16, scale) if good >= 16 else None


def find(data, seeds, length):
    """The draws from `seeds` that `data` holds: `{first byte: (last byte, dtype, seed, place, count, scale)}`."""
    covered, found, scales = np.zeros(len(data), bool), {}, Scales()
    views = [View(data, dtype, offset, add) for dtype, (_, size, _) in TYPES.items()
             for offset in range(size) for add in ADDS]
    views = [view for view in views if view.good.sum() > 16]

    def free(view):
        return np.nonzero(view.good & ~covered[view.offset + view.size * np.arange(len(view.good))])[0]

    random = np.random.default_rng(1)
    for seed in seeds:
        # Biases too short for sixteens are in every file.
        if (~covered).sum() < max(600, 0.08 * len(data)):
            break
        # A look at some places tells whether anything comes from this seed.
        short, shown = Sequence(seed, min(length, 1 << 18)), set()
        for view in views:
            places = free(view)
            if view.add in (0.0, 1.0) and len(places) and view.dtype not in shown:
                starts = random.integers(0, len(places), 24)
                some = np.unique(np.concatenate([places[start : start + 16] for start in starts]))
                if len(view.places(some, short)[0]):
                    shown.add(view.dtype)
        if not shown:
            continue
        sequence = Sequence(seed, length)
        for view in views:
            if view.dtype not in shown:
                continue
            places, at = free(view), 0
            while at < len(places):
                here, there = view.places(places[at : at + 256], sequence)
                if not len(here):
                    at += 256
                    continue
                first = here.min()
                draw = drawn(view, int(first), int(there[here == first][0]), sequence, scales)
                following = first + 16
                if draw:
                    start, place, count, scale = draw
                    low = view.offset + start * view.size
                    high = low + count * view.size
                    if not covered[low:high].any():
                        covered[low:high] = True
                        found[low] = (high, view.dtype, sequence.seed, place, count, scale)
                        following = start + count
                at = int(np.searchsorted(places, following))
    return found


# ---------------------------------------------------------------- the file


def short(value):
    """The shortest decimal number that is read as this float32."""
    value = np.float32(value)
    decimal = float(str(value))
    return decimal if np.float32(decimal) == value else float(value)


def packed(data, found):
    """`data` with the draws `found` replaced by their places."""
    values, parts, literals, at = [], [], [], 0
    for low, (high, dtype, seed, place, count, (mul, div, add, rounded)) in sorted(found.items()):
        value = {"seed": seed, "dtype": dtype}
        value |= {} if mul == 1 else {"mul": short(mul)}
        value |= {} if div == 1 else {"div": short(div)}
        value |= {} if add == 0 else {"add": short(add)}
        value |= {"round": rounded} if rounded else {}
        if value not in values:
            values.append(value)
        if low > at:
            parts.append(low - at)
            literals.append(data[at:low])
        parts.append([values.index(value), place, count])
        at = high
    if at < len(data):
        parts.append(len(data) - at)
        literals.append(data[at:])
    header = {"format": FORMAT, "length": len(data), "sha256": hashlib.sha256(data).hexdigest(), "values": values,
              "parts": parts}
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + b"".join(literals)


def unpacked(seeded):
    """What `packed` was given."""
    line, rest = seeded.split(b"\n", 1)
    header, out = json.loads(line), []
    for part in header["parts"]:
        if isinstance(part, int):
            out.append(rest[:part])
            rest = rest[part:]
            continue
        which, place, count = part
        value = header["values"][which]
        random = torch.Generator().manual_seed(value["seed"])
        torch.rand(place, generator=random)
        numbers = scaled(torch.randn(count, generator=random), value["dtype"], value.get("mul", 1), value.get("div", 1),
                         value.get("add", 0), value.get("round"))
        out.append(bits(numbers).tobytes())
    data = b"".join(out)
    if header["format"] != FORMAT or hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise RuntimeError("what the file makes is not what it says")
    return data


def seeds_of(name):
    """The seeds that the generators of the case take: one of its name, and those that they count up from there."""
    base = zlib.crc32(name.encode())
    alone = zlib.crc32(name.rpartition("/")[2].encode())
    return [*range(base, base + 14), *range(alone, alone + 3), *range(12)], [*range(base + 14, base + 215)]


def pack(file, name):
    """Replaces a file of the case `name` by `file.seeded` if that is much smaller; what it saves."""
    data = file.read_bytes()
    usual, others = seeds_of(name)
    length = max(400_000, len(data))
    found = find(data, usual, length)
    if sum(high - low for low, (high, *_) in found.items()) < 0.4 * len(data):
        more = find(data, others, length)
        found = max(found, more, key=lambda draws: sum(high - low for low, (high, *_) in draws.items()))
    seeded = packed(data, found)
    if len(seeded) > 0.8 * len(data):
        return 0
    if unpacked(seeded) != data:
        raise RuntimeError(f"{file}: what is written out differs")
    file.with_name(file.name + ENDING).write_bytes(seeded)
    file.unlink()
    return len(data) - len(seeded)


def is_plain(name):
    return any(fnmatch.fnmatch(name, pattern) for pattern in PLAIN)


def pack_case(folder):
    """Packs the weights of a case, unless they serve elsewhere."""
    name = folder.relative_to(CASES).as_posix()
    if is_plain(name):
        return
    for file in sorted((folder / "model").rglob("*")):
        if file.is_file() and file.stat().st_size >= SMALLEST and not file.name.endswith(NO_WEIGHTS):
            print(f"{name:44} {file.name}: {pack(file, name)} bytes less", flush=True)


def main(do, *paths):
    for path in map(Path, paths):
        if do == "pack":
            for case in sorted(path.resolve().rglob("case.json")):
                pack_case(case.parent)
        else:
            path.with_name(path.name.removesuffix(ENDING)).write_bytes(unpacked(path.read_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
