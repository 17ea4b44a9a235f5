"""Writes signals.json: errors of forecasts by fev, of forces by PyTorch, distances of sounds and pictures by torchmetrics and
scikit-image, on fixed values.

    python3 -m venv .venv && .venv/bin/pip install numpy==2.4.6 torch==2.9.1 fev==0.10.0 torchmetrics==1.9.0 scikit-image==0.26.0
    .venv/bin/python signals.py
"""

import json
from pathlib import Path

import numpy
import pandas
import torch
from fev.analysis import leaderboard
from fev.metrics import get_metric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

HERE = Path(__file__).resolve().parent
LEVELS = [0.1, 0.5, 0.9]


def forecasts(random):
    season, horizon = 4, 5
    lengths = [20, 11, 4, 16]
    past = [random.normal(3, 1, length).round(2) for length in lengths]
    past[3][:] = 2.0  # No seasonal difference.
    observed = random.normal(3, 1, (len(lengths), horizon)).round(2)
    observed[1, 2] = numpy.nan
    forecast = (numpy.nan_to_num(observed, nan=3) + random.normal(0, 0.5, observed.shape)).round(2)
    quantiles = numpy.stack([forecast - 0.8, forecast, forecast + 0.7], -1).round(2)
    found = {}
    for name in ("MAE", "WAPE", "MASE", "RMSE", "RMSSE", "SMAPE", "MQL", "WQL", "SQL"):
        found[name.lower()] = get_metric(name).compute(
            y_true=observed[..., None], y_pred=forecast[..., None], y_past=numpy.concatenate(past)[:, None],
            y_past_lengths=numpy.array(lengths), q_pred=quantiles[:, :, None, :], seasonality=season, quantile_levels=LEVELS,
        )
    return {
        "season": season, "levels": LEVELS, "past": [series.tolist() for series in past],
        "observed": [[None if numpy.isnan(value) else value for value in row] for row in observed.tolist()],
        "forecast": forecast.tolist(), "quantiles": quantiles.transpose(0, 2, 1).tolist(), "errors": found,
    }


def standings(random):
    errors = random.uniform(0.5, 2, (3, 12)).round(2)
    errors[2, 4], errors[0, 5] = 300.0, errors[1, 5]
    rows = [
        {"model_name": f"m{model}", "dataset_path": f"t{task}", "test_error": float(errors[model, task]), "quantile_levels": [], "fev_version": "0.10.0"}
        for model in range(3) for task in range(12)
    ]
    table = leaderboard(pandas.DataFrame(rows), baseline_model="m0", n_resamples=None)
    rows = table.loc[[f"m{model}" for model in range(3)]]
    names = {name.lower(): name for name in rows.columns}
    return {
        "errors": errors.tolist(), "skill": rows[names["skill_score"]].tolist(), "win_rate": rows[names["win_rate"]].tolist(),
    }


def forces(random):
    counts = [3, 5]
    expected = [random.normal(size=(count, 3)).round(3) for count in counts]
    predicted = [(force + random.normal(0, 0.2, force.shape)).round(3) for force in expected]
    energies = [[-3.0, -9.5], [-3.2, -9.1]]
    flat = [torch.tensor(numpy.concatenate(rows)) for rows in (predicted, expected)]
    return {
        "predicted": [force.tolist() for force in predicted], "expected": [force.tolist() for force in expected],
        "energies": energies,
        "energy_per_atom": float(numpy.mean([abs(a - b) / count for a, b, count in zip(*energies, counts)])),
        "forces": float((flat[0] - flat[1]).abs().mean()),
        "force_cosine": float(torch.cosine_similarity(flat[0], flat[1], dim=-1).mean()),
    }


def sounds(random):
    reference = random.normal(size=64).round(3)
    estimate = (0.8 * reference + random.normal(0, 0.3, 64)).round(3)
    value = scale_invariant_signal_distortion_ratio(torch.tensor(estimate), torch.tensor(reference))
    return {"reference": reference.tolist(), "estimate": estimate.tolist(), "si_sdr": float(value)}


def pictures(random):
    first = random.integers(0, 256, (9, 11, 3), dtype=numpy.uint8)
    second = numpy.clip(first.astype(int) + random.integers(-30, 31, first.shape), 0, 255).astype(numpy.uint8)
    return {
        "width": 11, "height": 9, "first": first.ravel().tolist(), "second": second.ravel().tolist(),
        "psnr": float(peak_signal_noise_ratio(first, second)),
        "ssim": float(structural_similarity(first, second, channel_axis=-1)),
    }


def main():
    random = numpy.random.default_rng(0)
    values = {
        "forecasts": forecasts(random), "standings": standings(random), "forces": forces(random), "sounds": sounds(random),
        "pictures": pictures(random),
    }
    (HERE / "signals.json").write_text(json.dumps(values) + "\n")


main()
