"""pocket-forecaster: a Chronos-Bolt that learns generated and public series, and forecasts those of gretl.

    assets/pocket/forecaster.py make|measure

Data are made by forecast_data.py. The test compares it with the seasonal naive forecast on series that it never saw.
"""

import json

import numpy

import forecast_data as data
from common import HERE, Measured, Program, debian_package, main, publish, work_folder, write_json

NAME = "pocket-forecaster"
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
HORIZON = 24
SERIES, VALIDATION = 30_000, 500
STEPS, COOLING, AVERAGING, BATCH, RATE = 50_000, 12_000, 4_000, 16, 1e-3
CONFIG = {
    "architectures": ["ChronosBoltModelForForecasting"], "model_type": "t5", "vocab_size": 2,
    "d_model": 96, "d_kv": 24, "d_ff": 256, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 1,
    "dense_act_fn": "relu", "feed_forward_proj": "relu", "is_gated_act": False, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
    "initializer_factor": 0.05, "is_encoder_decoder": True, "tie_word_embeddings": True,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "reg_token_id": 1,
    "chronos_pipeline_class": "ChronosBoltPipeline",
    "chronos_config": {
        "context_length": 96, "input_patch_size": 12, "input_patch_stride": 12, "prediction_length": HORIZON,
        "quantiles": LEVELS, "use_reg_token": True,
    },
}


# ---------------------------------------------------------------- making


def table_of(path, series):
    """Writes series in long format, numbered. Short ones end in gaps, so that they have contexts of some length."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("unique_id,ds,y\n")
        for at, values in enumerate(series):
            gaps = [numpy.nan] * (HORIZON - 6 if len(values) < 60 else 0)
            for step, value in enumerate([*values, *gaps]):
                file.write(f"{at},{step},{'' if numpy.isnan(value) else f'{value:.6g}'}\n")


def training_data(folder):
    """Writes the training and validation series, and returns how many public ones there are and were left out."""
    test = data.test_series(debian_package("gretl-data"))
    seen = data.windows_of([values for *_, values in test])
    found = data.public_series(folder.parent / "packages")
    public = [values for _, _, values in found if not data.same_values(values, seen)]
    draw = numpy.random.default_rng(20_240_311)
    order = draw.permutation(len(public))
    held, kept = [public[at] for at in order[:100]], [public[at] for at in order[100:]]
    folder = folder / "series"
    folder.mkdir(exist_ok=True)
    learned = [data.scaled(values) for values in kept]
    learned += [data.scaled(data.generated(draw, kept)) for _ in range(SERIES - len(kept))]
    checked = [data.scaled(values) for values in held]
    checked += [data.scaled(data.generated(draw, held)) for _ in range(VALIDATION - len(held))]
    table_of(folder / "train.csv", learned)
    table_of(folder / "valid.csv", checked)
    return {"public": len(public), "left_out_as_alike": len(found) - len(public), "test": len(test)}


def make():
    """Makes the series, trains and publishes."""
    folder = work_folder("forecaster")
    counts = folder / "counts.json"
    if not counts.is_file():
        write_json(counts, training_data(folder))
    (folder / "config").mkdir(exist_ok=True)
    write_json(folder / "config/config.json", CONFIG)
    program = Program(folder)
    common = ["--data", "series", "--valid-every", 1000, "--threads", 1]
    small = [*common, "--batch", BATCH, "--lr", RATE]
    program.tune("run", "--from-config", "config/config.json", *small, "--warmup", 500, "--steps", STEPS)
    # The rate falls to 0 in runs of their own, so that the first one may be as long as there is time for; the last one
    # averages over larger batches.
    cooled = program.tune(
        "cooled", "run/last", "--full", *small, "--schedule", "linear", "--steps", COOLING, "--seed", 1,
    )
    trained = program.tune(
        "averaged", cooled.relative_to(folder), "--full", *common, "--batch", 4 * BATCH, "--lr", 0.7 * RATE, "--schedule",
        "linear", "--steps", AVERAGING, "--seed", 2,
    )
    publish("science", NAME, trained)


# ---------------------------------------------------------------- measuring


def seasonal_naive(past, season, horizon):
    """The quantiles of the seasonal naive forecast, `(levels, steps)`: the last season again, normal about it with the
    deviation of the steps of a season in the past, times the square root of the seasons ahead (Hyndman and
    Athanasopoulos, Forecasting, 5.5; as `SeasonalNaive` of statsforecast, which the paper of Chronos compares with)."""
    ahead = numpy.arange(horizon)
    point = past[len(past) - season + ahead % season]
    steps = past[season:] - past[:-season]
    spread = numpy.sqrt(numpy.mean(steps ** 2) * (ahead // season + 1))
    return point + numpy.array([NORMAL[level] for level in LEVELS])[:, None] * spread


# Quantiles of the standard normal distribution.
NORMAL = {
    0.1: -1.2815515655, 0.2: -0.8416212336, 0.3: -0.5244005127, 0.4: -0.2533471031, 0.5: 0.0,
    0.6: 0.2533471031, 0.7: 0.5244005127, 0.8: 0.8416212336, 0.9: 1.2815515655,
}


def forecasts_of(program, model, series):
    """The quantiles of the model for each of `series`, (name, group, season, values), less its last values."""
    out = []
    for group in data.HORIZON:
        chosen = [at for at, one in enumerate(series) if one[1] == group]
        if not chosen:
            continue
        horizon, path = data.HORIZON[group], program.folder / f"{group}.csv"
        with open(path, "w", encoding="utf-8") as file:
            file.write("unique_id,ds,y\n")
            for at in chosen:
                values = series[at][3][:-horizon]
                file.writelines(f"{at:06},{step},{value!r}\n" for step, value in enumerate(values.tolist()))
        levels = ",".join(map(str, LEVELS))
        text = program.run(
            "--json", "forecast", model, "--threads", 1, "--series", path, "--horizon", horizon, "--quantiles", levels,
        )
        rows = {}
        for row in map(json.loads, text.splitlines()):
            # The last columns are the quantiles.
            rows.setdefault(int(row["unique_id"]), []).append(list(row.values())[-len(LEVELS):])
        out += [(series[at], numpy.array(rows[at], float).T) for at in chosen]
    return out


def scores_of(one, quantiles):
    """Of a series and its quantiles, `(levels, steps)`: the MASE, the quantile loss and the sum of the values with the
    series divided by the mean size of its past, and the share of values between the outermost quantiles."""
    _, group, season, values = one
    past, future = values[:-data.HORIZON[group]], values[-data.HORIZON[group]:]
    scale = numpy.abs(past[season:] - past[:-season]).mean()
    size = numpy.abs(past).mean()
    errors, levels = future - quantiles, numpy.array(LEVELS)[:, None]
    loss = 2 * numpy.maximum(levels * errors, (levels - 1) * errors).sum(1).mean()
    inside = (quantiles[0] <= future) & (future <= quantiles[-1])
    median = numpy.abs(errors[LEVELS.index(0.5)]).mean()
    return numpy.array([median / scale, loss / size, numpy.abs(future).sum() / size, inside.mean()])


def compared(found):
    """The scores of the model and of the seasonal naive forecast, by group: (series, 2, 4)."""
    groups = {}
    for one, quantiles in found:
        _, group, season, values = one
        past = values[:-data.HORIZON[group]]
        naive = seasonal_naive(past, season, data.HORIZON[group])
        groups.setdefault(group, []).append([scores_of(one, quantiles), scores_of(one, naive)])
    return {group: numpy.array(rows) for group, rows in groups.items()}


def mase(rows):
    """The mean MASE of model and naive forecast."""
    return rows[:, :, 0].mean(0)


def wql(rows):
    """The weighted quantile loss of model and naive forecast: the sum of the losses over that of the values."""
    return rows[:, :, 1].sum(0) / rows[:, :, 2].sum(0)


def covered(groups):
    """The share of all values between the quantiles 0.1 and 0.9, of model and naive forecast."""
    steps = {group: data.HORIZON[group] for group in groups}
    inside = sum(rows[:, :, 3].sum(0) * steps[group] for group, rows in groups.items())
    return inside / sum(len(rows) * steps[group] for group, rows in groups.items())


def report(measured, name, groups, goals):
    """Adds the figures of a test."""
    ratio = lambda of, rows: of(rows)[0] / of(rows)[1]
    together = numpy.concatenate(list(groups.values()))
    measured.add(f"{name}: series", len(together), digits=6)
    for what, of, goal in [("MASE", mase, goals.get("mase")), ("WQL", wql, goals.get("wql"))]:
        each = [ratio(of, rows) for rows in groups.values()]
        mean = numpy.exp(numpy.mean(numpy.log(each)))
        measured.add(f"{name}: {what} over the seasonal naive's, geometric mean of the frequencies", mean, goal)
        measured.add(f"{name}: {what} over the seasonal naive's, all series together", ratio(of, together))
        for group, rows in groups.items():
            model, naive = of(rows)
            measured.add(f"{name}: {what}, {group} ({len(rows)} series)", model)
            measured.add(f"{name}: {what} of the seasonal naive, {group}", naive)
    measured.add(f"{name}: values in the 80 % intervals", covered(groups)[0], goals.get("covered"))
    measured.add(f"{name}: values in the 80 % intervals of the seasonal naive", covered(groups)[1])


def measure():
    """Measures the published model on the series of gretl."""
    folder = work_folder("forecaster")
    program, model = Program(folder), HERE / "science" / NAME
    measured = Measured(model)
    package = debian_package("gretl-data")
    test = data.test_series(package)
    goals = {"mase": "<= 0.9", "wql": "<= 0.85", "covered": "0.75 to 0.85"}
    report(measured, "gretl", compared(forecasts_of(program, model, test)), goals)
    public = data.public_series(folder.parent / "packages")
    federal = data.federal_series(package, data.windows_of([values for *_, values in public]))
    report(measured, "St. Louis", compared(forecasts_of(program, model, federal)), {})
    measured.write()


if __name__ == "__main__":
    main(make, measure)
