"""A small synthesiser, pieces by rule, and measurements of tempo, key and instrument that know no model.

A piece is one line of one instrument (plucked, blown, bowed or bells), in which low notes and those of a tune take turns. Its
time is a grid of half beats, each a whole number of codec frames of 40 ms, and the sound of a note depends on the instrument,
the pitch and the time since its start alone; tones are tuned to have whole periods in four frames. So it is simple music for
a codec, yet tempo, key and instrument are independent of each other.

    synth.py check        measures pieces that the measuring code was not fitted on
    synth.py write FOLDER some pieces, to listen to
"""

import sys
import wave
from functools import lru_cache
from pathlib import Path

import numpy as np

RATE = 8000
FRAME = 320
FRAMES = 100
SECONDS = FRAMES * FRAME / RATE

HALF_BEATS = (5, 6, 7, 8, 9)
TEMPOS = {frames: 60 * RATE / (2 * frames * FRAME) for frames in HALF_BEATS}
NAMES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
MODES = ("major", "minor")
INSTRUMENTS = ("harp", "flute", "violin", "bells")
FIGURES = ("arpeggio", "scale", "ostinato", "melody")
MOODS = ("calm", "lively")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


# ---------------------------------------------------------------- instruments


def envelope(samples, attack):
    """A rise of `attack` seconds."""
    return np.minimum(1, np.arange(samples) / RATE / attack)


def hertz(midi):
    """The frequency of a note: equal temperament, rounded to a multiple of 6.25 Hz from A3 to A flat 4 and doubled upwards.
    No note is off by more than 22 cents, and a tone is the same every four frames."""
    octave, step = divmod(midi - 57, 12)
    return 6.25 * round(220 * 2 ** (step / 12) / 6.25) * 2 ** octave


def partials(hz, samples, weights, decays):
    """A sum of sines of the frequencies `hz` below 3.8 kHz, each falling to 1/e in `decays` seconds."""
    t = np.arange(samples) / RATE
    return sum(w * np.sin(2 * np.pi * f * t) * np.exp(-t / d) for f, w, d in zip(hz, weights, decays) if f < 3800)


def plucked(midi, samples):
    """A plucked string: the modes of the string of Karplus and Strong 1983, the higher the shorter."""
    k, hz = np.arange(1, 18), hertz(midi)
    weights = np.abs(np.sin(np.pi * k * 0.27)) / k ** 0.7
    return 0.42 * partials(hz * k, samples, weights, 0.6 / (1 + 0.12 * k ** 1.5)) * envelope(samples, 0.002)


def blown(midi, samples):
    """Few harmonics and a soft start."""
    return 0.5 * partials(hertz(midi) * np.arange(1, 4), samples, (1, 0.25, 0.06), (9, 9, 9)) * envelope(samples, 0.03)


def bowed(midi, samples):
    """All harmonics, as of a sawtooth, and a slow start."""
    k = np.arange(1, 18)
    return 0.28 * partials(hertz(midi) * k, samples, 1 / k ** 0.6, 9 + 0 * k) * envelope(samples, 0.04)


def bells(midi, samples):
    """The partials of a bar, the upper ones short."""
    hz = hertz(midi)
    modes = [hz, 25 * round(2.756 * hz / 25), 25 * round(5.404 * hz / 25)]
    return 0.6 * partials(modes, samples, (1, 0.5, 0.3), (0.5, 0.15, 0.06)) * envelope(samples, 0.002)


VOICES = dict(zip(INSTRUMENTS, (plucked, blown, bowed, bells)))


@lru_cache(maxsize=None)
def note(instrument, midi):
    """A second and a half of a note."""
    return VOICES[instrument](midi, int(1.5 * RATE)).astype(np.float32)


# ---------------------------------------------------------------- pieces


def tune(figure, steps, random):
    """The degrees of the scale (0 the tonic, 7 its octave) of `steps` notes."""
    if figure == "arpeggio":
        shape = ((0, 2, 4, 7), (0, 4, 2, 4), (7, 4, 2, 0))[random.integers(3)]
        return [shape[i % 4] for i in range(steps)]
    if figure == "scale":
        up = list(range(8)) + list(range(6, 0, -1))
        return [up[i % 14] for i in range(steps)]
    if figure == "ostinato":
        shape = ((0, 4, 0, 2), (4, 0, 2, 0), (0, 2, 0, 4), (0, 0, 4, 2))[random.integers(4)]
        return [shape[i % 4] for i in range(steps)]
    degrees, at = [], 0
    for i in range(steps):
        if i % 4 == 0:
            at = (0, 4, 2, 0)[random.integers(4)] if i else 0
        else:
            at = int(np.clip(at + random.choice((-2, -1, 1, 2)), 0, 7))
        degrees.append(at)
    return degrees


def spec(random):
    """The properties of a piece."""
    return {
        "instrument": INSTRUMENTS[random.integers(4)], "key": int(random.integers(12)), "mode": MODES[random.integers(2)],
        "half_beat": HALF_BEATS[random.integers(5)], "figure": FIGURES[random.integers(4)], "mood": MOODS[random.integers(2)],
    }


def place(sound, start, samples, piece, gain):
    """Adds a note, with a fade of 8 ms at its end."""
    end = min(start + samples, len(sound))
    if end <= start:
        return
    part = gain * piece[:end - start]
    fade = min(64, len(part))
    part = part.copy()
    part[len(part) - fade:] *= np.linspace(1, 0, fade)
    sound[start:start + len(part)] += part


def render(piece, random, frames=FRAMES):
    """The samples of a piece in -1 to 1."""
    half, samples = piece["half_beat"] * FRAME, frames * FRAME
    sound = np.zeros(samples, np.float32)
    scale = SCALES[piece["mode"]]
    bass = 57 + (piece["key"] - 9) % 12
    # Low and high notes take turns: each half a beat, or each a whole one.
    length = half if piece["mood"] == "lively" else 2 * half
    notes = -(-samples // length)
    line = tune(piece["figure"], notes, random)
    for i in range(notes):
        if i % 2 == 0:
            midi, gain = bass + scale[(0, 2, 0, 4)[i // 2 % 4]], 1.0
        else:
            degree = line[i // 2]
            midi, gain = bass + 12 + 12 * (degree // 7) + scale[degree % 7], 0.7
        place(sound, i * length, length, note(piece["instrument"], midi), gain)
    return np.clip(0.7 * sound, -1, 1)


def key_name(key, mode):
    """"E flat minor"."""
    return f"{NAMES[key]} {mode}"


def tempo_of(piece):
    """Beats per minute."""
    return TEMPOS[piece["half_beat"]]


def caption(piece, random):
    """A description in one of several phrasings."""
    key, tempo = key_name(piece["key"], piece["mode"]), round(tempo_of(piece))
    kind = f"{piece['mood']} {piece['figure']}"
    who = piece["instrument"] if piece["instrument"] == "bells" else f"a {piece['instrument']}"
    forms = (
        f"a {kind} of {who} in {key} at {tempo} beats a minute",
        f"{who} playing a {kind} in {key}, {tempo} beats a minute",
        f"{kind} for {who}, {key}, {tempo} bpm",
        f"{key}, {tempo} bpm: {who}, {kind}",
        f"{who} in {key} at {tempo} bpm",
    )
    return forms[random.integers(len(forms))]


def triple(piece):
    """What is held out together."""
    return piece["instrument"], piece["key"], piece["mode"], piece["half_beat"]


def split():
    """The combinations of instrument, key and tempo of training, validation and test, fixed by a seed."""
    every = [(i, k, m, h) for i in INSTRUMENTS for k in range(12) for m in MODES for h in HALF_BEATS]
    order = np.random.default_rng(7).permutation(len(every))
    every = [every[i] for i in order]
    return {"test": set(every[:100]), "valid": set(every[100:130]), "train": set(every[130:])}


def pieces(part, count, seed, frames=FRAMES):
    """`count` pieces of a part of `split`, as (properties, samples, caption)."""
    allowed, random = split()[part], np.random.default_rng(seed)
    made = 0
    while made < count:
        piece = spec(random)
        if triple(piece) in allowed:
            made += 1
            yield piece, render(piece, random, frames), caption(piece, random)


def write_wav(path, samples, rate=RATE):
    """16-bit mono."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())


def read_wav(path):
    """Samples in -1 to 1 of a 16-bit mono file at RATE."""
    with wave.open(str(path), "rb") as file:
        assert file.getsampwidth() == 2 and file.getframerate() == RATE and file.getnchannels() == 1
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32767


# ---------------------------------------------------------------- measuring


def spectrogram(samples, window, hop):
    """Magnitudes, (frames, window / 2 + 1)."""
    padded = np.pad(samples, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window), axis=1))


def tempo(samples, low=78, high=160):
    """Beats per minute in `low` to `high`, less than an octave: the highest autocorrelation of the onset strength."""
    hop = 80
    power = np.log1p(100 * spectrogram(samples, 512, hop) / 128)
    onsets = np.maximum(0, power[2:] - power[:-2]).sum(1)
    onsets = onsets - np.convolve(onsets, np.ones(60) / 60, "same")
    full = np.correlate(onsets, onsets, "full")[len(onsets) - 1:]
    full = full / np.maximum(1, len(onsets) - np.arange(len(full)))
    full = np.convolve(full, (0.25, 0.5, 0.25), "same")
    lags = np.arange(int(60 * RATE / hop / high), int(60 * RATE / hop / low) + 2)
    score = full[lags] + 0.5 * np.array([full[2 * lag - 1:2 * lag + 2].max() for lag in lags])
    best = int(np.argmax(score))
    lag = float(lags[best])
    if 0 < best < len(lags) - 1:
        left, middle, right = score[best - 1:best + 2]
        bend = left - 2 * middle + right
        lag += 0.5 * (left - right) / bend if bend < 0 else 0
    return 60 * RATE / hop / lag


# Krumhansl and Kessler 1982.
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


def chroma(samples):
    """The strength of the twelve pitch classes, C first."""
    window = 4096
    power = spectrogram(samples, window, 1024).astype(np.float64)
    hz = np.arange(power.shape[1]) * RATE / window
    chosen = (hz > 200) & (hz < 1700)
    pitch = 69 + 12 * np.log2(hz[chosen] / 440)
    near = np.exp(-0.5 * ((pitch - np.round(pitch)) / 0.2) ** 2)
    strength = power[:, chosen] * near
    # Peaks alone, as noise is in all bins.
    level = power[:, chosen]
    peak = (level[:, 1:-1] > level[:, :-2]) & (level[:, 1:-1] >= level[:, 2:])
    strength[:, 1:-1] *= peak
    total = strength.sum(0)
    return np.array([total[np.round(pitch).astype(int) % 12 == k].sum() for k in range(12)])


def key(samples):
    """The pitch class and mode whose profile correlates best with the chroma."""
    found = chroma(samples)
    scores = {
        (k, mode): np.corrcoef(found, np.roll(PROFILES[mode], k))[0, 1] for k in range(12) for mode in MODES
    }
    return max(scores, key=scores.get)


def features(samples):
    """What tells instruments apart: the shares of eight bands in the power of loud frames, and how the loudness moves.
    What is 25 dB below the whole does not count, so that a little noise changes nothing."""
    power = spectrogram(samples, 512, 160) ** 2
    edges = np.searchsorted(np.arange(257) * RATE / 512, (180, 330, 500, 700, 950, 1300, 1800, 2500, 3900))
    bands = np.stack([power[:, a:b].sum(1) for a, b in zip(edges, edges[1:])], 1)
    total = bands.sum(1) + 1e-9
    loud = total > np.quantile(total, 0.3)
    shares = np.log(bands[loud] / total[loud, None] + 0.003)
    smooth = np.convolve(total, np.ones(3) / 3, "same")
    level = np.log(smooth + 0.003 * smooth.mean())
    change = level[2:] - level[:-2]
    return np.concatenate([shares.mean(0), np.quantile(change, (0.2, 0.95)), [level.std()]])


@lru_cache(maxsize=None)
def classes():
    """The mean features of each instrument and their common covariance, of pieces of training."""
    rows, names = [], []
    random = np.random.default_rng(99)
    for piece, sound, _ in pieces("train", 400, 98):
        # With noise of 10 to 40 dB below, half of it as loud as the music is at the time: fidelity shall not matter.
        loudness = np.sqrt(np.convolve(sound ** 2, np.ones(400) / 400, "same"))
        steady = np.full(len(sound), np.sqrt(np.mean(sound ** 2)))
        noise = random.normal(size=len(sound)) * (loudness if random.integers(2) else steady)
        for copy in (sound, sound + noise * 10 ** random.uniform(-2, -0.5)):
            rows.append(features(copy))
            names.append(piece["instrument"])
    rows, names = np.array(rows), np.array(names)
    means = np.array([rows[names == name].mean(0) for name in INSTRUMENTS])
    within = rows - means[[INSTRUMENTS.index(name) for name in names]]
    covariance = within.T @ within / len(rows) + 0.01 * np.eye(within.shape[1])
    spread = np.sqrt(np.diag(covariance))
    covariance = covariance / np.outer(spread, spread)
    weights = np.linalg.inv(0.8 * covariance + 0.2 * np.eye(len(spread)))
    return means / spread, spread, weights


def instrument(samples):
    """The nearest class."""
    means, spread, weights = classes()
    away = features(samples) / spread - means
    return INSTRUMENTS[int(np.argmin(np.einsum("ci,ij,cj->c", away, weights, away)))]


def verdict(samples, piece, tolerance=0.05):
    """Whether tempo, key and instrument are as in `piece`."""
    samples = np.asarray(samples, np.float32)
    right = tempo_of(piece)
    return {
        "tempo": bool(abs(tempo(samples) / right - 1) <= tolerance),
        "key": key(samples) == (piece["key"], piece["mode"]),
        "instrument": instrument(samples) == piece["instrument"],
    }


def shares(verdicts):
    """The share of pieces that are right in each property, and in all."""
    table = {name: float(np.mean([one[name] for one in verdicts])) for name in ("tempo", "key", "instrument")}
    return table | {"all": float(np.mean([all(one.values()) for one in verdicts]))}


def check(count=300):
    """Measures true pieces that nothing was fitted on."""
    wrong = []
    verdicts = []
    for piece, sound, text in pieces("valid", count, 5):
        one = verdict(sound, piece)
        verdicts.append(one)
        if not all(one.values()):
            wrong.append((text, [name for name, good in one.items() if not good], round(tempo(sound), 1), key(sound), instrument(sound)))
    for line in wrong[:20]:
        print(*line)
    print(shares(verdicts))


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        check()
    elif len(sys.argv) == 3 and sys.argv[1] == "write":
        for i, (_, sound, text) in enumerate(pieces("train", 12, 1)):
            write_wav(Path(sys.argv[2]) / f"{i}.wav", sound)
            print(i, text)
    else:
        sys.exit("usage: synth.py check | write FOLDER")
