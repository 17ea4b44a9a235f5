"""Parity cases for Orb, from orb-models.

    pip install -r requirements-orb.txt        (Python 3.12)
    python orb.py [CASE...]

The builders of `orb_models.forcefield.pretrained` make the third version in a small size; the second, which they make in
one size only, is put together here from the same parts. A checkpoint is what the releases are: a bare state dict, and
`config.json` beside it says how it was built.
"""

import json
import shutil
import sys
import warnings
import zlib
from functools import partial
from pathlib import Path

import ase
import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")

from orb_models.common.atoms.batch.graph_batch import AtomGraphs  # noqa: E402
from orb_models.common.atoms.featurization import gaussian_basis_function  # noqa: E402
from orb_models.common.models.gns import MoleculeGNS  # noqa: E402
from orb_models.common.models.graph_regressor import GraphHead  # noqa: E402
from orb_models.forcefield import pretrained  # noqa: E402
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter  # noqa: E402
from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor  # noqa: E402
from orb_models.forcefield.models.forcefield_heads import EnergyHead, ForceHead  # noqa: E402

import common  # noqa: E402
import seeded  # noqa: E402
from common import Retry, first_good  # noqa: E402
from orb_models.common.models.nn_util import ScalarNormalizer  # noqa: E402
from training import write_adapters, write_train_step  # noqa: E402

CASES = Path(__file__).resolve().parent.parent / "orb"
REFERENCE = "orb-models 0.7.0"
ATOL, RTOL = 1e-4, 2e-4
common.REFERENCE = REFERENCE
# A change below this many tolerances could pass unseen.
VISIBLE = 3

torch.set_num_threads(1)
torch.set_float32_matmul_precision("highest")

# Tensors that are stored and change no answer: the decoder that training began with, what counts batches, what
# normalises a loss, the classes' edges (only their odds are compared), the radius that is inside the waves already, and what
# all atoms get alike where only differences count.
WITHOUT_EFFECT = (
    "_decoder", "num_batches_tracked", "grad_forces_normalizer", "grad_stress_normalizer", "bin_edges", "r_max",
    "heads.forces.normalizer.bn.running_mean", "heads.latent_charges.mlp.NN-1.bias",
)


def seed_of(name):
    """A seed that depends on the case's name alone, so that adding a case changes no other."""
    return zlib.crc32(name.encode())


# ---------------------------------------------------------------- models


def v2(latent_dim, base_mlp_hidden_dim, base_mlp_depth, head_mlp_hidden_dim, head_mlp_depth, num_message_passing_steps, activation):
    """`pretrained.orb_v2_architecture` in any size."""
    head = dict(latent_dim=latent_dim, num_mlp_layers=head_mlp_depth, mlp_hidden_dim=head_mlp_hidden_dim, activation=activation)
    return DirectForcefieldRegressor(
        heads={
            "energy": EnergyHead(predict_atom_avg=True, **head),
            "forces": ForceHead(remove_mean=True, remove_torque_for_nonpbc_systems=True, **head),
            "stress": GraphHead(target="stress", node_aggregation="mean", **head),
        },
        model=MoleculeGNS(
            num_node_in_features=latent_dim,
            num_node_out_features=3,
            num_edge_in_features=23,
            latent_dim=latent_dim,
            interaction_params={"distance_cutoff": True, "attention_gate": "sigmoid"},
            num_message_passing_steps=num_message_passing_steps,
            num_mlp_layers=base_mlp_depth,
            mlp_hidden_dim=base_mlp_hidden_dim,
            rbf_transform=partial(gaussian_basis_function, num_bases=20, radius=10.0),
            use_embedding=True,
            node_feature_names=["feat"],
            edge_feature_names=["feat"],
            activation=activation,
            mlp_norm="layer_norm",
        ),
        pair_repulsion=False,
    )


SIZES = ("latent_dim", "base_mlp_hidden_dim", "base_mlp_depth", "head_mlp_hidden_dim", "head_mlp_depth", "num_message_passing_steps", "activation")


def build(config):
    sizes = {key: config[key] for key in SIZES}
    if config["architecture"] == "orb_v2":
        return v2(**sizes)
    flags = {key: config[key] for key in ("has_charge_spin_cond", "has_stress") if key in config}
    if config["architecture"] == "orb_v3_direct":
        model = pretrained.orb_v3_direct_architecture(**sizes, **flags, device="cpu")
    else:
        electrostatics = config.get("has_electrostatics", False)
        model = pretrained.orb_v3_conservative_architecture(**sizes, **flags, has_electrostatics=electrostatics, device="cpu")
    model.pair_repulsion_fn.node_aggregation = config.get("zbl_node_aggregation", "sum")
    return model


def frozen(model):
    """As `load_model` leaves a model for inference."""
    model.prepare_for_inference() if hasattr(model, "prepare_for_inference") else None
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()


def randomise(model, seed):
    """Every weight, every normaliser, every energy of reference."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.startswith("model.rbf_transform") or "bin_edges" in name:
                continue
            noise = torch.randn(tensor.shape, generator=random)
            if name.startswith("heads.energy") and name.endswith("running_var"):
                tensor.copy_(4 + 5 * noise.abs())
            elif name.endswith("running_var"):
                tensor.copy_(0.4 + 0.5 * noise.abs())
            elif name.endswith("running_mean"):
                tensor.copy_(0.3 * noise)
            elif "coulomb_constant" in name:
                tensor.copy_(14.3996 * (1 + 0.1 * noise))
            elif "reference" in name:
                tensor.copy_(3 * noise)
            elif name.endswith(".W"):
                tensor.copy_(0.2 * noise)
            elif "layer_norm.weight" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif "atom_emb" in name:
                tensor.copy_(noise)
            elif tensor.dim() == 2:
                gain = 0.5 if "latent_charges" in name else 1.3
                tensor.copy_(gain * noise / tensor.shape[1] ** 0.5)
            else:
                tensor.copy_(0.3 * noise)
    return model


# ---------------------------------------------------------------- structures


def atoms_of(symbols, positions, cell=None, charge=None, spin=None):
    made = ase.Atoms(symbols, positions=positions, cell=cell if cell is not None else np.zeros((3, 3)), pbc=cell is not None)
    # The tensors of a case are float32; the reference starts from the same numbers.
    made.positions = made.positions.astype(np.float32).astype(np.float64)
    made.set_cell(made.cell.array.astype(np.float32).astype(np.float64))
    if charge is not None:
        made.info.update(charge=float(charge), spin=float(spin))
    return made


ETHANOL = ("CCOHHHHHH", [[-0.75, 0.02, 0.1], [0.74, -0.1, -0.05], [1.2, 1.23, 0.2], [-1.12, -0.4, 1.02], [-1.2, -0.55, -0.71],
                         [-1.1, 1.06, 0.05], [1.1, -0.6, -0.98], [1.15, -0.65, 0.82], [2.17, 1.15, 0.1]])
WATER = ("OHH", [[0.0, 0.03, 0.12], [0.76, -0.02, -0.47], [-0.78, 0.05, -0.44]])
ROW = ("CO", [[0.1, 0.2, 0.3], [0.5, 0.9, 1.1]])
CLOSE = ("FeOH", [[0.0, 0.0, 0.0], [0.9, 0.3, 0.2], [0.2, -0.8, 0.4]])


def rattled(symbols, fractions, cell, seed, by=0.05):
    """A crystal whose atoms have left their sites."""
    cell = np.array(cell)
    noise = np.random.default_rng(seed).uniform(-by, by, (len(fractions), 3))
    return symbols, np.array(fractions) @ cell + noise, cell


def salt(seed=1):
    return rattled("NaClNaCl", [[0, 0, 0], [0.5, 0.5, 0.0], [0.5, 0, 0.5], [0, 0.5, 0.5]], [[4.1, 0.1, 0.0], [0.4, 3.8, 0.2], [0.0, 0.1, 5.3]], seed)


def rutile(seed=2):
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.305, 0.305, 0], [0.695, 0.695, 0], [0.195, 0.805, 0.5], [0.805, 0.195, 0.5]]
    return rattled("TiTiOOOO", places, np.diag([4.6, 4.65, 2.96]), seed)


def skewed(seed=3):
    """Two atoms in a cell so small and so skewed that images four cells away are near."""
    return rattled("FeC", [[0.1, 0.2, 0.3], [0.55, 0.6, 0.9]], [[2.6, 0.0, 0.0], [2.1, 2.3, 0.0], [-1.9, 1.4, 2.9]], seed, 0.02)


def scattered(count, side, seed, symbols=("Si", "O", "Al")):
    """Atoms at random, none near another, so that no two distances are equal."""
    random = np.random.default_rng(seed)
    places = []
    while len(places) < count:
        place = random.uniform(0, side, 3)
        apart = [np.linalg.norm((place - other + side / 2) % side - side / 2) for other in places]
        if all(distance > 1.3 for distance in apart):
            places.append(place)
    return [symbols[i % len(symbols)] for i in range(count)], np.array(places), np.diag([side, side * 1.02, side * 0.97])


def moved(structure, by):
    """The same crystal with atoms carried into other cells."""
    symbols, positions, cell = structure
    return symbols, positions + np.array(by) @ np.array(cell), cell


def left_handed(structure):
    symbols, positions, cell = structure
    return symbols, positions, np.array(cell)[[1, 0, 2]]


# ---------------------------------------------------------------- the reference's answer


def graph_of(structures, config):
    adapter = ForcefieldAtomsAdapter(radius=config["radius"], max_num_neighbors=config["max_num_neighbors"])
    graphs = [adapter.from_ase_atoms(atoms, device="cpu") for atoms in structures]
    return graphs[0] if len(graphs) == 1 else AtomGraphs.batch(graphs)


def answer(model, structures, config):
    """The graph, its edges sorted, and what the model says."""
    graph = graph_of(structures, config)
    shifts = graph.edge_features["unit_shifts"].round().long()
    keys = torch.cat([graph.senders[:, None], graph.receivers[:, None], shifts], 1)
    order = torch.tensor(np.lexsort(keys.numpy().T[::-1]))
    out = {
        "senders": graph.senders[order],
        "receivers": graph.receivers[order],
        "unit_shifts": shifts[order],
        "vectors": graph.edge_features["vectors"][order],
        "wrapped_positions": graph.node_features["positions"],
    }
    out = {name: tensor.detach().clone() for name, tensor in out.items()}
    out.update(model.predict(graph))
    return {name: tensor.detach().to(torch.int64 if not tensor.is_floating_point() else torch.float32).contiguous().clone() for name, tensor in out.items()}


def inputs_of(structures):
    inputs = {
        "atomic_numbers": torch.tensor(np.concatenate([atoms.numbers for atoms in structures])),
        "positions": torch.tensor(np.concatenate([atoms.positions for atoms in structures]), dtype=torch.float32),
        "cell": torch.tensor(np.stack([atoms.cell.array for atoms in structures]), dtype=torch.float32),
        "pbc": torch.tensor(np.stack([atoms.pbc for atoms in structures])).long(),
    }
    if len(structures) > 1:
        inputs["n_node"] = torch.tensor([len(atoms) for atoms in structures])
    else:
        inputs["cell"], inputs["pbc"] = inputs["cell"][0], inputs["pbc"][0]
    if "charge" in structures[0].info:
        for name in ("charge", "spin"):
            inputs[name] = torch.tensor([atoms.info[name] for atoms in structures])
    return {name: tensor.contiguous() for name, tensor in inputs.items()}


def differ(a, b):
    """Whether any number of `a` is visibly another than in `b`."""
    return any(((a[name] - b[name]).abs() > VISIBLE * (ATOL + RTOL * b[name].abs())).any() for name in b if b[name].is_floating_point())


def check_weights(model, structures, config, expected):
    """Every stored tensor that should move the answer does."""
    for name, tensor in model.state_dict().items():
        last_bias = f"heads.forces.mlp.NN-{config['head_mlp_depth']}.bias"
        of_edges = any(part in name for part in ("_edge", "_attn", "rbf_transform"))
        if any(part in name for part in (*WITHOUT_EFFECT, last_bias)) or not tensor.is_floating_point():
            continue
        if of_edges and len(expected["senders"]) == 0:
            continue
        kept = tensor.clone()
        tensor.mul_(1.3).add_(0.5)
        moved = answer(model, structures, config)
        tensor.copy_(kept)
        if not differ(moved, expected):
            raise RuntimeError(f"{name} moves nothing")


# ---------------------------------------------------------------- cases


def legacy(state):
    """The names of the second version's own time."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in [("heads.forces.", "node_head."), ("heads.energy.", "graph_head."), ("heads.stress.", "stress_head.")]:
            if name.startswith(new):
                name = old + name[len(new):]
        renamed[name.replace("_normalizer", "_normaliser") if "diag_" in name else name] = tensor
    return renamed


def nested(state):
    """The trunk inside a model that took noise away."""
    made = {("model." + name if name.startswith("model.") else name): tensor for name, tensor in state.items()}
    made["model.noise_scale"] = torch.tensor([0.5])
    return made


def with_more_heads(state):
    """What another kind of Orb had beside this one's heads."""
    made = dict(state)
    made["heads.dipole.mlp.NN-0.weight"] = torch.ones(3, 4)
    made["heads.dipole.normalizer.bn.running_mean"] = torch.ones(1)
    made["grad_forces_normalizer.bn.running_var"] = torch.ones(1)
    return made


def config(architecture, **changes):
    is_second = architecture == "orb_v2"
    made = {
        "architecture": architecture,
        "latent_dim": 12,
        "base_mlp_hidden_dim": 22,
        "base_mlp_depth": 2,
        "head_mlp_hidden_dim": 14,
        "head_mlp_depth": 1,
        "num_message_passing_steps": 3 if is_second else 2,
        "activation": "ssp" if is_second else "silu",
        "radius": 6.0,
        "max_num_neighbors": 20 if is_second else 120,
    }
    if not is_second:
        made.update(has_charge_spin_cond=False, has_stress=True)
    if architecture == "orb_v3_conservative":
        made.update(has_electrostatics=False, zbl_node_aggregation="mean")
    return made | changes


def case(name, config, structures, layout=dict):
    torch.manual_seed(0)
    folder = CASES / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    structures = [atoms_of(*structure) if isinstance(structure, tuple) else structure for structure in structures]
    model = frozen(randomise(build(config), seed_of(name)))
    expected = answer(model, structures, config)
    for key, tensor in expected.items():
        assert torch.isfinite(tensor.float()).all(), key
    check_weights(model, structures, config, expected)
    file = folder / "model" / f"{config['architecture'].replace('_', '-')}-tiny.ckpt"
    torch.save(layout({key: tensor.clone() for key, tensor in model.state_dict().items()}), file)
    (folder / "model" / "config.json").write_text(json.dumps(config, indent=1))
    save_file(inputs_of(structures), folder / "inputs.safetensors")
    save_file(expected, folder / "expected.safetensors")
    kind = "ConservativeForcefieldRegressor" if "conservative" in config["architecture"] else "DirectForcefieldRegressor"
    spec = {
        "system": "Orbital",
        "reference": f"{REFERENCE} {kind} ({config['architecture']})",
        "call": "forward",
        "options": {"edge_order": "sorted by (sender, receiver, shift0, shift1, shift2)"},
        "atol": ATOL,
        "rtol": RTOL,
    }
    if name in NOTES:
        spec["note"] = NOTES[name]
    (folder / "case.json").write_text(json.dumps(spec, indent=1) + "\n")
    again = build(config)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    if not differ_at_all(answer(frozen(again), structures, config), load_file(folder / "expected.safetensors")):
        print(f"{name}: {len(expected['senders'])} edges, energy {expected['energy'].tolist()}")


def differ_at_all(a, b):
    for name in b:
        if not torch.allclose(a[name].float(), b[name].float(), rtol=1e-5, atol=1e-6):
            raise RuntimeError(f"{name} does not repeat after a reload")
    return False


def charged(structure, charge, spin):
    symbols, positions, *cell = structure
    return symbols, positions, cell[0] if cell else None, charge, spin


CONSERVATIVE, DIRECT, SECOND = "orb_v3_conservative", "orb_v3_direct", "orb_v2"
ALL = {
    "v2_molecule": (config(SECOND), [ETHANOL]),
    "v2_crystal_legacy_names": (config(SECOND, head_mlp_depth=2), [rutile()], legacy),
    "v2_graphs": (config(SECOND, latent_dim=10, base_mlp_depth=1), [WATER, salt(), ROW, ("Ar", [[1.0, 2.0, 3.0]])]),
    "v2_capped": (config(SECOND, max_num_neighbors=7), [scattered(14, 6.3, 5)]),
    "v3_direct_crystal": (config(DIRECT), [rutile()]),
    "v3_direct_legacy_names": (config(DIRECT, base_mlp_depth=3), [salt(4)], legacy),
    "v3_direct_molecule": (config(DIRECT, activation="gelu"), [ETHANOL]),
    "v3_direct_left_handed": (config(DIRECT, num_message_passing_steps=1), [left_handed(skewed(6))]),
    "v3_direct_row_of_atoms": (config(DIRECT), [ROW, CLOSE, ("H", [[0.0, 0.0, 0.0]])]),
    "v3_direct_omol": (config(DIRECT, has_charge_spin_cond=True, has_stress=False), [charged(WATER, -1, 2), charged(ETHANOL, 1, 0)]),
    "v3_direct_more_heads": (config(DIRECT, has_stress=False), [CLOSE], with_more_heads),
    "v3_conservative_crystal": (config(CONSERVATIVE), [rutile(7)]),
    "v3_conservative_molecule": (config(CONSERVATIVE, zbl_node_aggregation="sum"), [ETHANOL]),
    "v3_conservative_repulsion_mean": (config(CONSERVATIVE), [CLOSE, WATER]),
    "v3_conservative_repulsion_sum": (config(CONSERVATIVE, zbl_node_aggregation="sum"), [CLOSE, salt(8)]),
    "v3_conservative_skewed": (config(CONSERVATIVE), [skewed()]),
    "v3_conservative_unwrapped": (config(CONSERVATIVE, num_message_passing_steps=3), [moved(salt(9), [[2, -1, 0], [0, 0, 3], [-1, -1, -1], [0, 1, 0]])]),
    "v3_conservative_capped": (config(CONSERVATIVE, max_num_neighbors=11), [scattered(12, 5.9, 3)]),
    "v3_conservative_other_radius": (config(CONSERVATIVE, radius=4.3, activation="gelu-tanh"), [salt(10)]),
    "v3_conservative_ssp": (config(CONSERVATIVE, activation="ssp", head_mlp_depth=2), [WATER, ("Xe", [[0.5, 0.5, 0.5]])]),
    "v3_conservative_lone_atoms": (config(CONSERVATIVE), [("Fe", [[1.0, 2.0, 3.0]]), ("OO", [[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])]),
    "v3_conservative_graphs": (config(CONSERVATIVE), [WATER, rutile(11), ("Ne", [[0.0, 0.0, 0.0]]), skewed(12)]),
    "v3_conservative_nested_trunk": (config(CONSERVATIVE), [salt(13)], nested),
    "v3_conservative_omol": (config(CONSERVATIVE, has_charge_spin_cond=True), [charged(ETHANOL, -2, 3)]),
    "v3_conservative_omol_graphs": (config(CONSERVATIVE, has_charge_spin_cond=True), [charged(WATER, 0, 1), charged(salt(14), 1, 0), charged(ROW, -1, 2)]),
    "orbmol_v2_molecule": (config(CONSERVATIVE, has_charge_spin_cond=True, has_stress=False, has_electrostatics=True, zbl_node_aggregation="sum"),
                           [charged(ETHANOL, 1, 2)]),
    "orbmol_v2_graphs": (config(CONSERVATIVE, has_charge_spin_cond=True, has_stress=False, has_electrostatics=True, zbl_node_aggregation="sum"),
                         [charged(WATER, -1, 2), charged(CLOSE, 0, 1), charged(("Na", [[0.0, 0.0, 0.0]]), 1, 1)]),
    "orbmol_v2_crystal": (config(CONSERVATIVE, has_charge_spin_cond=True, has_stress=False, has_electrostatics=True, zbl_node_aggregation="sum"),
                          [charged(salt(15), 2, 3)]),
}

# ---------------------------------------------------------------- training and adapters

# What no term of the loss sees: biases of forces, whose mean is removed.
FORCES_BIAS = "heads.forces.mlp.NN-1.bias"


def save(case, config, model):
    case.model.mkdir(parents=True, exist_ok=True)
    file = case.model / f"{config['architecture'].replace('_', '-')}-tiny.ckpt"
    torch.save({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    (case.model / "config.json").write_text(json.dumps(config, indent=1))


def stored(folder, config):
    model = build(config)
    model.load_state_dict(torch.load(next(folder.glob("*.ckpt")), weights_only=True), strict=True)
    return model


def trainable(model, weights, with_references):
    """As `load_model(train=True)` leaves a model, but for the normalizers, which learn nothing from the batch."""
    model.loss_weights = weights
    model.heads["energy"].reference.linear.weight.requires_grad_(with_references)
    for module in model.modules():
        if isinstance(module, ScalarNormalizer):
            module.online = False
    return model.train()


def batch_for(structures, config, inputs, dtype):
    """The graph with the targets of `inputs`."""
    graph = graph_of(structures, config)
    graph.system_targets = {name: inputs[name] for name in ("energy", "stress") if name in inputs}
    graph.node_targets = {"forces": inputs["forces"]} if "forces" in inputs else {}
    for fields in (graph.node_features, graph.system_features, graph.edge_features):
        fields |= {name: tensor.to(dtype) for name, tensor in fields.items() if tensor.is_floating_point()}
    return graph


def loss_by(structures, config, weights):
    """The loss of the regressor and its terms, each times its weight; of a conservative one the energy's alone, since its
    forces and stress are derivatives."""
    def loss_of(model, inputs):
        graph = batch_for(structures, config, inputs, model.heads["energy"].mlp[0].weight.dtype)
        if set(weights) == {"energy"}:
            return {"loss": weights["energy"] * model.heads["energy"].loss(model(graph)["energy"], graph).loss}
        out = model.loss(graph)
        return {"loss": out.loss} | {f"loss_{name}": out.log[f"{name}_loss"] for name in weights}

    return loss_of


def targets_near(model, structures, config, names, seed):
    """What the model answers, and noise, so that errors are small and large."""
    random = torch.Generator().manual_seed(seed + 3)
    said = answer(model, structures, config)
    noise = {"energy": 0.1 if len(names) > 1 else 0.5, "forces": 0.3, "stress": 0.05}
    return {name: (said[name].float() + noise[name] * torch.randn(said[name].shape, generator=random)).float()
            for name in names}


def refuse_near_edges(model, structures, config, targets):
    """Refuses an error of forces at the edge of two classes of confidence, or none within the classes."""
    errors = (answer(model, structures, config)["forces"] - targets["forces"]).abs().mean(-1)
    edges = model.heads["confidence"].bin_edges
    if (errors[:, None] - edges).abs().min() < 2e-5 or (errors < edges[-1]).sum() < 4 or (errors < edges[-1]).all():
        raise Retry("an error is at an edge, or all are of one kind")


def trained(config, structures, weights, with_references=False, unseen=(), note=None):
    def attempt(name, seed):
        made = [atoms_of(*structure) for structure in structures]
        model = randomise(build(config), seed)
        names = ["energy"] if set(weights) == {"energy"} else [n for n in ("energy", "forces", "stress") if n in weights]
        targets = targets_near(frozen(randomise(build(config), seed)), made, config, names, seed)
        if "confidence" in weights:
            refuse_near_edges(frozen(randomise(build(config), seed)), made, config, targets)
        case = common.Case(f"orb/{name}", "Orbital")
        save(case, config, model)
        options = {"loss_weights": weights, "train_reference_energies": with_references}
        write_train_step(
            case, f"{type(model).__name__} ({config['architecture']})", trainable(model, weights, with_references),
            loss_by(made, config, weights), inputs_of(made) | targets, names,
            lambda folder: trainable(stored(folder, config), weights, with_references), options, unseen=unseen,
            atol=2e-5, rtol=1e-3, note=note)

    return lambda name: first_good(f"orb/{name}", lambda seed: attempt(name, seed))


def adapted(config, structures, settings, note=None):
    def attempt(name, seed):
        made = [atoms_of(*structure) for structure in structures]
        model = frozen(randomise(build(config), seed))
        case = common.Case(f"orb/{name}", "Orbital")
        save(case, config, model)
        write_adapters(
            case, f"{type(model).__name__} ({config['architecture']})", "forward", model, [LoraConfig(**settings)],
            lambda network: answer(network, made, config), inputs_of(made), lambda folder: frozen(stored(folder, config)),
            seed, {"edge_order": "sorted by (sender, receiver, shift0, shift1, shift2)"}, note=note)

    return lambda name: first_good(f"orb/{name}", lambda seed: attempt(name, seed))


LEARNED = {
    "train_step_direct": trained(
        config(DIRECT), [rutile(16), salt(17), skewed(25)], {"energy": 20.0, "forces": 10.0, "stress": 40.0, "confidence": 0.1},
        unseen=(FORCES_BIAS,), note="means and variances of the normalizers stay"),
    "train_step_v2": trained(
        config(SECOND), [rutile(18), salt(19), skewed(20)], {"energy": 20.0, "forces": 5.0, "stress": 10.0},
        with_references=True, unseen=(FORCES_BIAS,), note="energies of reference learn"),
    "train_step_energy": trained(
        config(CONSERVATIVE), [rutile(21), WATER, salt(22)], {"energy": 50.0}, note="of a conservative model the energy alone"),
    "adapter_conservative": adapted(
        config(CONSERVATIVE), [rutile(23), WATER],
        dict(r=3, lora_alpha=4, target_modules=r"(model\.gnn_stacks\.\d\._\w+|heads\.energy)\.mlp\.NN-\d"),
        note="forces and stress follow from the adapted energy"),
    "adapter_direct": adapted(
        config(DIRECT), [salt(24)],
        dict(r=2, lora_alpha=3, lora_bias=True, target_modules=r"heads\.(forces|stress)\.mlp\.NN-0|model\._encoder\..*NN-1"),
        note="adapters with a bias"),
}

NOTES = {
    "v2_molecule": "no cell: net force and net torque are removed",
    "v2_crystal_legacy_names": "node_head, graph_head and stress_head of the second version's own time",
    "v2_graphs": "a crystal among molecules, two atoms in a row, and one without neighbours",
    "v2_capped": "seven nearest neighbours; edges are directed",
    "v3_direct_legacy_names": "diag_normaliser and offdiag_normaliser",
    "v3_direct_left_handed": "the stress of the pair repulsion is divided by the signed volume of the cell",
    "v3_direct_row_of_atoms": "a row of atoms has no inertia about its line; atoms near enough to repel; one atom alone",
    "v3_direct_omol": "charge and spin; a multiplicity of 0 is not known; no stress head",
    "v3_direct_more_heads": "heads that this model does not have",
    "v3_conservative_repulsion_mean": "atoms near enough to repel; the repulsion averages over atoms",
    "v3_conservative_repulsion_sum": "the repulsion sums over atoms",
    "v3_conservative_skewed": "a small skewed cell: images several cells away are neighbours",
    "v3_conservative_unwrapped": "atoms given outside their cell",
    "v3_conservative_capped": "eleven nearest neighbours",
    "v3_conservative_other_radius": "edges end at 4.3 Å, the envelope at 6 Å all the same",
    "v3_conservative_lone_atoms": "no edge at all",
    "v3_conservative_graphs": "molecules and crystals in one graph",
    "v3_conservative_nested_trunk": "the trunk inside a model that took noise away",
    "orbmol_v2_graphs": "charges in molecules of different charge, and an ion alone",
    "orbmol_v2_crystal": "a charged crystal; the reference sums its charges by particle-mesh Ewald, to about 1e-6",
}

if __name__ == "__main__":
    for name in sys.argv[1:] or [*ALL, *LEARNED]:
        if name in LEARNED:
            LEARNED[name](name)
        else:
            case(name, *ALL[name])
        seeded.pack_case(CASES / name)
