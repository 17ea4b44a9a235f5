"""Parity cases of MPT and GPT-NeoX: both residual forms, shares of rotary heads, slopes, layouts, generation."""

import sys

import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel, MptConfig, MptForCausalLM, MptModel

from common import (
    Case,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    forward,
    generate,
    ids,
    last_shown,
    left_padding,
    randomise,
    reload_as,
    right_padding,
    round_weights,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_safetensors,
    write_sharded_bin,
)
from training import adapter_case, causal_batch, lora, step_case, tokens

CONFIGS = {GPTNeoXForCausalLM: GPTNeoXConfig, GPTNeoXModel: GPTNeoXConfig, MptForCausalLM: MptConfig,
           MptModel: MptConfig}
SIZES = {
    # Three heads of 12.
    GPTNeoXConfig: dict(vocab_size=89, hidden_size=36, intermediate_size=50, num_hidden_layers=3,
                        num_attention_heads=3, max_position_embeddings=40, bos_token_id=0, eos_token_id=1),
    # Three heads of 10: slopes of another number than a power of two.
    MptConfig: dict(vocab_size=83, d_model=30, n_heads=3, n_layers=3, max_seq_len=40),
}


def config(model_class, **changes):
    kind = CONFIGS[model_class]
    return kind(**{**SIZES[kind], **changes})


class NormedQkv(nn.Module):
    """Queries and keys of MPT-1B, normalised over the full width: what transformers' class leaves out."""

    def __init__(self, plain, width, eps):
        super().__init__()
        self.plain = plain
        self.q_ln = nn.LayerNorm(width, eps=eps, bias=False)
        self.k_ln = nn.LayerNorm(width, eps=eps, bias=False)

    def forward(self, x):
        q, k, v = self.plain(x).chunk(3, dim=-1)
        return torch.cat([self.q_ln(q), self.k_ln(k), v], dim=-1)


def with_norms(model):
    for block in model.transformer.blocks:
        block.attn.Wqkv = NormedQkv(block.attn.Wqkv, model.config.d_model, model.config.layer_norm_epsilon)
    return model


def earlier_name(name):
    """As Mosaic's code named the tensors of MPT-1B."""
    for now, then in [("attn.Wqkv.plain.", "attn.Wqkv."), ("attn.Wqkv.q_ln.", "attn.q_ln."),
                      ("attn.Wqkv.k_ln.", "attn.k_ln."), ("norm_1.", "ln_1."), ("norm_2.", "ln_2."),
                      ("ffn.up_proj.", "mlp.mlp_up."), ("ffn.down_proj.", "mlp.mlp_down."), ("norm_f.", "ln_f.")]:
        name = name.replace(now, then)
    return name


def buffers_of_neox(cfg):
    n = cfg.max_position_embeddings
    mask = torch.tril(torch.ones(n, n, dtype=torch.uint8)).view(1, 1, n, n)
    out = {}
    for i in range(cfg.num_hidden_layers):
        at = f"gpt_neox.layers.{i}.attention."
        out |= {at + "bias": mask.clone(), at + "masked_bias": torch.tensor(-1e9),
                at + "rotary_emb.inv_freq": torch.rand(3)}
    return out


def old_rope_keys(cfg):
    """The keys of files from before transformers 5."""
    keys = cfg.rope_parameters
    return dict(rotary_pct=keys["partial_rotary_factor"], rotary_emb_base=keys["rope_theta"])


def save(case, model_class, model, write, rename=None, buffers=None, dtype=torch.float32, drop=(), extra=None):
    extra = extra(model.config) if callable(extra) else dict(extra or {})
    architectures = extra.pop("architectures", [model_class.__name__])
    write_config(case.model, model.config, architectures, drop, **extra)
    weights = weights_of(model, dtype)
    if model_class is GPTNeoXForCausalLM and "lm_head.weight" in weights:
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    weights = {(rename or (lambda name: name))(name): weight for name, weight in weights.items()}
    write(case.model, weights | (buffers(model.config) if buffers else {}))


def logits(model_class, mask=right_padding((13, 9, 4)), positions=False, write=write_safetensors, rename=None,
           buffers=None, dtype=torch.float32, others=(), note=None, drop=(), extra=None, edit=None, **changes):
    """One forward pass over three padded rows."""
    fields = ["logits"] if "CausalLM" in model_class.__name__ else ["last_hidden_state"]

    def attempt(name, seed):
        cfg = config(model_class, **changes)
        model = model_class(cfg)
        model = randomise(edit(model) if edit else model, seed, gain=1.6)
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, 40, low=0)
        kept = last_shown(mask)
        run = lambda network: forward(network, inputs, fields, kept.get("logits_to_keep"))
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)

        case = Case(name, "Flamingo" if CONFIGS[model_class] is MptConfig else "GPT")
        save(case, model_class, model, write, rename, buffers, dtype, drop, extra)
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        if edit is None:
            case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(model_class, lengths, write=write_safetensors, **changes):
    """Greedy generation over left-padded rows."""

    def attempt(name, seed):
        model = randomise(model_class(config(model_class, **changes)), seed, gain=2.5)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, model.config.vocab_size) * mask, "attention_mask": mask}
        options = {"max_new_tokens": 13, "pad_token_id": 0, "eos_token_id": 1}
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        case = Case(name, "Flamingo" if CONFIGS[model_class] is MptConfig else "GPT")
        save(case, model_class, model, write)
        case.write(model_class.__name__, "generate", inputs, expected, options)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def rope(**keys):
    return dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **keys})


def attention(**keys):
    return dict(attn_config=keys)


def built(model_class, **changes):
    layers = {GPTNeoXConfig: {"num_hidden_layers": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0}, MptConfig: {"n_layers": 2}}
    return lambda seed: randomise(model_class(config(model_class, **{**layers[CONFIGS[model_class]], **changes})), seed)


def save_as_released(case, model):
    """GPT-NeoX's head is `embed_out` in files."""
    save(case, type(model), model, write_safetensors)


def as_released(name):
    return name.replace("lm_head.", "embed_out.")


NEOX, MPT = GPTNeoXForCausalLM, MptForCausalLM
CASES = {
    "gpt_neox/forward_parallel_old_keys": logits(
        NEOX, mask=left_padding((13, 9, 5)), **rope(partial_rotary_factor=0.25, rope_theta=700.0),
        drop=["rope_parameters"], extra=old_rope_keys, buffers=buffers_of_neox, write=write_bin,
        others=[{"use_parallel_residual": False}, rope(partial_rotary_factor=0.5, rope_theta=700.0)],
        note="rotary_pct and rotary_emb_base; the buffers of older files; left padding"),
    "gpt_neox/forward_sequential_whole_rope": logits(
        NEOX, use_parallel_residual=False, **rope(partial_rotary_factor=1.0),
        others=[{"use_parallel_residual": True}], note="as RedPajama-INCITE"),
    "gpt_neox/forward_gelu_fast_no_attention_bias": logits(
        NEOX, hidden_act="gelu_fast", attention_bias=False, positions=True, layer_norm_eps=1e-3,
        others=[{"hidden_act": "relu"}], note="rotary keys absent: a quarter", drop=["rope_parameters"]),
    "gpt_neox/forward_odd_share_tied": logits(
        NEOX, tie_word_embeddings=True, **rope(partial_rotary_factor=0.6), dtype=torch.bfloat16,
        note="7 of 12 numbers are turned, with one more for the last pair"),
    "gpt_neox/forward_linear_scaling_sharded": logits(
        NEOX, hidden_act="relu", write=write_sharded_bin,
        **rope(rope_type="linear", factor=2.5, partial_rotary_factor=0.5)),
    "gpt_neox/hidden_state": logits(GPTNeoXModel, note="the bare network"),
    "gpt_neox/generate": text(NEOX, (8, 5, 3), **rope(partial_rotary_factor=0.5)),
    "mpt/forward_slopes_of_three_heads": logits(MPT, mask=left_padding((13, 9, 5)), note="left padding"),
    "mpt/forward_clipped_and_scaled": logits(
        MPT, d_model=32, n_heads=4, **attention(clip_qkv=1.5, softmax_scale=0.6, alibi_bias_max=5), write=write_bin,
        others=[attention(softmax_scale=0.6), attention(clip_qkv=1.5)],
        note="transformers reads alibi_bias_max and computes with 8"),
    "mpt/forward_untied": logits(MPT, tie_word_embeddings=False, layer_norm_epsilon=1e-3, dtype=torch.bfloat16),
    "mpt/forward_earlier_names_qk_norms": logits(
        MPT, edit=with_norms, rename=earlier_name, drop=["attn_config", "layer_norm_epsilon", "expansion_ratio"],
        extra=dict(model_type="mosaic_gpt", architectures=["MosaicGPT"], alibi=True, alibi_bias_max=8, mlp_ratio=4,
                   attn_qk_ln=True, attn_impl="torch", no_bias=True),
        note="as MPT-1B: the names and keys of Mosaic's earlier code, norms of queries and keys over the full width, "
             "which are put into transformers' class by hand"),
    "mpt/hidden_state": logits(MptModel, note="the bare network"),
    "mpt/generate": text(MPT, (8, 5, 3)),
    "gpt_neox/train_step": step_case("GPT", built(NEOX), causal_batch, save=save_as_released, name_of=as_released),
    "gpt_neox/train_step_sequential_tied": step_case(
        "GPT", built(NEOX, use_parallel_residual=False, tie_word_embeddings=True, **rope(partial_rotary_factor=1.0)),
        causal_batch, save=save_as_released),
    "gpt_neox/adapter_attention": adapter_case(
        "GPT", built(NEOX), tokens, ["logits"], [lora(["query_key_value"])], save=save_as_released),
    "gpt_neox/adapter_dora_embedding": adapter_case(
        "GPT", built(NEOX), tokens, ["logits"],
        [lora(["query_key_value", "dense", "dense_4h_to_h"], use_dora=True), lora(["embed_in"], r=2)],
        save=save_as_released, scales=[1.0, 0.6], note="DoRA and, beside it, LoRA on the embedding"),
    "mpt/train_step": step_case("Flamingo", built(MPT), causal_batch),
    "mpt/train_step_untied": step_case("Flamingo", built(MPT, tie_word_embeddings=False), causal_batch),
    "mpt/adapter_patterns": adapter_case(
        "Flamingo", built(MPT), tokens, ["logits"],
        [lora(["Wqkv", "out_proj", "up_proj"], rank_pattern={"Wqkv": 4, "blocks.1.ffn.up_proj": 2},
              alpha_pattern={"out_proj": 12})]),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
