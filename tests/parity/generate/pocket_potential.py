"""The parity case of the pocket model pocket-potential, from orb-models.

    pip install -r requirements-orb.txt        (Python 3.12)
    python pocket_potential.py

The regressor that the builder of `orb_models.forcefield.pretrained` makes for the shipped `config.json` is filled with the
shipped weights, which are bfloat16, as float32.
"""

import json
import shutil

import numpy as np
from safetensors.torch import load_file, save_file

from common import CASES
from orb import ATOL, REFERENCE, RTOL, answer, atoms_of, build, frozen, inputs_of, rattled, salt

SHIPPED = CASES.parent.parent / "assets/pocket/science/pocket-potential"
CASE = CASES / "pocket/potential"


def rock_salt():
    """A rattled cell of rock salt at the density of NaCl."""
    symbols, positions, cell = salt(31)
    scale = np.array([5.6, 5.7, 5.5])
    return rattled(symbols, np.linalg.solve(cell.T, positions.T).T, np.diag(scale), 32, 0.1)


STRUCTURES = [
    rock_salt(),
    rattled("SiSi", [[0, 0, 0], [0.25, 0.25, 0.25]], [[0, 2.7, 2.75], [2.72, 0.1, 2.7], [2.8, 2.71, 0]], 33, 0.1),
    rattled("NiAl", [[0, 0, 0], [0.5, 0.5, 0.5]], [[2.9, 0.05, 0], [0.1, 2.85, 0], [0, 0.02, 2.95]], 34, 0.1),
    rattled("CuCuCu", [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]], np.diag([3.6, 3.7, 3.65]), 35, 0.1),
]


def shipped(config):
    """The reference with the shipped weights."""
    model = build(config)
    weights = {name: tensor.float() for name, tensor in load_file(SHIPPED / "model.safetensors").items()}
    # What the shipped file does not have: constants, and the decoder of the denoising that training begins with.
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in weights}
    assert all(name.endswith(("r_max", "num_batches_tracked")) or "._decoder." in name for name in own), own.keys()
    model.load_state_dict({name: tensor.reshape(model.state_dict()[name].shape) for name, tensor in (weights | own).items()}, strict=True)
    return frozen(model)


if __name__ == "__main__":
    config = json.loads((SHIPPED / "config.json").read_text())
    structures = [atoms_of(*structure) for structure in STRUCTURES]
    expected = answer(shipped(config), structures, config)
    shutil.rmtree(CASE, ignore_errors=True)
    CASE.mkdir(parents=True)
    save_file(inputs_of(structures), CASE / "inputs.safetensors")
    save_file(expected, CASE / "expected.safetensors")
    spec = {
        "system": "Orbital",
        "reference": f"{REFERENCE} DirectForcefieldRegressor ({config['architecture']})",
        "call": "forward",
        "options": {"model_ref": "pocket-potential", "edge_order": "sorted by (sender, receiver, shift0, shift1, shift2)"},
        "atol": ATOL,
        "rtol": RTOL,
        "note": "trained weights of the pocket model; crystals, moved and strained",
    }
    (CASE / "case.json").write_text(json.dumps(spec, indent=1) + "\n")
    print(f"{len(expected['senders'])} edges, energy {expected['energy'].tolist()}")
