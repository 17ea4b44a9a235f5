"""What every family's training and adapter cases share: one step of AdamW from a batch, and the adapters of PEFT.

A `train_step` case stores the reference's loss, the norm of its gradient, and of every parameter some elements of the
gradient and of what one step of `torch.optim.AdamW` makes of it. An adapter case stores the reference's answer with
adapters of PEFT on it, which the folders beside `model/` hold as PEFT saves them.
"""

import copy
import json

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from common import (
    VISIBLE,
    Case,
    Retry,
    distance,
    first_good,
    forward,
    ids,
    last_shown,
    reload_as,
    right_padding,
    weights_of,
    write_config,
    write_safetensors,
)

# A large step, so that what it changes stands out of the tolerance. At the first step the update is
# `learning_rate * gradient / (|gradient| + eps)`: a small `eps` would make the sign of rounding noise visible.
STEP = {"learning_rate": 1e-2, "betas": [0.9, 0.999], "eps": 1e-3, "weight_decay": 0.1}
ATOL, RTOL = 1e-5, 1e-4
SAMPLES = 64

# Below this share of the largest gradient's norm, a gradient is rounding noise.
NOISE = 1e-6


# ---------------------------------------------------------------- one step of training


def train_step(model, loss_fn, inputs, options=None, name_of=lambda name: name, unseen=()):
    """The loss of a batch, its gradient, and the parameters after one step of AdamW; the model stays as it is.

    `loss_fn(model, inputs)` gives the loss, or a dictionary of `loss` and its named parts. `name_of` maps a parameter's
    name to the name of the file's tensor. Parameters whose names end as one of `unseen` are left out: the loss cannot
    see them, so that their gradient is rounding noise. So are those that get no gradient.

    A tensor of n elements is stored as its elements `i * n // k`, i below k = min(n, 64).
    """
    options = {**STEP, **(options or {})}
    network = copy.deepcopy(model)
    for parameter in network.parameters():
        parameter.grad = None
    parameters = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [weight for _, weight in parameters], lr=options["learning_rate"], betas=tuple(options["betas"]),
        eps=options["eps"], weight_decay=options["weight_decay"])
    losses = loss_fn(network, inputs)
    losses = losses if isinstance(losses, dict) else {"loss": losses}
    losses["loss"].backward()
    norms = {name: weight.grad.norm().item() for name, weight in parameters if weight.grad is not None}
    check_norms(norms, tuple(unseen))
    expected = {name: loss.detach().float() for name, loss in losses.items()}
    expected["grad_norm"] = torch.linalg.vector_norm(
        torch.stack([weight.grad.norm() for _, weight in parameters if weight.grad is not None])).float()
    gradients = {name_of(name): sampled(weight.grad) for name, weight in parameters
                 if name in norms and not name.endswith(tuple(unseen))}
    optimizer.step()
    weights = {name_of(name): sampled(weight) for name, weight in parameters
               if name in norms and not name.endswith(tuple(unseen))}
    expected |= {f"grad.{name}": value for name, value in gradients.items()}
    return expected | {f"weight.{name}": value for name, value in weights.items()}


def check_norms(norms, unseen):
    """Every gradient but the `unseen` must stand out of rounding noise, and the `unseen` must not."""
    largest = max(norms.values())
    for name, norm in norms.items():
        if name.endswith(unseen) if unseen else False:
            if norm > NOISE * largest * 10:
                raise RuntimeError(f"{name} is said to be unseen, and its gradient has norm {norm}")
        elif norm <= NOISE * largest:
            raise Retry(f"the gradient of {name} has norm {norm}, and the largest {largest}")


def sampled(tensor):
    """The elements of the flattened tensor that a case stores."""
    flat = tensor.detach().reshape(-1).float()
    count = min(flat.numel(), SAMPLES)
    return flat[torch.arange(count) * flat.numel() // max(count, 1)].clone()


def model_loss(model, inputs):
    """The loss by the model's own definition."""
    return model(**inputs).loss


def write_train_step(case, reference, model, loss_fn, inputs, labels, reload, options=None, name_of=lambda name: name,
                     unseen=(), atol=ATOL, rtol=RTOL, note=None, double=True):
    """Writes a `train_step` case whose checkpoint lies in `case.model`, and takes the step again from there.

    `labels` names the inputs that the loss compares with: each, changed, must move the loss. Refuses gradients that the
    tolerance hides, and with `double` an answer that float64 puts elsewhere. (A query that sees no token is not a number
    there: the reference adds the least float64 to its scores, and takes the softmax in float32.)
    """
    options = {**STEP, **(options or {})}
    run = lambda network, inputs: train_step(network, loss_fn, inputs, options, name_of, unseen)
    expected = run(model, inputs)
    for name, value in expected.items():
        if name.startswith("grad.") and (value.abs().max() < VISIBLE * atol):
            raise Retry(f"{name} is at most {value.abs().max():.1e}")
    for name in labels:
        moved = {"loss": run(model, {**inputs, name: shuffled(inputs[name])})["loss"]}
        if distance({"loss": expected["loss"]}, moved, atol, rtol) < VISIBLE:
            raise Retry(f"{name} does not move the loss")
    if double:
        exact = run(copy.deepcopy(model).double(), {name: as_double(value) for name, value in inputs.items()})
        off = distance(exact, expected, atol, rtol)
        print(f"{case.name:44} float64 is {off:.3f} tolerances away")
        if off > 0.3 or not all(value.isfinite().all() for value in exact.values()):
            worst = max(exact, key=lambda name: distance({name: exact[name]}, {name: expected[name]}, atol, rtol))
            raise Retry(f"float64 is {off:.2f} tolerances away, at {worst}")
    case.write(reference, "train_step", inputs, expected, options, atol, rtol, note)
    case.check_repeats(reload, lambda network: run(network, inputs))


def shuffled(labels):
    """Other labels: the elements that count, in another order, or another value where there is only one."""
    flat, counts = labels.reshape(-1).clone(), labels.reshape(-1) != -100
    kept = flat[counts]
    if labels.is_floating_point():
        flat[counts] = kept.flip(0) + 0.5
    elif kept.numel() > 1 and not torch.equal(kept, kept.roll(1)):
        flat[counts] = kept.roll(1)
    else:
        flat[counts] = (kept == 0).to(flat.dtype)
    return flat.reshape(labels.shape)


def as_double(value):
    return value.double() if value.is_floating_point() else value


# ---------------------------------------------------------------- adapters


def adapt(model, configs, seed):
    """The model with one adapter per configuration on it, all of them random; the model itself is changed.

    The adapters are called `adapter`, `adapter_2`, ... as the folders that hold them.
    """
    names = folders(configs)
    wrapped = get_peft_model(model, configs[0], adapter_name=names[0])
    for name, config in zip(names[1:], configs[1:]):
        wrapped.add_adapter(name, config)
    activate(wrapped, names)
    random = torch.Generator().manual_seed(seed + 17)
    with torch.no_grad():
        for name, weight in trained(wrapped):
            noise = torch.randn(weight.shape, generator=random)
            if "lora_magnitude_vector" in name:
                weight.mul_(1 + 0.3 * noise)
            elif "lora_" not in name:
                weight.add_(0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif "lora_A" in name or "lora_embedding_A" in name:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.5 * noise)
    return wrapped.eval()


def folders(configs):
    return ["adapter", *(f"adapter_{number}" for number in range(2, len(configs) + 1))]


def trained(wrapped):
    """The parameters that the adapters hold."""
    return [(name, weight) for name, weight in wrapped.named_parameters() if weight.requires_grad]


def activate(wrapped, names, scales=None):
    """Lets all the adapters act together, each by its scale."""
    if len(names) > 1:
        wrapped.base_model.set_adapter(list(names))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            for name, scale in zip(names, scales or []):
                if name in module.scaling:
                    module.scaling[name] *= scale


def write_adapters(case, reference, call, model, configs, run, inputs, reload, seed, options=None, scales=None,
                   safe=True, unseen=(), atol=1e-4, rtol=1e-3, note=None):
    """Writes an adapter case whose base checkpoint lies in `case.model`: `adapter/`, `adapter_2/`, ... and the answer.

    `run(model)` gives the answer of a model of the reference, with adapters or without; `model` is changed. Every tensor
    of an adapter must move the answer when it is zeroed (save those whose names end as one of `unseen`), and the answer
    must be far from the base model's.
    """
    names = folders(configs)
    scales = scales or [1.0] * len(configs)
    plain = run(model)
    wrapped = adapt(model, configs, seed)
    activate(wrapped, names, scales)
    expected = run(model)
    if distance(expected, plain, atol, rtol) < 10 * VISIBLE:
        raise Retry("the adapters hardly move the answer")
    for name, weight in trained(wrapped):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
        moved = distance(expected, run(model), atol, rtol)
        with torch.no_grad():
            weight.copy_(kept)
        if moved < VISIBLE and not name.endswith(tuple(unseen)):
            raise Retry(f"{name} moves the answer by {moved:.1f} tolerances only")
    wrapped.save_pretrained(case.folder, safe_serialization=safe)
    (case.folder / "README.md").unlink(missing_ok=True)
    for name in names:
        sort_sets(case.folder / name / "adapter_config.json")
    listed = [{"folder": name, "scale": scale} for name, scale in zip(names, scales)]
    case.write(f"{reference} + PEFT {peft.__version__}", call, inputs, expected, {**(options or {}), "adapters": listed},
               atol, rtol, note)
    case.check_repeats(lambda folder: with_adapters(reload(folder), case.folder, names, scales), run)


def sort_sets(path):
    """What PEFT holds as sets is written in the order of a hash that changes from run to run."""
    config = json.loads(path.read_text())
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def with_adapters(model, folder, names, scales):
    """The model with the adapters of a case's folders on it."""
    wrapped = PeftModel.from_pretrained(model, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        wrapped.load_adapter(folder / name, adapter_name=name)
    activate(wrapped, names, scales)
    wrapped.eval()
    return model


# ---------------------------------------------------------------- cases of models of transformers


def save_plain(case, model):
    """The checkpoint as transformers lays it out."""
    write_config(case.model, model.config, [type(model).__name__])
    write_safetensors(case.model, weights_of(model))


def step_case(system, build, batch, labels=("labels",), loss_fn=model_loss, save=save_plain, reference=None,
              reload=None, **rest):
    """A `train_step` case of `build(seed)` on `batch(seed, config)`; `rest` goes to `write_train_step`."""

    def attempt(name, seed):
        model = build(seed)
        inputs = batch(seed, model.config)
        case = Case(name, system)
        save(case, model)
        write_train_step(case, reference or type(model).__name__, model, loss_fn, inputs, labels,
                         reload or reload_as(type(model)), **rest)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def adapter_case(system, build, batch, fields, configs, save=save_plain, reference=None, reload=None, options=None,
                 keep=False, **rest):
    """A `forward` case of `build(seed)` with adapters of `configs` on it; `rest` goes to `write_adapters`.

    `keep` compares the last positions alone, as the forward cases of left-padded rows do.
    """

    def attempt(name, seed):
        model = build(seed)
        inputs = batch(seed, model.config)
        kept = last_shown(inputs["attention_mask"]) if keep else {}
        case = Case(name, system)
        save(case, model)
        write_adapters(case, reference or type(model).__name__, "forward", model, copy.deepcopy(configs),
                       lambda network: forward(network, inputs, fields, kept.get("logits_to_keep")), inputs,
                       reload or reload_as(type(model)), seed, {**(options or {}), **kept}, **rest)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def lora(targets, **fields):
    """A LoRA of rank 3; the scale alpha / r is 2."""
    return LoraConfig(**{"r": 3, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": targets, **fields})


def tokens(seed, config, lengths=(13, 9, 4)):
    """Rows of token ids padded on the right, and their mask."""
    mask = right_padding(lengths)
    return {"input_ids": ids(seed, mask.shape, config.vocab_size) * mask, "attention_mask": mask}


def causal_batch(seed, config, lengths=(13, 9, 4)):
    """Rows for a causal language model: labels are the ids; padding and the prompt of the first row do not count."""
    batch = tokens(seed, config, lengths)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, :4] = -100
    return {**batch, "labels": labels}
