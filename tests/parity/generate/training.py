"""What the cases of training and of adapters share: one step of AdamW after the reference's own loss, and adapters as
peft writes them."""

import copy
import json
import shutil

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from common import VISIBLE, Retry, distance

# A thousandth of a weight is as much as the step moves it; the loss itself is that exact too.
ATOL, RTOL = 1e-5, 1e-4

# The step of every case. A large eps keeps a gradient of rounding noise from moving a weight by the learning rate.
STEP = {"learning_rate": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "weight_decay": 0.01}

# How many numbers of a tensor a case holds.
SAMPLE = 64

# A gradient below this part of the whole is rounding noise.
NOISE = 1e-6


def sample(tensor):
    """At most 64 elements, evenly spread over the flattened tensor."""
    flat = tensor.detach().flatten()
    count = min(len(flat), SAMPLE)
    return flat[torch.arange(count) * len(flat) // count].float().clone()


def losses(model, loss_of, inputs):
    """`loss`, and the parts of it that the reference names."""
    found = loss_of(model, inputs)
    return found if isinstance(found, dict) else {"loss": found}


def in_double(model, inputs):
    """The same network and batch, computed in float64 wherever the reference does not say float32."""
    batch = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    return copy.deepcopy(model).double(), batch


def checked_step(model, loss_of, inputs, options=STEP, exact=True, **more):
    """`train_step`, refused if float64 gives another answer: then other sums in float32 would as well."""
    expected = train_step(model, loss_of, inputs, options, **more)
    if exact:
        double, batch = in_double(model, inputs)
        off = distance(expected, train_step(double, loss_of, batch, options, **(more | {"others": ()})), ATOL, RTOL)
        print(f"float64 is {off:.2f} tolerances away")
        if off > 0.5:
            raise Retry(f"float64 is {off:.2f} tolerances away")
    return expected


def train_step(model, loss_of, inputs, options=STEP, name_of=lambda name: name, silent=(), others=()):
    """The loss, its gradients and the weights after one step of AdamW; the model is as before afterwards.

    `name_of` gives the name of a parameter in the checkpoint (None: it is not in it). `silent` names, by their ends,
    parameters whose gradient is nothing but rounding; they are left out. `others` are inputs, changed in what
    they say is right, whose loss must differ.
    """
    parameters = {name: weight for name, weight in model.named_parameters() if name_of(name) is not None}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in parameters)
        weight.grad = None
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    found = losses(model, loss_of, inputs)
    found["loss"].backward()
    moved = {name: weight for name, weight in parameters.items() if weight.grad is not None}
    norm = torch.stack([weight.grad.norm() for weight in moved.values()]).norm()
    expected = {name: value.detach().float().clone() for name, value in found.items()} | {"grad_norm": norm}
    for other in others:
        with torch.no_grad():
            loss = losses(model, loss_of, other)["loss"]
        if abs(loss - expected["loss"]) < VISIBLE * (ATOL + RTOL * abs(expected["loss"])):
            raise Retry("other labels give the same loss")
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=options["learning_rate"], betas=options["betas"],
                                  eps=options["eps"], weight_decay=options["weight_decay"])
    optimizer.step()
    for name, weight in moved.items():
        is_noise = name.endswith(tuple(silent))
        part = weight.grad.norm() / norm
        if part > 10 * NOISE if is_noise else part < NOISE:
            raise Retry(f"{name} has a gradient of {part:.1e} of the whole")
        if not is_noise:
            expected[f"grad.{name_of(name)}"] = sample(weight.grad)
            expected[f"weight.{name_of(name)}"] = sample(weight)
    with torch.no_grad():
        for name, weight in parameters.items():
            weight.copy_(before[name])
            weight.grad = None
    return expected


# ---------------------------------------------------------------- adapters


def draw(model, seed):
    """Fills what the adapters of `model` train with random values."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            noise = torch.randn(weight.shape, generator=random)
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.3 * noise)
            elif "lora_A" in name or "lora_embedding_A" in name:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            elif "lora_" in name:
                weight.copy_(noise * 0.5)
            else:
                weight.add_(0.3 * noise)


def adapted(case, model, seed, configs, run, scales=(1.0,), unseen=(), safe=True, atol=1e-4, rtol=1e-3):
    """Adds an adapter for each of `configs` to `model`, saves it in the case's folder, and gives the answer of `run` and
    the option of the case.

    Every tensor of every adapter must matter, except those that `unseen` names by their parts.
    """
    base = run(model)
    names = ["default", *(f"adapter_{number}" for number in range(2, len(configs) + 1))]
    wrapped = get_peft_model(model, configs[0])
    for name, config in zip(names[1:], configs[1:]):
        wrapped.add_adapter(name, config)
    for number, name in enumerate(names):
        wrapped.set_adapter(name)
        draw(wrapped, seed + 101 + number)
    wrapped.eval()
    folders = ["adapter", *names[1:]]
    for name, folder in zip(names, folders):
        target = case.folder / folder
        wrapped.save_pretrained(target, selected_adapters=[name], safe_serialization=safe)
        for file in (target / name).glob("*") if (target / name).exists() else ():
            file.rename(target / file.name)
        shutil.rmtree(target / name, ignore_errors=True)
        (target / "README.md").unlink(missing_ok=True)
        # A set is written in the order of this process.
        config = json.loads((target / "adapter_config.json").read_text())
        for key in ("target_modules", "modules_to_save"):
            if isinstance(config[key], list):
                config[key].sort()
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    wrapped.base_model.set_adapter(names)
    for layer in wrapped.modules():
        if hasattr(layer, "scaling") and isinstance(layer.scaling, dict):
            for name, scale in zip(names, scales):
                if name in layer.scaling:
                    layer.scaling[name] *= scale
    expected = run(model)
    if distance(base, expected, atol, rtol) < 100:
        raise Retry("the adapter hardly moves the answer")
    for name, weight in wrapped.named_parameters():
        if not any(f".{folder}" in name for folder in names) and not weight.requires_grad:
            continue
        if any(part in name for part in unseen):
            continue
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
            moved = distance(expected, run(model), atol, rtol)
            weight.copy_(kept)
        if moved < VISIBLE:
            raise Retry(f"{name} moves the answer by {moved:.1f} tolerances only")
    return expected, {"adapters": [{"folder": folder, "scale": scale} for folder, scale in zip(folders, scales)]}


def reloaded(model, folders, scales=(1.0,)):
    """`model` with the adapters of `folders`, as peft reads them."""
    wrapped = PeftModel.from_pretrained(model, folders[0])
    for number, folder in enumerate(folders[1:], 2):
        wrapped.load_adapter(folder, adapter_name=f"adapter_{number}")
    names = ["default", *(f"adapter_{number}" for number in range(2, len(folders) + 1))]
    wrapped.base_model.set_adapter(names)
    for layer in wrapped.modules():
        if hasattr(layer, "scaling") and isinstance(layer.scaling, dict):
            for name, scale in zip(names, scales):
                if name in layer.scaling:
                    layer.scaling[name] *= scale
    return wrapped.eval()
