"""Parity cases of gpt-oss: dense and packed experts, windows, YaRN, sinks, both sides of the clamp, OpenAI's own files."""

import copy
import sys

import torch
from safetensors.torch import load_file
from transformers import GptOssConfig, GptOssForCausalLM, GptOssModel, Mxfp4Config

from common import (
    Case,
    Retry,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    forward,
    generate,
    ids,
    left_padding,
    randomise,
    reload_as,
    right_padding,
    round_weights,
    run_all,
    weights_of,
    write_config,
    write_json,
    write_safetensors,
    write_sharded_safetensors,
)
from gpt import check_rows_alone, met_by_some
from training import causal_batch, lora, step_case, tokens, with_adapters, write_adapters

# A token whose last chosen expert leads the next by less could be routed otherwise by a rounding.
MARGIN = 2e-3


def rope(**keys):
    return dict(rope_parameters={"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "beta_fast": 3.0,
                                 "beta_slow": 0.5, "original_max_position_embeddings": 24, "truncate": False, **keys})


def config(**changes):
    """Odd sizes on purpose: three layers, six heads of 10 in a width of 36, a window shorter than the texts."""
    fields = dict(vocab_size=83, hidden_size=36, intermediate_size=28, num_hidden_layers=3, num_attention_heads=6,
                  num_key_value_heads=3, head_dim=10, max_position_embeddings=96, sliding_window=4,
                  num_local_experts=4, num_experts_per_tok=2, swiglu_limit=1.2, **rope())
    return GptOssConfig(**{**fields, **changes})


# ---------------------------------------------------------------- MXFP4, by its definition

NIBBLES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NIBBLES = torch.cat([NIBBLES, -NIBBLES])


def unpacked(blocks, scales):
    """Values (experts, inputs, outputs) of blocks (experts, outputs, groups, 16) and scales (experts, outputs, groups)."""
    pairs = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    values = NIBBLES[pairs.long()] * torch.exp2(scales.float() - 127)[..., None]
    return values.flatten(-2).transpose(1, 2).contiguous()


def pack_experts(model, seed):
    """Random blocks in place of every expert's matrices; gives what the file holds of them."""
    random = torch.Generator().manual_seed(seed + 7)
    packed = {}
    for name, weight in model.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        count, inputs, outputs = weight.shape
        shape = (count, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=random)
        scales = torch.randint(121, 125, shape, generator=random).to(torch.uint8)
        with torch.no_grad():
            weight.copy_(unpacked(blocks, scales))
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return packed


PACKED = dict(quantization_config={
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
})


# ---------------------------------------------------------------- OpenAI's own layout

OWN_NAMES = [("model.embed_tokens.weight", "embedding.weight"), ("lm_head.weight", "unembedding.weight"),
             ("model.norm.weight", "norm.scale"), ("model.layers.", "block."),
             ("input_layernorm.weight", "attn.norm.scale"), ("self_attn.o_proj.", "attn.out."),
             (".self_attn.", ".attn."), ("post_attention_layernorm.weight", "mlp.norm.scale"),
             ("mlp.router.", "mlp.gate."), ("mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"),
             ("mlp.experts.gate_up_proj_", "mlp.mlp1_weight."), ("mlp.experts.down_proj_bias", "mlp.mlp2_bias"),
             ("mlp.experts.down_proj_", "mlp.mlp2_weight.")]


def write_original(folder, weights):
    """As in `original/`: OpenAI's names, queries, keys and values in one."""
    own = {}
    for name, weight in weights.items():
        for theirs, ours in OWN_NAMES:
            name = name.replace(theirs, ours)
        if ".attn.q_proj." in name:
            parts = [name.replace(".q_proj.", f".{part}.") for part in ("q_proj", "k_proj", "v_proj")]
            own[name.replace("q_proj", "qkv")] = parts
        own[name] = weight
    for name, parts in [(name, parts) for name, parts in own.items() if isinstance(parts, list)]:
        own[name] = torch.cat([own.pop(part) for part in parts])
    write_safetensors(folder, own)


def original_config(cfg):
    keys = ["num_hidden_layers", "experts_per_token", "num_experts", "vocab_size", "hidden_size", "intermediate_size",
            "swiglu_limit", "head_dim", "num_attention_heads", "num_key_value_heads", "sliding_window"]
    parameters = cfg.rope_parameters
    own = {key: getattr(cfg, {"experts_per_token": "num_experts_per_tok"}.get(key, key)) for key in keys}
    return own | dict(initial_context_length=parameters["original_max_position_embeddings"],
                      rope_theta=parameters["rope_theta"], rope_scaling_factor=parameters["factor"],
                      rope_ntk_alpha=parameters["beta_slow"], rope_ntk_beta=parameters["beta_fast"])


def reload_original(cfg):
    """The same file read back by its own names into the reference."""

    def load(folder):
        own = load_file(folder / "model.safetensors")
        weights = {}
        for name, weight in own.items():
            if name.endswith(".scales"):
                continue
            if name.endswith(".blocks"):
                weight = unpacked(weight, own[name.replace(".blocks", ".scales")])
                name = name.replace("mlp1_weight.blocks", "experts.gate_up_proj")
                name = name.replace("mlp2_weight.blocks", "experts.down_proj")
            for theirs, ours in sorted(OWN_NAMES, key=lambda pair: -len(pair[1])):
                name = name.replace(ours, theirs)
            if ".qkv." in name:
                q, kv = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
                for part, rows in zip("qkv", weight.split([q, kv, kv])):
                    weights[name.replace("qkv", f"{part}_proj")] = rows
            else:
                weights[name] = weight
        model = GptOssForCausalLM(cfg)
        model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return model.eval()

    return load


# ---------------------------------------------------------------- the cases


class Watch:
    """What every expert part does while the reference answers: who is chosen, by how much, and what the clamp cuts."""

    def __init__(self, model):
        self.chosen, self.margin, self.cut = {}, float("inf"), set()
        for name, module in model.named_modules():
            if name.endswith("mlp.router"):
                module.register_forward_hook(lambda router, _, out, name=name: self.see(name, router, *out))
            if name.endswith("mlp.experts"):
                module._apply_gate = lambda pairs, experts=module: self.gate(experts, pairs)

    def see(self, name, router, logits, scores, indices):
        self.chosen.setdefault(name, set()).update(indices.flatten().tolist())
        if router.top_k < router.num_experts:
            best = logits.float().topk(router.top_k + 1).values
            self.margin = min(self.margin, (best[:, -2] - best[:, -1]).min().item())

    def gate(self, experts, pairs):
        gate, up = pairs[..., ::2], pairs[..., 1::2]
        cuts = {"gate above": gate > experts.limit, "up above": up > experts.limit, "up below": up < -experts.limit}
        self.cut |= {side for side, cut in cuts.items() if cut.any()}
        return type(experts)._apply_gate(experts, pairs)

    def check(self, model, clamps):
        if self.margin < MARGIN:
            raise Retry("a token nearly goes to another expert")
        if any(len(chosen) < model.config.num_local_experts for chosen in self.chosen.values()):
            raise Retry("an expert is never chosen")
        if clamps and len(self.cut) < 3:
            raise Retry(f"the clamp cuts {self.cut} only")


def built(model_class, seed, gain, dtype, packed, **changes):
    """A random network, and what the file holds of packed experts."""
    model = randomise(model_class(config(**changes)), seed, gain)
    random = torch.Generator().manual_seed(seed + 5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj_bias"):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=random))
            if name.endswith("sinks"):
                weight.copy_(torch.randn(weight.shape, generator=random))
    round_weights(model, dtype)
    return model, pack_experts(model, seed) if packed else {}


def old_rope_keys(cfg):
    """The keys of the released files: from before transformers 5, and a copy of a key under OpenAI's name."""
    keys = dict(cfg.rope_parameters)
    return dict(rope_theta=keys.pop("rope_theta"), rope_scaling=keys, torch_dtype="bfloat16",
                initial_context_length=keys["original_max_position_embeddings"],
                experts_per_token=cfg.num_experts_per_tok)


def save(case, model, write, dtype, packed, drop=(), extra=None, rename=None):
    weights = {name: weight for name, weight in weights_of(model, dtype).items() if f"{name}_blocks" not in packed}
    weights = {rename(name) if rename else name: weight for name, weight in (weights | packed).items()}
    case.model.mkdir(parents=True)
    if write is write_original:
        write_json(case.model / "config.json", original_config(model.config))
    else:
        extra = (extra(model.config) if extra else {}) | (PACKED if packed else {})
        write_config(case.model, model.config, [type(model).__name__], drop, **extra)
    write(case.model, weights)


def reload(model_class, cfg, write, packed):
    if write is write_original:
        return reload_original(cfg)
    options = dict(quantization_config=Mxfp4Config(dequantize=True)) if packed else {}
    return reload_as(model_class, **options)


def reference(model_class, packed):
    return model_class.__name__ + (" with Mxfp4Config(dequantize=True)" if packed else "")


def logits(model_class=GptOssForCausalLM, mask=right_padding((13, 9, 4)), positions=False, write=write_safetensors,
           dtype=torch.float32, packed=False, clamps=True, others=(), note=None, drop=(), extra=None, rename=None,
           **changes):
    """One forward pass over three padded rows."""
    fields = ["logits"] if model_class is GptOssForCausalLM else ["last_hidden_state"]

    def attempt(name, seed):
        model, blocks = built(model_class, seed, 1.6, dtype, packed, **changes)
        cfg = model.config
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, cfg.max_position_embeddings, low=0)
        run = lambda network: forward(network, inputs, fields)
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)
        watch = Watch(model)
        expected = run(model)
        watch.check(model, clamps)

        case = Case(name, "GPT")
        save(case, model, write, dtype, blocks, drop, extra, rename)
        options = {} if dtype == torch.float32 else {"dtype": "float32"}
        case.write(reference(model_class, packed), "forward", inputs, expected, options, note=note)
        case.check_repeats(reload(model_class, cfg, write, packed), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(lengths, write=write_safetensors, dtype=torch.float32, packed=False, note=None, **changes):
    """Greedy generation over left-padded rows, which either of two tokens ends."""

    def attempt(name, seed):
        model, blocks = built(GptOssForCausalLM, seed, 2.5, dtype, packed, **changes)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, model.config.vocab_size) * mask, "attention_mask": mask}
        options = {"max_new_tokens": 15, "pad_token_id": 0, "eos_token_id": 1}
        options["eos_token_id"] = [1, met_by_some(generate(model, inputs, options)["sequences"], max(lengths))]
        run = lambda network: generate(network, inputs, options)
        watch = Watch(model)
        expected = run(model)
        watch.check(model, clamps=True)
        check_rows_alone(model, inputs, options, expected["sequences"])

        case = Case(name, "GPT")
        save(case, model, write, dtype, blocks)
        case.write(reference(GptOssForCausalLM, packed), "generate", inputs, expected, options, note=note)
        case.check_repeats(reload(GptOssForCausalLM, model.config, write, packed), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def write_sharded_from_zero(folder, weights):
    write_sharded_safetensors(folder, weights, first=0)


def routed(batch, gain=1.6, **changes):
    """The network of a seed whose tokens all go clearly to their experts, every one of which is chosen."""

    def make(seed):
        model, _ = built(GptOssForCausalLM, seed, gain, torch.float32, False, **{"num_hidden_layers": 2, **changes})
        # The kernel of the other implementation knows no float64.
        model.set_experts_implementation("eager")
        watched = copy.deepcopy(model)
        watch = Watch(watched)
        with torch.no_grad():
            watched(**batch(seed, model.config))
        watch.check(model, clamps=True)
        return model

    return make


EAGER = reload_as(GptOssForCausalLM, experts_implementation="eager")


def adapted(config, packed=False, note=None):
    """One forward pass with an adapter; with `packed`, beside experts in blocks. Tokens go clearly to their experts."""

    def attempt(name, seed):
        sizes = {"num_hidden_layers": 2, **(BLOCKS if packed else {"dtype": torch.float32, "packed": False})}
        model, blocks = built(GptOssForCausalLM, seed, 1.6, **sizes)
        inputs = tokens(seed, model.config)
        run = lambda network: forward(network, inputs, ["logits"])
        load = reload(GptOssForCausalLM, model.config, write_safetensors, packed)
        case = Case(name, "GPT")
        save(case, model, write_safetensors, sizes["dtype"], blocks)
        write_adapters(case, reference(GptOssForCausalLM, packed), "forward", model, [copy.deepcopy(config)], run,
                       inputs, load, seed, {"dtype": "float32"} if packed else {}, note=note)
        again = with_adapters(load(case.model), case.folder, ["adapter"], [1.0])
        watch = Watch(again)
        run(again)
        watch.check(again, clamps=False)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


HALF = dict(dtype=torch.bfloat16)
BLOCKS = dict(packed=True, hidden_size=64, intermediate_size=32, head_dim=12, num_attention_heads=4,
              num_key_value_heads=1, **HALF)
CASES = {
    "gpt_oss/forward_old_keys": logits(
        **HALF, drop=["rope_parameters", "dtype"], extra=old_rope_keys,
        others=[{"swiglu_limit": 50.0}, {"sliding_window": 3}, {"num_experts_per_tok": 1}, {"swiglu_alpha": 1.0},
                {"layer_types": ["full_attention"] * 3}],
        note="rope_theta beside rope_scaling; dense experts in bfloat16, as converters unpack them"),
    "gpt_oss/forward_new_keys_left_padding": logits(
        mask=left_padding((13, 9, 4)), others=[rope(truncate=True), rope(factor=5.0)],
        note="left padding: what sees no token has only the sink to attend to, and is stored too"),
    "gpt_oss/forward_top_1_layer_types_absent": logits(
        num_local_experts=3, num_experts_per_tok=1, drop=["layer_types"], **rope(truncate=True),
        others=[rope(truncate=False)], note="sliding first, in turns"),
    "gpt_oss/forward_top_4_layer_types_given": logits(
        num_local_experts=6, num_experts_per_tok=4, num_hidden_layers=2,
        layer_types=["full_attention", "sliding_attention"], swiglu_alpha=1.2, rms_norm_eps=1e-2,
        others=[{"layer_types": None}, {"swiglu_alpha": 1.702}, {"rms_norm_eps": 1e-5}]),
    "gpt_oss/forward_all_experts": logits(
        num_local_experts=2, num_experts_per_tok=2, num_hidden_layers=1, note="as many as there are serve each token"),
    "gpt_oss/forward_defaults_of_the_class": logits(
        num_hidden_layers=2, max_position_embeddings=131072, swiglu_limit=7.0, rms_norm_eps=1e-5, clamps=False,
        num_experts_per_tok=4, num_local_experts=5, positions=True, rope_parameters=None,
        drop=["rope_parameters", "swiglu_limit", "swiglu_alpha", "num_experts_per_tok", "rms_norm_eps", "layer_types",
              "attention_bias", "tie_word_embeddings", "max_position_embeddings"],
        others=[rope()], note="YaRN, the clamp and the number of experts a token are the class's own"),
    "gpt_oss/forward_positions_tied_no_bias": logits(
        positions=True, tie_word_embeddings=True, attention_bias=False, num_key_value_heads=6,
        **rope(attention_factor=1.4), others=[rope()]),
    "gpt_oss/forward_plain_rope": logits(
        rope_parameters={"rope_type": "default", "rope_theta": 300.0}, num_key_value_heads=1, head_dim=14,
        others=[rope(rope_theta=300.0)]),
    "gpt_oss/hidden_state": logits(GptOssModel, note="the bare network, whose names have no prefix", **HALF),
    "gpt_oss/forward_mxfp4": logits(
        **BLOCKS, drop=["rope_parameters", "dtype"], extra=old_rope_keys, others=[{"swiglu_limit": 50.0}],
        note="as released: blocks and scales, the rest in bfloat16"),
    "gpt_oss/forward_mxfp4_three_groups": logits(
        **BLOCKS | dict(hidden_size=32, intermediate_size=96), mask=left_padding((11, 7, 5)), num_local_experts=5,
        num_experts_per_tok=3, write=write_sharded_from_zero,
        note="three shards numbered from 0 that say they are of 2, as released"),
    "gpt_oss/forward_original": logits(
        **BLOCKS, write=write_original,
        note="as original/: OpenAI's config and names; the reference's weights are the same ones renamed"),
    "gpt_oss/generate": text((8, 5, 3), note="past the window"),
    "gpt_oss/generate_mxfp4": text((9, 4), **BLOCKS),
    "gpt_oss/train_step": step_case(
        "GPT", routed(causal_batch), causal_batch, reload=EAGER,
        note="the router's auxiliary loss is off, as output_router_logits is"),
    "gpt_oss/train_step_tied": step_case(
        "GPT", routed(causal_batch, tie_word_embeddings=True, num_local_experts=3), causal_batch, reload=EAGER),
    "gpt_oss/adapter_attention": adapted(lora(["q_proj", "k_proj", "v_proj", "o_proj"])),
    "gpt_oss/adapter_dora_head": adapted(lora(["q_proj", "o_proj"], use_dora=True, modules_to_save=["lm_head"])),
    "gpt_oss/adapter_mxfp4": adapted(
        lora(["q_proj", "v_proj", "o_proj"], use_rslora=True), packed=True,
        note="beside experts in blocks and scales, the rest in bfloat16"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
