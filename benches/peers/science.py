#!/usr/bin/env python3
"""Benchmarks robot vision, time series and atomistic models, official architectures, random weights, two threads, against
PyTorch, alternating.

    cargo build --release
    python benches/peers/science.py target/release/fauna --rounds 5
    python benches/peers/science.py target/release/fauna --only orb

OpenVLA-7B's vision towers and projector against timm, Chronos-Bolt-small against chronos-forecasting, Orb v3 conservative
against orb-models (which needs Python 3.12), all in float32. Turns, memory and ratios are as in vision.py.
"""

from turns import Work, config_of, main

SERIES, STEPS = 64, 512
ATOMS = 200

WORKS = [
    Work("OpenVLA-7B, towers and projector, one image", "openvla-7b-cut",
         ("--task", "forward", "--tokens", "0", "--images", "1"), "openvla_sees"),
    Work(f"Chronos-Bolt-small, {SERIES} series of {STEPS} steps", "chronos-bolt-small",
         ("--task", "forward", "--batch", str(SERIES), "--tokens", str(STEPS)), "chronos_bolt"),
    Work(f"Orb v3 conservative, {ATOMS} atoms with forces", "orb-v3-conservative-inf-omat",
         ("--task", "forward", "--tokens", str(ATOMS)), "orb", slopes=True),
]


# ---------------------------------------------------------------- PyTorch's side


def openvla_sees(torch, config):
    """The concatenated features of the second-to-last block of both vision towers, through the fused projector."""
    import timm

    config = config_of(config)
    towers = [timm.create_model(name, pretrained=False, num_classes=0, img_size=224).eval()
              for name in config["timm_model_ids"]]
    sizes = [sum(tower.embed_dim for tower in towers), 4 * sum(tower.embed_dim for tower in towers), 4096, 4096]
    layers = []
    for index in range(3):
        layers += [torch.nn.Linear(sizes[index], sizes[index + 1]), torch.nn.GELU()]
    projector = torch.nn.Sequential(*layers[:-1])
    pixels = torch.rand(1, 6, 224, 224)

    def run():
        seen = [tower.get_intermediate_layers(part, n={len(tower.blocks) - 2})[0]
                for tower, part in zip(towers, pixels.split(3, dim=1))]
        return projector(torch.cat(seen, dim=2))

    return run


def chronos_bolt(torch, config):
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    model = ChronosBoltModelForForecasting(T5Config(**config_of(config))).eval()
    context = torch.randn(SERIES, STEPS).cumsum(dim=1)
    return lambda: model(context=context)


def orb(torch, config):
    """Energy, forces and stress of atoms, including the graph; the crystal is that of `fauna bench`, except for its noise."""
    import ase
    import numpy as np
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

    config = config_of(config)
    torch.set_float32_matmul_precision("highest")
    model = pretrained.orb_v3_conservative_architecture(device="cpu").eval()
    for weight in model.parameters():
        weight.requires_grad = False
    adapter = ForcefieldAtomsAdapter(radius=config["radius"], max_num_neighbors=config["max_num_neighbors"])
    side, spacing = next(side for side in range(1, ATOMS) if side**3 >= ATOMS), 1.9
    sites = np.arange(ATOMS)
    corners = np.stack([sites % side, sites // side % side, sites // side**2], axis=1)
    positions = spacing * corners + 0.3 * (np.random.default_rng(0).random((ATOMS, 3)) - 0.5)
    atoms = ase.Atoms(
        numbers=np.array([3, 8, 22, 8, 26, 8])[sites % 6], positions=positions, cell=[spacing * side] * 3, pbc=True)
    return lambda: model.predict(adapter.from_ase_atoms(atoms))


if __name__ == "__main__":
    main(__doc__, WORKS, globals())
