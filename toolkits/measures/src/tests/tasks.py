"""Writes tasks.json: measures of fixed answers by scikit-learn, SciPy, trec_eval and statsmodels.

    python3 -m venv .venv && .venv/bin/pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 pytrec-eval-terrier==0.5.11 \
        statsmodels==0.15.0
    .venv/bin/python tasks.py
"""

import json
from pathlib import Path

import numpy
import pytrec_eval
import scipy.stats
import sklearn.metrics as metrics
from statsmodels.stats.proportion import proportion_confint

HERE = Path(__file__).resolve().parent


def classification(random):
    labels = random.integers(0, 4, 50)
    predicted = numpy.where(random.random(50) < 0.6, labels, random.integers(0, 5, 50))
    scores = random.random((50, 5)).round(2)
    return {
        "labels": labels.tolist(), "predicted": predicted.tolist(), "scores": scores.tolist(),
        "accuracy": metrics.accuracy_score(labels, predicted),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "f1_weighted": metrics.f1_score(labels, predicted, average="weighted"),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "v_measure": metrics.v_measure_score(labels, predicted),
    }


def best(scores, positive, value):
    """The best value over all thresholds between neighbouring scores, by trying each."""
    order = numpy.argsort(-scores, kind="stable")
    found = (0.0, -1.0)
    for taken in range(1, len(order)):
        predicted = numpy.zeros(len(order), bool)
        predicted[order[:taken]] = True
        reached = value(positive, predicted)
        if reached > found[0]:
            found = (float(reached), float((scores[order[taken - 1]] + scores[order[taken]]) / 2))
    return found


def pairs(random):
    positive = random.random(40) < 0.4
    scores = (random.random(40) + 0.5 * positive).round(2)
    return {
        "scores": scores.tolist(), "positive": positive.tolist(),
        "average_precision": metrics.average_precision_score(positive, scores),
        "best_accuracy": best(scores, positive, metrics.accuracy_score),
        "best_f1": best(scores, positive, metrics.f1_score),
    }


def regression(random):
    targets = random.normal(size=30).round(1)
    predicted = (targets + random.normal(size=30)).round(1)
    return {
        "targets": targets.tolist(), "predicted": predicted.tolist(),
        "mse": metrics.mean_squared_error(targets, predicted), "mae": metrics.mean_absolute_error(targets, predicted),
        "rmse": metrics.root_mean_squared_error(targets, predicted), "r2": metrics.r2_score(targets, predicted),
        "pearson": scipy.stats.pearsonr(targets, predicted).statistic,
        "spearman": scipy.stats.spearmanr(targets, predicted).statistic,
        "kendall": scipy.stats.kendalltau(targets, predicted).statistic,
    }


def retrieval(random):
    relevance, scores = {}, {}
    for query in range(6):
        documents = [f"d{number}" for number in range(25)]
        scores[f"q{query}"] = {document: round(float(random.random()), 1) for document in documents}
        chosen = random.choice(25, 5, replace=False)
        relevance[f"q{query}"] = {f"d{number}": int(random.integers(0, 3)) for number in chosen} | {"missing": 1}
    found = {}
    for cutoff in (1, 3, 10, 20):
        names = {f"ndcg_cut_{cutoff}", f"map_cut_{cutoff}", f"recall_{cutoff}", f"P_{cutoff}", f"success_{cutoff}"}
        rows = pytrec_eval.RelevanceEvaluator(relevance, {name.replace("_" + str(cutoff), "." + str(cutoff)) for name in names})
        rows = list(rows.evaluate(scores).values())
        found[str(cutoff)] = {
            name.removesuffix(f"_{cutoff}").removesuffix("_cut"): float(numpy.mean([row[name] for row in rows])) for name in names
        }
    return {"relevance": relevance, "scores": scores, "found": found}


def intervals():
    cases = [(0, 20), (93, 100), (5, 5), (1, 3)]
    return [
        {"successes": successes, "trials": trials, "interval": list(proportion_confint(successes, trials, method="wilson"))}
        for successes, trials in cases
    ]


def main():
    random = numpy.random.default_rng(0)
    values = {
        "classification": [classification(random) for _ in range(3)], "pairs": [pairs(random) for _ in range(3)],
        "regression": [regression(random) for _ in range(3)], "retrieval": retrieval(random), "wilson": intervals(),
        "z": float(scipy.stats.norm.ppf(0.975)),
    }
    (HERE / "tasks.json").write_text(json.dumps(values) + "\n")


main()
