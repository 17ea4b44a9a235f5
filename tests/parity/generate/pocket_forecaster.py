"""The parity case of pocket-forecaster: what Chronos' own pipeline forecasts with the published checkpoint."""

import sys
from pathlib import Path


from chronos_cases import load, series, with_gaps
from common import Case, run_all, seed_of

NAME = "pocket-forecaster"
FOLDER = Path(__file__).resolve().parents[3] / "assets/pocket/science" / NAME
# Past the 24 steps of one forecast, so that the quantiles go on as paths.
OPTIONS = {"prediction_length": 30, "quantile_levels": [0.1, 0.25, 0.5, 0.9]}


def run(pipeline, context):
    """Predictions, quantiles and means."""
    quantiles, mean = pipeline.predict_quantiles(context, **OPTIONS)
    predictions = pipeline.predict(context, prediction_length=OPTIONS["prediction_length"])
    return {"predictions": predictions, "quantiles": quantiles, "mean": mean}


def forecasts(name):
    """Waves with trends, shorter than the context, one with a gap, one short, one constant."""
    context = with_gaps(series(seed_of(name), 4, 130), 12)
    case = Case(name, "TimeGPT")
    case.write("ChronosBoltPipeline.predict / predict_quantiles", "generate", {"context": context},
               run(load(FOLDER), context), {"model_ref": NAME, **OPTIONS}, note="the published pocket-forecaster")
    case.check_repeats(lambda _: load(FOLDER), lambda pipeline: run(pipeline, context))


if __name__ == "__main__":
    run_all({"pocket/forecaster": forecasts}, sys.argv[1:])
