"""What every family's generator shares: random weights, checkpoint layouts, the case folder and its checks.

A case is built in four steps, all decided by its seed:

1. a tiny model of the reference, every weight random (norms, biases and zero-initialised parts too);
2. a checkpoint folder in one of the layouts that official releases use;
3. the reference's answer, checked: every weight must move it, and every configuration value that the case
   is about must move it;
4. the case folder, and the same answer once more from a model loaded back from that folder; its weights, which a seed
   gives again, are then replaced by that seed (`seeded.py`).
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import seeded

CASES = Path(__file__).resolve().parent.parent
REFERENCE = f"transformers {transformers.__version__}"

# A change below this many tolerances could pass unseen, so a weight or an option that moves the answer
# by less is an error of the generator.
VISIBLE = 10

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def seed_of(name):
    """A seed that depends on the case's name alone, so that adding a case changes no other."""
    return zlib.crc32(name.encode())


def randomise(model, seed, gain=1.3):
    """Fills every parameter with values that keep activations near one and no branch near zero.

    The reference's plain attention answers: its fused attention gives other values to a query that may see no key.
    """
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    done = set()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.data_ptr() in done:
                continue
            done.add(weight.data_ptr())
            noise = torch.randn(weight.shape, generator=random)
            is_norm = any(part in name.lower() for part in ("norm", "ln_"))
            if weight.dim() == 1 and is_norm and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif is_embedding(name):
                weight.copy_(0.7 * noise)
            else:
                fan_in = weight.shape[0] if is_conv1d(model, name) else weight.shape[1]
                weight.copy_(gain * noise / fan_in**0.5)
    return model.eval()


def round_weights(model, dtype):
    """Rounds every weight to what a file of `dtype` can hold; the model goes on computing in float32."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    model.config.dtype = dtype


def is_embedding(name):
    return any(part in name for part in ("embed", "wte", "wpe"))


def is_conv1d(model, name):
    """Whether the weight belongs to a Conv1D of GPT-1 or GPT-2, which stores (in, out)."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return type(owner).__name__ == "Conv1D"


def ids(seed, shape, vocab, low=3):
    """Token ids from `low` up, so that the special ids are left to the case."""
    return torch.randint(low, vocab, shape, generator=torch.Generator().manual_seed(seed + 1))


def right_padding(lengths):
    """A mask of one row per length, padded on the right."""
    steps = torch.arange(max(lengths))
    return torch.stack([(steps < length).long() for length in lengths])


def left_padding(lengths):
    """A mask of one row per length, padded on the left."""
    return right_padding(lengths).flip(1)


# ---------------------------------------------------------------- the reference's answer


@torch.inference_mode()
def forward(model, inputs, fields, keep=None):
    """The named output fields of one forward pass, in float32 on contiguous memory; the last `keep` positions."""
    output = model(**inputs)
    last = slice(-keep if keep else None, None)
    return {field: output[field][:, last].float().contiguous().clone() for field in fields}


def last_shown(mask):
    """The options that keep the positions no row pads on the left: what stands before them is the kernel's affair."""
    return {} if mask[:, 0].all() else {"logits_to_keep": int(mask.sum(1).min())}


@torch.inference_mode()
def generate(model, inputs, options, margin=2e-3):
    """Greedy continuation; refuses one that rests on a near-tie or that repeats itself."""
    output = model.generate(
        **inputs, **options, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    eos = set(as_list(options.get("eos_token_id", model.generation_config.eos_token_id)))
    prompt = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    for row in output.sequences[:, prompt:].tolist():
        real = row[: next((i for i, token in enumerate(row) if token in eos), len(row))]
        if len(set(real)) < min(4, len(real)) or len(real) < 2:
            raise Retry("a row repeats itself")
    for step, logits in enumerate(output.logits):
        best, second = logits.float().topk(2).values.T
        alive = [not eos & set(row[prompt : prompt + step]) for row in output.sequences.tolist()]
        if (best - second)[torch.tensor(alive)].min() < margin if any(alive) else False:
            raise Retry("a step is a near-tie")
    return {"sequences": output.sequences.clone()}


class Retry(Exception):
    """These random weights make a poor case; the next seed may do better."""


def first_good(name, build, attempts=200):
    """`build(seed)` for the first seed that does not ask for another."""
    for attempt in range(attempts):
        try:
            return build(seed_of(name) + attempt)
        except Retry as reason:
            last = reason
    raise RuntimeError(f"{name}: no good seed in {attempts}: {last}")


def as_list(value):
    return [] if value is None else value if isinstance(value, list) else [value]


# ---------------------------------------------------------------- checks


def distance(a, b, atol=1e-4, rtol=1e-3):
    """How many tolerances two answers lie apart, at the worst element; what is no number lies infinitely far."""
    worst = 0.0
    for field, value in a.items():
        if value.shape != b[field].shape:
            return float("inf")
        if value.is_floating_point():
            limit = atol + rtol * value.abs()
            apart = ((value - b[field]).abs() / limit).max().item()
            worst = max(worst, apart if apart == apart else float("inf"))
        elif not torch.equal(value, b[field]):
            return float("inf")
    return worst


def check_every_weight_matters(model, run, unseen=()):
    """Changes one parameter at a time and asks that the answer moves.

    `unseen` names, by their ends, parameters that cannot move it (a bias on keys shifts a softmax).
    """
    expected = run(model)
    for name, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(kept.flip(0) * 2 + 0.5)
        moved = distance(expected, run(model))
        with torch.no_grad():
            weight.copy_(kept)
        if name.endswith(tuple(unseen)):
            continue
        if moved < VISIBLE:
            raise Retry(f"{name} moves the answer by {moved:.1f} tolerances only")


def check_options_matter(model, run, others):
    """Rebuilds the model with each of `others` changed in its configuration and asks that the answer moves."""
    expected = run(model)
    for change in others:
        config = type(model.config).from_dict({**model.config.to_dict(), **change})
        other = type(model)(config)
        other.set_attn_implementation("eager")
        other.load_state_dict(model.state_dict(), strict=False)
        moved = distance(expected, run(other.eval()))
        if moved < VISIBLE:
            raise Retry(f"{change} moves the answer by {moved:.1f} tolerances only")


# ---------------------------------------------------------------- checkpoint folders


def weights_of(model, dtype=torch.float32):
    """The tensors as a release stores them: tied copies left out, everything contiguous."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    return {
        name: weight.detach().to(dtype).contiguous().clone()
        for name, weight in model.state_dict().items()
        if name not in tied
    }


def write_config(folder, config, architectures=None, drop=(), **extra):
    """`config.json` of the reference, less the keys in `drop`, with `extra` keys."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads(config.to_json_string(use_diff=False))
    if architectures:
        fields["architectures"] = architectures
    for key in drop:
        fields.pop(key)
    fields.update(extra)
    write_json(folder / "config.json", fields)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_safetensors(folder, weights):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_bin(folder, weights):
    torch.save(weights, folder / "pytorch_model.bin")


def read_weights(folder):
    """The tensors of a folder with a single weight file."""
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def write_shards(folder, weights, stem, suffix, save, shards=3, first=1):
    """Several weight files, numbered from `first` to the number they say is the last, and the index that maps each name
    to its file."""
    names = list(weights)
    index, size = {}, 0
    for number in range(shards):
        file = f"{stem}-{number + first:05}-of-{shards + first - 1:05}.{suffix}"
        part = {name: weights[name] for name in names[number::shards]}
        save(part, folder / file)
        index.update(dict.fromkeys(part, file))
        size += sum(weight.nbytes for weight in part.values())
    write_json(
        folder / f"{stem}.{suffix}.index.json",
        {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))},
    )


def write_sharded_safetensors(folder, weights, first=1):
    write_shards(folder, weights, "model", "safetensors",
                 lambda part, path: save_file(part, path, metadata={"format": "pt"}), first=first)


def write_sharded_bin(folder, weights):
    write_shards(folder, weights, "pytorch_model", "bin", torch.save)


# ---------------------------------------------------------------- the case


class Case:
    """One case folder being written."""

    def __init__(self, name, system):
        self.name, self.system = name, system
        self.folder = CASES / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.model = self.folder / "model"

    def write(self, reference, call, inputs, expected, options=None, atol=1e-4, rtol=1e-3, note=None):
        """Writes inputs, answer and `case.json`; refuses an answer that is empty, constant or not finite."""
        for field, value in expected.items():
            varies = value.numel() == 1 or value.is_floating_point() and value.std() > 0
            if value.is_floating_point() and not (value.isfinite().all() and varies):
                raise RuntimeError(f"{self.name}: {field} is constant or not finite")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous().clone() for k, v in inputs.items()}, self.folder / "inputs.safetensors")
        save_file({k: v.contiguous().clone() for k, v in expected.items()}, self.folder / "expected.safetensors")
        case = {
            "system": self.system,
            "reference": f"{REFERENCE} {reference}",
            "call": call,
            "options": options or {},
            "atol": atol,
            "rtol": rtol,
        }
        if note:
            case["note"] = note
        (self.folder / "case.json").write_text(json.dumps(case, indent=2, ensure_ascii=False) + "\n")

    def check_repeats(self, reload, run):
        """Loads the folder again in the reference and asks for the stored answer."""
        stored = load_file(self.folder / "expected.safetensors")
        again = run(reload(self.model))
        shared = {field: again[field] for field in stored if field in again}
        if not shared:
            raise RuntimeError(f"{self.name}: the second answer has none of the stored fields")
        off = distance({field: stored[field] for field in shared}, shared, atol=1e-5, rtol=1e-5)
        if off > 1:
            raise RuntimeError(f"{self.name}: the answer does not repeat ({off:.2f} tolerances)")
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        print(f"{self.name:44} {size / 1024:7.0f} KiB   repeats within {off:.2f} of 1e-5")


def reload_as(auto_class, **options):
    """A loader for `check_repeats`: float32, and no tensor may be missing or made up."""

    def load(folder):
        model, info = auto_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise RuntimeError(f"{folder}: {info}")
        return model.eval()

    return load


def run_all(cases, only):
    """Runs the generators whose case names contain one of `only` (all without it)."""
    for name, make in cases.items():
        if not only or any(part in name for part in only):
            make(name)
            seeded.pack_case(CASES / name)
