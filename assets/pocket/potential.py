#!/usr/bin/env python3
"""pocket-potential: an Orb v3 (direct) that learns the potential CHGNet of crystals of ten elements.

    pip install -r requirements-potential.txt
    assets/pocket/potential.py make|measure

CHGNet (Deng et al. 2023, arXiv 2302.14231), whose weights are in its PyPI package, labels small cells of 57 crystals, moved,
strained and turned from a fixed seed, with energy, forces and stress. The Orb is trained on these, its energies of reference
a fit to the energies of training. Held out are other structures of the same crystals, and all structures of three compounds.
"""

import itertools
import json
import re
import shutil
import sys
import time

import numpy

from common import Measured, Program, main, publish, work_folder, write_json

NAME, MODALITY = "pocket-potential", "science"

CONFIG = {
    "architecture": "orb_v3_direct", "latent_dim": 64, "base_mlp_hidden_dim": 128, "base_mlp_depth": 2,
    "head_mlp_hidden_dim": 64, "head_mlp_depth": 1, "num_message_passing_steps": 2, "activation": "silu",
    "radius": 5.0, "max_num_neighbors": 120, "has_charge_spin_cond": False, "has_stress": True,
}
STEPS, BATCH, RATE = 3500, 8, 3e-3
FIRST_STEPS, FIRST_LOSS = 1000, {"forces": 20.0, "stress": 5.0}
LOSS = {"energy": 20.0, "forces": 20.0, "stress": 5.0, "confidence": 0.01}
LAST_STEPS, LAST_LOSS, HEADS = 500, {"forces": 20.0, "stress": 20.0}, r"^heads\.(forces|stress)\.mlp\."
# What is trained: not the constants of the network, nor the normalizers.
TRAINED = r"^(heads\.\w+\.mlp|model\.(_encoder|atom_emb|gnn_stacks))\."
# Labelled structures of each crystal, and how often those of training are turned.
TRAINING, VALIDATION, HELD_OUT, TURNS = 60, 2, 8, 4
NUMBERS = {"Li": 3, "O": 8, "F": 9, "Na": 11, "Mg": 12, "Al": 13, "Si": 14, "Cl": 17, "Ni": 28, "Cu": 29}

# ---- crystals ---------------------------------------------------------------------------------------------------------

# Fractional places of the primitive cell: the sites of A, then those of B.
FACES = numpy.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CENTRE = numpy.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
HEXAGON = numpy.array([[1, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0, (8 / 3) ** 0.5]])
# Cell in units of the lattice constant, places, counts of A and B, lattice constant in units of the nearest distance.
PROTOTYPES = {
    "fcc": (FACES, [[0, 0, 0]], (1, 0), 2**0.5),
    "bcc": (CENTRE, [[0, 0, 0]], (1, 0), 2 / 3**0.5),
    "hcp": (HEXAGON, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], (2, 0), 1),
    "diamond": (FACES, [[0, 0, 0], [0.25, 0.25, 0.25]], (2, 0), 4 / 3**0.5),
    "simple cubic": (numpy.eye(3), [[0, 0, 0]], (1, 0), 1),
    "rock salt": (FACES, [[0, 0, 0], [0.5, 0.5, 0.5]], (1, 1), 2),
    "caesium chloride": (numpy.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], (1, 1), 2 / 3**0.5),
    "zinc blende": (FACES, [[0, 0, 0], [0.25, 0.25, 0.25]], (1, 1), 4 / 3**0.5),
    "antifluorite": (FACES, [[0.25, 0.25, 0.25], [0.75, 0.75, 0.75], [0, 0, 0]], (2, 1), 4 / 3**0.5),
    "L1_2": (numpy.eye(3), [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 0]], (3, 1), 2**0.5),
}
# Elements or compounds, their nearest distance in Å (where the search for the lattice constant begins), and prototypes.
CRYSTALS = [
    (("Li",), 3.0, "bcc,fcc,hcp"), (("Na",), 3.7, "bcc,fcc,hcp"), (("Mg",), 3.2, "hcp,fcc,bcc"),
    (("Al",), 2.86, "fcc,bcc,hcp"), (("Ni",), 2.49, "fcc,bcc,hcp"), (("Cu",), 2.55, "fcc,bcc,hcp"),
    (("Si",), 2.37, "diamond,simple cubic"),
    (("Li", "F"), 2.02, "rock salt,caesium chloride,zinc blende"), (("Li", "Cl"), 2.57, "rock salt,caesium chloride,zinc blende"),
    (("Na", "F"), 2.32, "rock salt,caesium chloride"), (("Na", "Cl"), 2.82, "rock salt,caesium chloride,zinc blende"),
    (("Mg", "O"), 2.11, "rock salt,caesium chloride,zinc blende"), (("Ni", "O"), 2.09, "rock salt,caesium chloride"),
    (("Cu", "Cl"), 2.34, "zinc blende,rock salt"), (("Cu", "F"), 2.0, "zinc blende,rock salt"),
    (("Li", "O"), 2.0, "antifluorite"), (("Na", "O"), 2.41, "antifluorite"), (("Mg", "Si"), 2.75, "antifluorite"),
    (("Ni", "Al"), 2.5, "caesium chloride,L1_2"), (("Al", "Ni"), 2.7, "L1_2"), (("Cu", "Al"), 2.6, "caesium chloride,L1_2"),
    (("Al", "Li"), 2.84, "L1_2,caesium chloride"), (("Mg", "Cu"), 2.7, "caesium chloride"), (("Cu", "Mg"), 2.6, "L1_2"),
    (("Mg", "Al"), 3.0, "L1_2"), (("Cu", "Ni"), 2.52, "L1_2,caesium chloride"), (("Ni", "Si"), 2.47, "L1_2"),
    (("Mg", "Li"), 3.1, "caesium chloride"),
]
LEFT_OUT = [("Na", "F"), ("Cu", "Al"), ("Mg", "Li")]
# Crystals whose lattice constants are compared after relaxation.
RELAXED = [(("Al",), "fcc"), (("Cu",), "fcc"), (("Si",), "diamond"), (("Na", "Cl"), "rock salt"), (("Mg", "O"), "rock salt")]


def crystals():
    """Every compound with each of its prototypes and its nearest distance."""
    for elements, distance, names in CRYSTALS:
        for name in names.split(","):
            yield elements, name, distance


def crystal(elements, name, constant):
    """Symbols, positions and cell of the primitive cell."""
    cell, places, counts, _ = PROTOTYPES[name]
    symbols = [element for element, count in zip(elements, counts) for _ in range(count)]
    return symbols, constant * numpy.array(places) @ cell, constant * cell


def repeated(structure, times):
    """A supercell."""
    symbols, positions, cell = structure
    shifts = numpy.stack(numpy.meshgrid(*map(numpy.arange, times), indexing="ij"), -1).reshape(-1, 3) @ cell
    return symbols * len(shifts), (shifts[:, None] + positions).reshape(-1, 3), cell * numpy.array(times)[:, None]


def turned(draw):
    """A rotation matrix, uniform over all rotations."""
    q, r = numpy.linalg.qr(draw.normal(size=(3, 3)))
    q *= numpy.sign(numpy.diag(r))
    return q if numpy.linalg.det(q) > 0 else -q


def turns_of_the_cube():
    """The 24 rotations that carry a cube into itself."""
    signed = [numpy.diag(signs)[list(order)] for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
    return [matrix for matrix in signed if numpy.linalg.det(matrix) > 0]


def distorted(structure, draw):
    """A small supercell, strained by up to 6 % along each axis and sheared by up to 4 %, its atoms moved, turned; and the turn."""
    sizes = [times for times in ((1, 1, 1), (2, 1, 1), (1, 1, 2), (2, 2, 1), (2, 2, 2)) if numpy.prod(times) * len(structure[0]) <= 8]
    symbols, positions, cell = repeated(structure, sizes[draw.integers(len(sizes))])
    strain = numpy.diag(draw.uniform(-0.06, 0.06, 3))
    for row, column in ((0, 1), (0, 2), (1, 2)):
        strain[row, column] = strain[column, row] = draw.uniform(-0.02, 0.02)
    strain = numpy.eye(3) + draw.uniform() * strain
    turn = turned(draw)
    deform = strain @ turn
    noise = draw.uniform(0, 0.12) * draw.normal(size=(len(symbols), 3))
    return (symbols, positions @ deform + noise, cell @ deform), turn


# ---- the teacher ------------------------------------------------------------------------------------------------------


class Teacher:
    """CHGNet on one core."""

    def __init__(self):
        import torch
        from chgnet.model import CHGNet

        torch.set_num_threads(1)
        # Each graph has another size, for which oneDNN would make its programs anew.
        torch.backends.mkldnn.enabled = False
        self.network = CHGNet.load(use_device="cpu", verbose=False)

    def label(self, structure):
        """Energy in eV, forces in eV/Å and stress in eV/Å³, a matrix."""
        from pymatgen.core import Lattice, Structure

        symbols, positions, cell = structure
        made = Structure(Lattice(cell), symbols, positions, coords_are_cartesian=True)
        found = self.network.predict_structure(made, task="efs")
        return float(found["e"]) * len(symbols), numpy.array(found["f"], float), numpy.array(found["s"], float) / 160.21766208

    def constant(self, elements, name, distance):
        """The lattice constant in Å at which a crystal is without pressure."""
        start = distance * PROTOTYPES[name][3]
        points = []
        for scale in numpy.linspace(0.86, 1.2, 12):
            energy, _, stress = self.label(crystal(elements, name, start * scale))
            points.append((start * scale, energy, numpy.trace(stress) / 3))
        zeros = [
            (min(a[1], b[1]), a, b) for a, b in zip(points, points[1:]) if a[2] < 0 <= b[2]
        ]
        if not zeros:
            sys.exit(f"{elements} as {name}: no lattice constant without pressure")
        _, low, high = min(zeros, key=lambda zero: zero[0])
        low, high = (low[0], low[2]), (high[0], high[2])
        for _ in range(12):
            middle = (low[0] + high[0]) / 2
            pressure = numpy.trace(self.label(crystal(elements, name, middle))[2]) / 3
            low, high = ((middle, pressure), high) if pressure < 0 else (low, (middle, pressure))
        return (low[0] + high[0]) / 2

    def relaxed(self, elements, name, constant):
        """The lattice constant in Å after ASE has relaxed cell and atoms."""
        from ase import Atoms
        from ase.filters import FrechetCellFilter
        from ase.optimize import LBFGS
        from chgnet.model.dynamics import CHGNetCalculator

        symbols, positions, cell = crystal(elements, name, 1.03 * constant)
        atoms = Atoms(symbols, positions=positions, cell=cell, pbc=True)
        atoms.calc = CHGNetCalculator(model=self.network, use_device="cpu")
        LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.002, steps=200)
        return lattice_constant(name, atoms.get_volume() / len(atoms))


def lattice_constant(name, volume):
    """The lattice constant in Å of a cubic prototype with this volume per atom in Å³."""
    cell, places, _, _ = PROTOTYPES[name]
    return (volume * len(places) / abs(numpy.linalg.det(cell))) ** (1 / 3)


# ---- a pair potential --------------------------------------------------------------------------------------------------

# In a crystal whose atoms are near their sites the forces of neighbours nearly cancel: an Orb with initial weights finds no
# forces in them. It learns first on atoms far from their sites, with the forces of a pair potential, which cost nothing.

RADII = {"Li": 1.5, "O": 0.75, "F": 0.7, "Na": 1.8, "Mg": 1.5, "Al": 1.43, "Si": 1.18, "Cl": 1.1, "Ni": 1.25, "Cu": 1.28}
ANIONS = {"O", "F", "Cl"}
DEPTH, STEEPNESS, REACH = 0.3, 1.5, 5.0


def pair_potential(structure):
    """Energy, forces and stress of Morse potentials around the sum of two radii; anions repel one another."""
    symbols, positions, cell = structure
    radii = numpy.array([RADII[symbol] for symbol in symbols])
    anions = numpy.array([symbol in ANIONS for symbol in symbols])
    shifts = numpy.stack(numpy.meshgrid(*[numpy.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3) @ cell
    apart = positions[None, :, None] + shifts - positions[:, None, None]
    distance = numpy.linalg.norm(apart, axis=-1)
    near = (distance > 1e-6) & (distance < REACH)
    distance = numpy.where(near, distance, 1.0)
    repel = (anions[:, None] & anions)[..., None]
    decay = numpy.exp(-STEEPNESS * (distance - (radii[:, None] + radii)[..., None]))
    window = (1 - (distance / REACH) ** 2) ** 2
    value = DEPTH * (decay**2 - numpy.where(repel, 0, 2) * decay)
    slope = -2 * STEEPNESS * DEPTH * (decay**2 - numpy.where(repel, 0, 1) * decay)
    slope = slope * window - 4 * value * (1 - (distance / REACH) ** 2) * distance / REACH**2
    value, slope = near * value * window, near * slope
    pull = (slope / distance)[..., None] * apart
    stress = numpy.einsum("ijka,ijkb->ab", pull, apart) / 2 / abs(numpy.linalg.det(cell))
    return value.sum() / 2, pull.sum((1, 2)), stress


def first_data(folder, constants):
    """Writes crystals with atoms far from their sites, labelled by the pair potential."""
    draw, made = numpy.random.default_rng(13), []
    constants = [entry for entry in constants if tuple(entry[0]) not in LEFT_OUT]
    while len(made) < 3000:
        elements, name, constant = constants[draw.integers(len(constants))]
        structure, turn = distorted(crystal(elements, name, constant), draw)
        symbols, positions, cell = structure
        structure = symbols, (positions + draw.uniform(0, 0.5) * draw.normal(size=positions.shape)) @ turn.T, cell @ turn.T
        labels = pair_potential(structure)
        if numpy.abs(labels[1]).max() < 5 and numpy.abs(labels[2]).max() < 1:
            made.append((structure, labels))
    write(folder / "pairs/train.xyz", made[100:])
    write(folder / "pairs/valid.xyz", made[:100])


# ---- extended XYZ -----------------------------------------------------------------------------------------------------


def extended_xyz(labelled):
    """Labelled structures as text."""
    lines = []
    for (symbols, positions, cell), (energy, forces, stress) in labelled:
        numbers = [" ".join(f"{value:.8f}" for value in matrix.ravel()) for matrix in (cell, stress)]
        lines += [str(len(symbols)), f'Lattice="{numbers[0]}" Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} stress="{numbers[1]}" pbc="T T T"']
        for symbol, place, force in zip(symbols, positions, forces):
            lines.append(symbol + " " + " ".join(f"{value:.8f}" for value in (*place, *force)))
    return "\n".join(lines) + "\n"


def read_extended_xyz(text):
    """Labelled structures from text: cells, energies, stresses, and forces in the last three columns."""
    lines, labelled = text.splitlines(), []
    while lines:
        count, about = int(lines[0]), lines[1]
        matrix = lambda key: numpy.array(re.search(rf'\b{key}="([^"]*)"', about)[1].split(), float)
        stress = matrix("stress")
        if len(stress) == 6:
            stress = stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
        rows = [line.split() for line in lines[2:count + 2]]
        values = numpy.array([row[1:] for row in rows], float)
        structure = [row[0] for row in rows], values[:, :3], matrix("Lattice").reshape(3, 3)
        labelled.append((structure, (float(re.search(r"\benergy=(\S+)", about)[1]), values[:, -3:], stress.reshape(3, 3))))
        lines = lines[count + 2:]
    return labelled


def write(path, labelled):
    """Writes labelled structures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(extended_xyz(labelled))


def rotated(labelled, rotation):
    """A labelled structure in another direction."""
    (symbols, positions, cell), (energy, forces, stress) = labelled
    return (symbols, positions @ rotation, cell @ rotation), (energy, forces @ rotation, rotation.T @ stress @ rotation)


# ---- making -----------------------------------------------------------------------------------------------------------


def data(folder):
    """Labels structures of all crystals, at first use."""
    if (folder / "constants.json").is_file():
        return
    teacher, begun = Teacher(), time.monotonic()
    constants = []
    training, validation, held_out, any_direction, left_out = [], [], [], [], []
    for index, (elements, name, distance) in enumerate(crystals()):
        draw = numpy.random.default_rng([11, index])
        constant = teacher.constant(elements, name, distance)
        print(f"{'-'.join(elements)} {name}: {constant:.4f} Å, {time.monotonic() - begun:.0f} s", flush=True)
        constants.append([elements, name, constant])
        base = crystal(elements, name, constant)
        is_left_out = elements in LEFT_OUT
        made = []
        while len(made) < (HELD_OUT if is_left_out else TRAINING + VALIDATION + HELD_OUT):
            structure, turn = distorted(base, draw)
            made.append(((structure, teacher.label(structure)), turn))
        laid_back = [rotated(labelled, turn.T) for labelled, turn in made]
        if is_left_out:
            left_out += laid_back
            continue
        held_out += laid_back[:HELD_OUT]
        any_direction += [labelled for labelled, _ in made[:HELD_OUT]]
        validation += laid_back[HELD_OUT:HELD_OUT + VALIDATION]
        training += laid_back[HELD_OUT + VALIDATION:]
    draw = numpy.random.default_rng(12)
    cube = turns_of_the_cube()
    training = [rotated(one, cube[draw.integers(len(cube))]) for _ in range(TURNS) for one in training]
    write(folder / "structures/train.xyz", training)
    write(folder / "structures/valid.xyz", validation)
    write(folder / "held-out.xyz", held_out)
    write(folder / "any-direction.xyz", any_direction)
    write(folder / "left-out.xyz", left_out)
    write_json(folder / "constants.json", constants)


def bfloat16(value):
    """The nearest number that bfloat16 holds."""
    bits = numpy.array(value, "<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("<u4").view("<f4")


def references(labelled):
    """Energies of reference in eV by least squares, by atomic number, and the mean and variance of what is left per atom."""
    numbers = [[NUMBERS[symbol] for symbol in structure[0]] for structure, _ in labelled]
    counts = numpy.array([numpy.bincount(row, minlength=118) for row in numbers], float)
    energies = numpy.array([label[0] for _, label in labelled])
    sizes = counts.sum(1)
    found = numpy.linalg.lstsq(counts / sizes[:, None], energies / sizes, rcond=None)[0]
    found = bfloat16(found).astype(float)
    rest = energies / sizes - counts @ found / sizes
    return found, rest.mean(), rest.var()


def start(folder, program):
    """A checkpoint of initial weights, its energies of reference and normalizers those of the data."""
    target = folder / "start"
    shutil.rmtree(target, ignore_errors=True)
    write_json(folder / "orb/config.json", CONFIG)
    made = program.tune("initial", "--from-config", "orb/config.json", "--data", "structures", "--steps", 1, "--lr", 1e-12, "--batch", 1)
    shutil.copytree(made, target)
    labelled = read_extended_xyz((folder / "structures/train.xyz").read_text())
    energies, mean, variance = references(labelled)
    forces = numpy.concatenate([label[1].ravel() for _, label in labelled])
    stress = numpy.stack([label[2] for _, label in labelled])
    diagonal, off = stress[:, [0, 1, 2], [0, 1, 2]], stress[:, [0, 0, 1], [1, 2, 2]]
    values = {"heads.energy.reference.linear.weight": energies, "heads.energy.normalizer.bn.running_mean": mean,
              "heads.energy.normalizer.bn.running_var": variance, "heads.forces.normalizer.bn.running_var": forces.var(),
              "heads.stress.diag_normalizer.bn.running_mean": diagonal.mean(), "heads.stress.diag_normalizer.bn.running_var": diagonal.var(),
              "heads.stress.offdiag_normalizer.bn.running_var": off.var()}
    for path in target.glob("training_state.*"):
        path.unlink()
    replace(target / "model.safetensors", values)
    return target


def replace(path, values):
    """Replaces tensors of a safetensors file, and its constants, by numbers that bfloat16 holds."""
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    constants = [name for name in header if name.startswith("model.rbf_transform.") or name.endswith("bin_edges")]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        part = numpy.frombuffer(content, "<f4", (last - first) // 4, begin + first).reshape(entry["shape"])
        if name in values or name in constants:
            part[...] = bfloat16(values.get(name, part))
    path.write_bytes(content)


def make():
    """Trains and publishes."""
    folder = work_folder("potential")
    program = Program(folder)
    data(folder)
    if not (folder / "start/model.safetensors").is_file():
        start(folder, program)
    if not (folder / "pairs/valid.xyz").is_file():
        first_data(folder, json.loads((folder / "constants.json").read_text()))
    options = ["--only", TRAINED, "--batch", BATCH, "--lr", RATE, "--weight-decay", 0, "--threads", 1]
    program.tune(
        "first", "start", *options, "--data", "pairs", "--loss", f"loss_weights={json.dumps(FIRST_LOSS)}", "--warmup", 100,
        "--steps", FIRST_STEPS, "--valid-every", 500,
    )
    program.tune(
        "trained", "first/last", *options, "--data", "structures", "--loss", f"loss_weights={json.dumps(LOSS)}", "--warmup", 100,
        "--schedule", "cosine", "--steps", STEPS, "--valid-every", 500, "--seed", 1,
    )
    options[1] = HEADS
    trained = program.tune(
        "heads", "trained/last", *options, "--data", "structures", "--loss", f"loss_weights={json.dumps(LAST_LOSS)}", "--warmup", 50,
        "--schedule", "cosine", "--steps", LAST_STEPS, "--valid-every", 250, "--seed", 2,
    )
    publish(MODALITY, NAME, trained)


# ---- measuring --------------------------------------------------------------------------------------------------------


def errors(known, found):
    """Mean absolute errors: energy in meV per atom, forces in eV/Å and stress in eV/Å³ per component."""
    energy = [abs(one[0] - other[0]) / len(one[1]) for (_, one), (_, other) in zip(known, found)]
    forces = [numpy.abs(one[1] - other[1]).ravel() for (_, one), (_, other) in zip(known, found)]
    stress = [numpy.abs(one[2] - other[2])[numpy.triu_indices(3)] for (_, one), (_, other) in zip(known, found)]
    return 1000 * numpy.mean(energy), numpy.concatenate(forces).mean(), numpy.concatenate(stress).mean()


def nothing_known(training, known):
    """The labels of a model that knows the energies of reference alone."""
    energies, mean, _ = references(training)
    rest = lambda structure: sum(energies[NUMBERS[symbol]] + mean for symbol in structure[0])
    return [(structure, (rest(structure), numpy.zeros((len(structure[0]), 3)), numpy.zeros((3, 3)))) for structure, _ in known]


def measure():
    """Measures the published checkpoint."""
    from common import HERE

    folder = work_folder("potential")
    data(folder)
    program, model = Program(folder), HERE / MODALITY / NAME
    measured = Measured(model)
    training = read_extended_xyz((folder / "structures/train.xyz").read_text())
    parts = [
        ("structures held out", "held-out.xyz", True), ("the same, turned in any direction", "any-direction.xyz", False),
        ("compounds left out", "left-out.xyz", False),
    ]
    for what, file, has_goal in parts:
        known = read_extended_xyz((folder / file).read_text())
        program.run("energy", model, "--atoms", file, "--out", "predicted.xyz", "--force")
        found = read_extended_xyz((folder / "predicted.xyz").read_text())
        energy, forces, stress = errors(known, found)
        measured.add(f"{what}: number", len(known))
        measured.add(f"{what}: mean absolute error of the energy per atom", energy, "<= 20" if has_goal else None, "meV")
        measured.add(f"{what}: mean absolute error of the forces", forces, "<= 0.1" if has_goal else None, "eV/Å")
        measured.add(f"{what}: mean absolute error of the stress", stress, None, "eV/Å³")
        energy, forces, stress = errors(known, nothing_known(training, known))
        measured.add(f"{what}: of energies of reference alone, energy per atom", energy, None, "meV")
        measured.add(f"{what}: of no forces, forces", forces, None, "eV/Å")
        measured.add(f"{what}: of no stress, stress", stress, None, "eV/Å³")
    constants(measured, folder, program, model)
    measured.write()


def constants(measured, folder, program, model):
    """Lattice constants after relaxation from a cell that is 3 % too large, beside the teacher's."""
    known = {(tuple(elements), name): constant for elements, name, constant in json.loads((folder / "constants.json").read_text())}
    teacher = Teacher()
    for elements, name in RELAXED:
        constant = known[elements, name]
        expected = teacher.relaxed(elements, name, constant)
        structure = crystal(elements, name, 1.03 * constant)
        nothing = (0.0, numpy.zeros_like(structure[1]), numpy.zeros((3, 3)))
        write(folder / "crystal.xyz", [(structure, nothing)])
        program.run("relax", model, "--atoms", "crystal.xyz", "--cell", "free", "--fmax", 0.01, "--out", "relaxed.xyz", "--force")
        (_, positions, cell), _ = read_extended_xyz((folder / "relaxed.xyz").read_text())[-1]
        found = lattice_constant(name, abs(numpy.linalg.det(cell)) / len(positions))
        label = f"lattice constant of {''.join(elements)} ({name})"
        measured.add(f"{label}, CHGNet", expected, None, "Å", 5)
        measured.add(f"{label}, this model", found, None, "Å", 5)
        measured.add(f"{label}, difference", 100 * abs(found / expected - 1), "<= 2", "%")


if __name__ == "__main__":
    main(make, measure)
