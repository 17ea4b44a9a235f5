"""Adapters as peft writes them, with the weights that peft merges them to.

    python adapters.py                 writes the cases of shared/tests/adapters
    python adapters.py check FOLDER    loads what fauna wrote of these cases (FOLDER/CASE) with peft, and compares

A case is the folder that `save_pretrained` wrote of an adapter on a tiny random model, with two files more:
`base.safetensors` has the tensors of the base model that the adapter changes, `merged.safetensors` the same tensors
after `merge_and_unload`. Where adapters are merged with scales, `scales.json` has them in order.

Written with the packages of requirements.txt.
"""

import json
import os
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

CASES = Path(__file__).resolve().parents[3] / "shared" / "tests" / "adapters"
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
warnings.filterwarnings("ignore")


class Convolutions(nn.Module):
    """Convolutions of every kind that peft adapts, one after the other in no model."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (3, 2))
        self.point = nn.Conv2d(4, 5, 1)
        self.line = nn.Conv1d(4, 6, 3)
        self.volume = nn.Conv3d(2, 3, (2, 1, 2))


class Head(nn.Module):
    """Linear layers with and without a bias, and a head that is trained in full."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 4, bias=False)
        self.score = nn.Linear(4, 3)


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=11, max_position_embeddings=16, tie_word_embeddings=False,
        )
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8)
    )


# Name of the case: the base model, and what its adapter's config says.
SINGLE = {
    "linear": (llama, dict(r=2, lora_alpha=5, lora_dropout=0.1, target_modules=["q_proj", "down_proj"])),
    "rslora": (llama, dict(r=3, lora_alpha=4, use_rslora=True, target_modules=["v_proj"])),
    "patterns": (
        llama,
        dict(
            r=2,
            lora_alpha=4,
            target_modules=r".*\.(self_attn|mlp)\.(q|v|up)_proj",
            # In the order of the file, which sorts them: the first that matches counts.
            rank_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 3, r"layers\.1\..*_proj": 4, "v_proj": 1},
            alpha_pattern={r"(?!.*up).*layers\.(\d)\.[a-z_]+\.q_proj": 7, "mlp.up_proj": 3},
        ),
    ),
    "layers": (
        llama,
        dict(
            r=1,
            target_modules=["q_proj", "k_proj", "up_proj"],
            exclude_modules=["k_proj"],
            layers_to_transform=[1],
            layers_pattern="layers",
        ),
    ),
    "all_linear": (llama, dict(r=1, target_modules="all-linear", task_type="CAUSAL_LM")),
    "dora": (llama, dict(r=2, lora_alpha=3, use_dora=True, target_modules=["o_proj", "gate_proj"])),
    "conv1d": (gpt2, dict(r=2, lora_alpha=3, fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])),
    "conv1d_dora": (gpt2, dict(r=2, use_dora=True, fan_in_fan_out=True, target_modules=["c_attn"])),
    "embedding": (llama, dict(r=2, lora_alpha=3, target_modules=["embed_tokens", "q_proj"])),
    "embedding_dora": (llama, dict(r=2, use_dora=True, target_modules=["embed_tokens"])),
    "convolutions": (Convolutions, dict(r=2, lora_alpha=3, target_modules=["wide", "point", "line", "volume"])),
    "convolutions_dora": (Convolutions, dict(r=2, use_dora=True, target_modules=["wide", "point", "line", "volume"])),
    "lora_bias": (Head, dict(r=2, lora_alpha=3, lora_bias=True, target_modules=["inner"])),
    "modules_to_save": (Head, dict(r=2, target_modules=["inner"], modules_to_save=["score"])),
    "bias_all": (Head, dict(r=2, bias="all", target_modules=["inner"], modules_to_save=["score"])),
    "bias_lora_only": (Head, dict(r=2, bias="lora_only", target_modules=["inner", "outer"])),
    "pickled": (Head, dict(r=2, lora_alpha=3, target_modules=["inner", "outer"])),
    "half": (Head, dict(r=2, lora_alpha=3, target_modules=["inner", "outer"])),
}

# Adapters that are merged one after the other, each with its scale.
SEVERAL = {
    "several": (
        llama,
        {
            "plain": (dict(r=2, target_modules=["q_proj"]), 0.5),
            "dora": (dict(r=1, lora_alpha=2, use_dora=True, target_modules=["q_proj", "v_proj"]), 1.5),
            "last": (dict(r=2, use_rslora=True, target_modules=["q_proj"]), -0.25),
        },
    ),
}


def base_of(name, build):
    """The base model of a case, every weight random."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) / 2)
    return model


def randomise(model, name):
    """Moves what an adapter trains: its factors, magnitudes and biases, and the modules that it saves."""
    torch.manual_seed(zlib.crc32(name.encode()) + 1)
    with torch.no_grad():
        for _, weight in sorted((n, w) for n, w in model.named_parameters() if w.requires_grad):
            weight.add_(torch.randn(weight.shape) / 3)


def clean(folder):
    for path in folder.iterdir():
        if path.is_dir():
            clean(path)
        elif path.name not in FILES:
            path.unlink()


def save_weights(folder, base, merged):
    changed = sorted(name for name in merged if not torch.equal(base[name], merged[name]))
    assert changed, folder
    for file, tensors in (("base", base), ("merged", merged)):
        save_file({name: tensors[name].clone() for name in changed}, folder / f"{file}.safetensors")


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write_single(name, build, options):
    folder = CASES / name
    base = state(base_of(name, build))
    model = get_peft_model(base_of(name, build), LoraConfig(**options))
    randomise(model, name)
    if name == "half":
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_A.to(torch.float16)
                module.lora_B.to(torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=name != "pickled")
    clean(folder)
    merged = PeftModel.from_pretrained(base_of(name, build), folder).merge_and_unload()
    save_weights(folder, base, state(merged))


def write_several(name, build, adapters):
    folder = CASES / name
    base = state(base_of(name, build))
    model = None
    for adapter, (options, _) in adapters.items():
        config = LoraConfig(**options)
        if model is None:
            model = get_peft_model(base_of(name, build), config, adapter_name=adapter)
        else:
            model.add_adapter(adapter, config)
        model.set_adapter(adapter)
        randomise(model, f"{name}/{adapter}")
    model.save_pretrained(folder)
    clean(folder)
    scales = {adapter: scale for adapter, (_, scale) in adapters.items()}
    save_weights(folder, base, state(merge_scaled(base_of(name, build), folder, scales)))
    (folder / "scales.json").write_text(json.dumps(scales) + "\n")


def merge_scaled(base, folder, scales):
    model = None
    for adapter, scale in scales.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder / adapter, adapter_name=adapter)
        else:
            model.load_adapter(folder / adapter, adapter_name=adapter)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(adapter, scale)
    return model.merge_and_unload(adapter_names=list(scales))


def load_strictly(base, folder):
    """The model with the adapter of `folder`; refuses tensors that peft does not find, or does not know."""
    model = get_peft_model(base, peft.PeftConfig.from_pretrained(folder))
    result = model.load_adapter(folder, adapter_name="default")
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    assert not missing and not result.unexpected_keys, (folder, missing, result.unexpected_keys)
    return model


def options_of(config):
    """The options, with lists where one item may stand for a list."""
    lists = ("layers_pattern", "layers_to_transform")
    return {k: [v] if k in lists and isinstance(v, (str, int)) else v for k, v in config.to_dict().items()}


def compare(folder, merged, expected):
    for name, wanted in expected.items():
        error = (merged[name] - wanted).abs().max().item()
        assert error <= 1e-6, (folder, name, error)


def check(root):
    for name, (build, options) in SINGLE.items():
        expected = load_file(CASES / name / "merged.safetensors")
        model = load_strictly(base_of(name, build), root / name)
        written = options_of(model.peft_config["default"])
        original = options_of(peft.PeftConfig.from_pretrained(CASES / name))
        assert written == original, (name, {k: (v, original[k]) for k, v in written.items() if v != original[k]})
        compare(root / name, state(model.merge_and_unload()), expected)
    for name, (build, adapters) in SEVERAL.items():
        scales = {adapter: scale for adapter, (_, scale) in adapters.items()}
        merged = state(merge_scaled(base_of(name, build), root / name, scales))
        compare(root / name, merged, load_file(CASES / name / "merged.safetensors"))
    print(f"peft {peft.__version__} loads {len(SINGLE) + len(SEVERAL)} cases with equal weights")


def main():
    if sys.argv[1:2] == ["check"]:
        return check(Path(sys.argv[2]))
    # The order of sets, in which peft writes target_modules, depends on it.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    shutil.rmtree(CASES, ignore_errors=True)
    for name, case in SINGLE.items():
        write_single(name, *case)
    for name, case in SEVERAL.items():
        write_several(name, *case)


if __name__ == "__main__":
    main()
