"""Parity cases of TimesFM 1.0, 2.0 and 2.5: padding, statistics, windows, flags, and the original releases' names."""

import contextlib
import sys

import torch
from peft import LoraConfig
from transformers import (
    TimesFm2_5Config,
    TimesFm2_5ModelForPrediction,
    TimesFmConfig,
    TimesFmModelForPrediction,
)

from common import (
    Case,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    reload_as,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_json,
    write_safetensors,
)
from training import write_adapters, write_train_step


def fill(model, seed, gain=1.0):
    """Random weights that keep every key in view and no branch near zero."""
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("scaling"):
                weight.copy_(0.5 + noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif "freq_emb" in name:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)
    return model.eval()


def series(seed, lengths, low=None):
    """Waves of unlike size and level; all at or above `low` if it is given."""
    random = torch.Generator().manual_seed(seed + 5)
    made = []
    for row, length in enumerate(lengths):
        t = torch.arange(length, dtype=torch.float32)
        wave = torch.sin(t * (0.4 + 0.2 * row)) + 0.03 * t + 0.2 * torch.randn(length, generator=random)
        wave = (1 + 2 * row) * wave + 4 * row * (-1) ** row
        made.append(wave if low is None else wave - wave.min() + low)
    return made


def case_of(config_class, model_class, original, defaults):
    """A maker of cases of one class. `original`: what its original release calls a tensor of transformers."""

    def forward(lengths, options=None, freq=None, low=None, constant=None, change=None, others=(), unseen=(),
                states=False, write=write_safetensors, released=False, note=None, **changes):
        options = options or {}

        @torch.inference_mode()
        def run(model, past, paces):
            paced = {} if paces is None else {"freq": paces}
            out = model(past_values=past, **paced, **options)
            fields = ["mean_predictions", "full_predictions"] + (["last_hidden_state"] if states else [])
            return {field: out[field] for field in fields}

        def attempt(name, seed):
            cfg = config_class(**{**defaults, **changes})
            model = fill(model_class(cfg), seed)
            past = series(seed, lengths, low)
            if constant is not None:
                past[constant] = torch.full_like(past[constant], 3.25)
            if change:
                change(past)
            answer = lambda m: run(m, past, freq)
            check_every_weight_matters(model, answer, unseen)
            check_options_matter(model, answer, others)
            case = Case(name, "TimeGPT")
            inputs = {f"past_values.{i}": one for i, one in enumerate(past)}
            if freq is not None:
                inputs["freq"] = torch.tensor(freq)
            said = dict(options)
            if released:
                case.model.mkdir(parents=True)
                (original if released is True else released)(case.model, model, said)
            else:
                write_config(case.model, model.config, [model_class.__name__])
                write(case.model, weights_of(model))
            case.write(model_class.__name__, "forward", inputs, answer(model), said, note=note)
            if not released:
                case.check_repeats(reload_as(model_class), answer)
            else:
                case.check_repeats(lambda folder: model, answer)

        return lambda name: first_good(name, lambda seed: attempt(name, seed))

    return forward


# ---------------------------------------------------------------- training and adapters


def past_of(inputs):
    """The series of a batch, and their paces where it has them."""
    past = [inputs[name] for name in sorted(inputs) if name.startswith("past_values.")]
    return {"past_values": past} | ({"freq": inputs["freq"].tolist()} if "freq" in inputs else {})


@contextlib.contextmanager
def own_softmax():
    """The classes compute softmax in float32 whatever they hold; a mask of float64 would overflow it."""
    plain = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda values, dim, dtype=None: plain(values, dim=dim)
    yield
    torch.nn.functional.softmax = plain


def forecast_loss(model, batch):
    with own_softmax():
        return model(**past_of(batch), future_values=batch["future_values"]).loss


def batch_of(seed, lengths, freq, horizon, size=1.0):
    """Series of unlike lengths, and what follows each."""
    whole = [size * one for one in series(seed, [length + horizon for length in lengths])]
    inputs = {f"past_values.{i}": one[:-horizon] for i, one in enumerate(whole)}
    inputs |= {} if freq is None else {"freq": torch.tensor(freq)}
    return inputs, torch.stack([one[-horizon:] for one in whole])


def trained(config_class, model_class, defaults, lengths, freq=None, horizon=8, size=1.0, unseen=(), note=None,
            **changes):
    """A step on the loss of the class: of the forecast's mean the squared error, and of its quantiles the pinball loss."""

    def attempt(name, seed):
        model = fill(model_class(config_class(**{**defaults, "num_hidden_layers": 2, **changes})), seed)
        inputs, future = batch_of(seed, lengths, freq, horizon, size)
        case = Case(name, "TimeGPT")
        write_config(case.model, model.config, [model_class.__name__])
        write_safetensors(case.model, weights_of(model))
        write_train_step(case, model_class.__name__, model, forecast_loss, inputs | {"future_values": future},
                         ["future_values"], reload_as(model_class), unseen=unseen, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def with_adapter(config_class, model_class, defaults, settings, lengths, freq=None, unseen=(), note=None, **changes):
    @torch.inference_mode()
    def run(model, inputs):
        out = model(**past_of(inputs))
        return {field: out[field] for field in ("mean_predictions", "full_predictions")}

    def attempt(name, seed):
        model = fill(model_class(config_class(**{**defaults, "num_hidden_layers": 2, **changes})), seed)
        inputs, _ = batch_of(seed, lengths, freq, 1)
        case = Case(name, "TimeGPT")
        write_config(case.model, model.config, [model_class.__name__])
        write_safetensors(case.model, weights_of(model))
        write_adapters(case, model_class.__name__, "forward", model, [LoraConfig(**settings)], lambda m: run(m, inputs),
                       inputs, reload_as(model_class), seed, unseen=unseen, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def original_patched(folder, model, said):
    """The file of the timesfm package, 1.0 and 2.0: fused projections, other names, no config."""
    weights, out = weights_of(model), {}
    for name, weight in weights.items():
        name = name.removeprefix("decoder.")
        name = name.replace("ff_layer.input_layer.", "ff_layer.hidden_layer.0.")
        if name.startswith("layers."):
            name = f"stacked_transformer.{name}"
        if "_proj" in name and any(f"self_attn.{part}_proj" in name for part in "qkv"):
            continue
        if "position_emb" not in name:
            out[name] = weight
    for layer in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [weights[f"decoder.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            out[f"stacked_transformer.layers.{layer}.self_attn.qkv_proj.{kind}"] = torch.cat(parts)
    torch.save(out, folder / "torch_model.ckpt")
    said["weights"] = "torch_model.ckpt"


NAMES_2_5 = {
    "self_attn.o_proj": "attn.out", "mlp.fc1": "ff0", "mlp.fc2": "ff1", "self_attn.scaling": "attn.per_dim_scale.per_dim_scale",
    "self_attn.q_norm.weight": "attn.query_ln.scale", "self_attn.k_norm.weight": "attn.key_ln.scale",
    "input_layernorm.weight": "pre_attn_ln.scale", "post_attention_layernorm.weight": "post_attn_ln.scale",
    "pre_feedforward_layernorm.weight": "pre_ff_ln.scale", "post_feedforward_layernorm.weight": "post_ff_ln.scale",
}


def original_2_5(folder, model, said):
    """The file of the timesfm package, 2.5: fused projections, other names, no config."""
    weights, out = weights_of(model), {}
    for name, weight in weights.items():
        if any(f"self_attn.{part}_proj" in name for part in "qkv"):
            continue
        name = name.replace("model.input_ff_layer", "tokenizer").replace("input_layer.", "hidden_layer.")
        name = name.replace("model.layers.", "stacked_xf.")
        for new, old in NAMES_2_5.items():
            name = name.replace(new, old)
        out[name] = weight
    for layer in range(model.config.num_hidden_layers):
        parts = [weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        out[f"stacked_xf.{layer}.attn.qkv_proj.weight"] = torch.cat(parts)
    write_safetensors(folder, out)


def hub_2_5(folder, model, said):
    """The same with the config that lies beside it on the hub: it names the earlier kind, and a reach for the quantiles."""
    original_2_5(folder, model, said)
    config = model.config
    fields = {key: getattr(config, key) for key in (
        "context_length", "head_dim", "hidden_size", "horizon_length", "intermediate_size", "num_attention_heads",
        "num_hidden_layers", "patch_length", "quantiles", "rms_norm_eps")}
    fields |= {"architectures": ["TimesFmModelForPrediction"], "model_type": "timesfm", "torch_compile": False,
               "quantile_horizon_length": config.output_quantile_len}
    write_json(folder / "config.json", fields)


def write_hub_names(folder, weights):
    """transformers' layout as the hub stores it: the feed-forward maps keep their first names."""
    named = {name.replace("mlp.fc1.", "mlp.ff0.").replace("mlp.fc2.", "mlp.ff1."): weight
             for name, weight in weights.items()}
    write_safetensors(folder, named)


def mark_gaps(past):
    past[0][5:9] = 1123581321.0


PATCHED = (TimesFmConfig, TimesFmModelForPrediction, dict(
    patch_length=5, context_length=30, horizon_length=8, freq_size=4, num_hidden_layers=3, hidden_size=26,
    intermediate_size=37, head_dim=6, num_attention_heads=3, rms_norm_eps=3e-6, quantiles=[0.1, 0.4, 0.5, 0.9],
    min_timescale=2, max_timescale=500))
V2_5 = (TimesFm2_5Config, TimesFm2_5ModelForPrediction, dict(
    patch_length=5, context_length=40, horizon_length=8, num_hidden_layers=2, hidden_size=24, intermediate_size=37,
    head_dim=6, num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=3e-6, quantiles=[0.1, 0.3, 0.5, 0.7, 0.9],
    output_quantile_len=12, decode_index=3, rope_parameters={"rope_type": "default", "rope_theta": 300.0}))
patched = case_of(*PATCHED[:2], original_patched, PATCHED[2])
v2_5 = case_of(*V2_5[:2], original_2_5, V2_5[2])
# A bias on keys shifts a softmax.
KEYS = ("k_proj.bias",)

CASES = {
    "timesfm/patched_lengths": patched((17, 30, 41, 2), freq=[0, 3, 1, 2], states=True, unseen=KEYS,
                                       others=[{"use_positional_embedding": True}],
                                       note="shorter and longer than the context; two values only, fewer than make statistics"),
    "timesfm/patched_positions": patched((17, 30, 11), use_positional_embedding=True, unseen=KEYS, states=True),
    "timesfm/patched_on_context": patched((17, 38), {"return_forecast_on_context": True}, unseen=KEYS,
                                          note="forecasts on padding too, which see the mean of all patches"),
    "timesfm/patched_on_context_positions": patched((7, 30), {"return_forecast_on_context": True}, unseen=KEYS,
                                                    horizon_length=3, use_positional_embedding=True, write=write_bin),
    "timesfm/patched_window": patched((23, 34), {"window_size": 4}, freq=[2, 1], unseen=KEYS),
    "timesfm/patched_window_truncated": patched((23, 30), {"window_size": 3, "truncate_negative": True}, low=0.0,
                                                unseen=KEYS),
    "timesfm/patched_truncated": patched((23, 30), {"truncate_negative": True}, low=0.0, unseen=KEYS),
    "timesfm/patched_not_truncated": patched((23, 30), {"truncate_negative": True}, unseen=KEYS,
                                             note="one value below 0 keeps all as they are"),
    "timesfm/patched_constant": patched((23, 19), constant=1, unseen=KEYS, note="a spread of 0 is floored"),
    "timesfm/patched_marked_gaps": patched((25, 30), change=mark_gaps, unseen=KEYS,
                                           note="pad_val inside a series marks a gap, a whole patch of it too"),
    "timesfm/patched_shorter_context": patched((23, 30), {"forecast_context_len": 15}, unseen=KEYS),
    "timesfm/patched_original": patched(
        (40, 530), released=True, unseen=KEYS, context_length=512, use_positional_embedding=True,
        quantiles=[i / 10 for i in range(1, 10)], min_timescale=1, max_timescale=10000, patch_length=16, rms_norm_eps=1e-6,
        note="the names of the timesfm package, and a geometry told by the tensors alone"),
    "timesfm/v2_5_lengths": v2_5((17, 40, 53, 3), others=[{"decode_index": 2}, {"force_flip_invariance": False}],
                                 note="shorter and longer than the context"),
    "timesfm/v2_5_whole_context": v2_5((40, 44), states=True),
    "timesfm/v2_5_no_flip": v2_5((17, 40), {"force_flip_invariance": False}),
    "timesfm/v2_5_flip_by_option": v2_5((17, 40), {"force_flip_invariance": True}, force_flip_invariance=False),
    "timesfm/v2_5_positive": v2_5((23, 31), low=0.0, note="infer_is_positive is on by default"),
    "timesfm/v2_5_positive_by_option": v2_5((23, 31), {"truncate_negative": False}, low=0.0),
    "timesfm/v2_5_window": v2_5((23, 41), {"window_size": 4}),
    "timesfm/v2_5_grouped_heads_and_biases": v2_5((17, 40), num_key_value_heads=2, attention_bias=True, use_bias=True,
                                                  activation="gelu", unseen=KEYS),
    "timesfm/v2_5_no_quantile_head": v2_5((17, 40), use_continuous_quantile_head=False,
                                          unseen=("output_projection_quantiles.input_layer.weight",
                                                  "output_projection_quantiles.output_layer.weight",
                                                  "output_projection_quantiles.residual_layer.weight")),
    "timesfm/v2_5_short_quantile_head": v2_5((17, 40), output_quantile_len=5, write=write_bin),
    "timesfm/v2_5_constant": v2_5((23, 40), constant=1, note="a whole row that does not move"),
    "timesfm/v2_5_shorter_context": v2_5((23, 30), {"forecast_context_len": 25}),
    "timesfm/v2_5_original": v2_5(
        (90, 200), released=True, context_length=16384, quantiles=[i / 10 for i in range(1, 10)], decode_index=5,
        patch_length=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-6,
        note="the names of the timesfm package, and a geometry told by the tensors alone"),
    "timesfm/v2_5_hub_config": v2_5(
        (90, 200), released=hub_2_5, context_length=160, quantiles=[i / 10 for i in range(1, 10)], decode_index=5,
        patch_length=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-6,
        note="the names of the timesfm package beside the hub's config, which says timesfm"),
    "timesfm/v2_5_hub_names": v2_5((17, 40), write=write_hub_names, note="ff0 and ff1, as the hub's files in transformers' layout"),
    "timesfm/train_step_patched": trained(
        *PATCHED, (17, 30, 41, 7), freq=[0, 3, 1, 2], size=0.1, unseen=KEYS,
        note="the loss is of values as they are, not of normalized ones"),
    "timesfm/train_step_v2_5": trained(
        *V2_5, (17, 40, 53), horizon=6,
        note="the loss is of normalized values; a horizon cut short; the quantiles' levels stand in the order of the "
             "outputs less decode_index"),
    "timesfm/train_step_v2_5_no_quantile_head": trained(
        *V2_5, (23, 31), use_continuous_quantile_head=False, force_flip_invariance=False, num_key_value_heads=2,
        attention_bias=True),
    "timesfm/adapter_patched_patterns": with_adapter(
        *PATCHED, dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
                       rank_pattern={"layers.1.self_attn.q_proj": 5, "down_proj": 2},
                       alpha_pattern={"gate_proj": 1, "v_proj": 9}), (17, 30), freq=[2, 0]),
    "timesfm/adapter_v2_5_modules_to_save": with_adapter(
        *V2_5, dict(r=2, lora_alpha=3, lora_bias=False, use_rslora=True, modules_to_save=["output_projection_point"],
                    target_modules=r"model\.layers\.\d\.(self_attn\.[qkvo]_proj|mlp\.fc[12])"), (17, 40),
        note="the modules are said by an expression"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
