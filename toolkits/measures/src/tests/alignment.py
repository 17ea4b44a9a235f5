"""Writes alignment.json: measures of fixed vectors by the references.

    python3 -m venv .venv && .venv/bin/pip install torch==2.9.1 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 torchaudio==2.9.1 \
        torchvision==0.24.1 rsatoolbox==0.3.2
    git clone https://github.com/minyoungg/platonic-rep
    git clone https://github.com/mklabunde/resi
    git clone https://github.com/moskomule/anatome
    .venv/bin/python alignment.py platonic-rep resi anatome
"""

import json
import math
import sys
from pathlib import Path

import numpy
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = sys.argv[1:4]

from metrics import AlignmentMetrics, remove_outliers  # noqa: E402
from anatome.distance import orthogonal_procrustes_distance, svcca_distance  # noqa: E402
from repsim.measures.cka import centered_kernel_alignment  # noqa: E402
from repsim.measures.procrustes import orthogonal_procrustes_centered_and_normalized  # noqa: E402
from rsatoolbox.data import Dataset  # noqa: E402
from rsatoolbox.rdm import calc_rdm, compare_spearman  # noqa: E402


def normalized(x):
    return torch.nn.functional.normalize(x, dim=-1)


def measures(x, y):
    """All measures of two spaces, float64 tensors."""
    rdm = [calc_rdm(Dataset(space.numpy()), method="correlation") for space in (x, y)]
    found = {
        "cka": centered_kernel_alignment(x, y, "nd"),
        "cka_unbiased": AlignmentMetrics.unbiased_cka(x - x.mean(0), y - y.mean(0)),
        "rsa": float(compare_spearman(rdm[0], rdm[1])[0, 0]),
        "procrustes": 1 - float(orthogonal_procrustes_centered_and_normalized(x, y, "nd")) ** 2 / 2,
        "procrustes_of_anatome": float(orthogonal_procrustes_distance(x, y)),
        "uniformity": float(torch.pdist(normalized(x), p=2).pow(2).mul(-2).exp().mean().log()),
    }
    for k in (2, 5, 10):
        found[f"mutual_knn_{k}"] = AlignmentMetrics.mutual_knn(normalized(x), normalized(y), topk=k)
        found[f"cknna_{k}"] = AlignmentMetrics.cknna(normalized(x), normalized(y), topk=k)
    singular = torch.linalg.svdvals(x)
    share = singular / singular.sum() + 1e-7
    found["effective_rank"] = float(torch.exp(-(share * share.log()).sum()))
    if x.shape[0] >= max(x.shape[1], y.shape[1]):
        for accepted in (0.8, 0.99):
            found[f"svcca_{accepted}"] = 1 - float(svcca_distance(x, y, accepted, "svd"))
    found["clamped_sum"] = float(remove_outliers(x, 0.95, exact=True).abs().sum())
    return found


def main():
    cases = []
    for seed, items, wide_x, wide_y in [(1, 40, 6, 5), (2, 30, 8, 8), (3, 24, 40, 33), (4, 64, 3, 12)]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(items, wide_x, generator=generator, dtype=torch.float64)
        mix = torch.randn(wide_x, wide_y, generator=generator, dtype=torch.float64)
        y = x @ mix / math.sqrt(wide_x) + torch.randn(items, wide_y, generator=generator, dtype=torch.float64)
        # A mean, and dimensions of different sizes.
        x = x * torch.linspace(0.5, 2, wide_x, dtype=torch.float64) + 0.3
        # Few digits, which JSON holds exactly.
        x, y = (x * 1024).round() / 1024, (y * 1024).round() / 1024
        cases.append({"x": x.tolist(), "y": y.tolist(), "measures": measures(x, y)})
    (HERE / "alignment.json").write_text(json.dumps(cases) + "\n")


main()
