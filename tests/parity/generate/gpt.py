"""Parity cases of GPT-1 and GPT-2: layouts, every option that changes the mathematics, generation."""

import sys

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
)

from common import (
    Case,
    Retry,
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
    write_sharded_safetensors,
)

from training import adapter_case, causal_batch, lora, step_case, tokens

CONFIGS = {GPT2LMHeadModel: GPT2Config, GPT2Model: GPT2Config,
           OpenAIGPTLMHeadModel: OpenAIGPTConfig, OpenAIGPTModel: OpenAIGPTConfig}


def config(model_class, **changes):
    """Odd sizes on purpose: three layers, three heads of 7."""
    fields = dict(vocab_size=97, n_embd=21, n_layer=3, n_head=3, n_positions=40)
    if CONFIGS[model_class] is GPT2Config:
        fields |= dict(bos_token_id=1, eos_token_id=1)
    return CONFIGS[model_class](**{**fields, **changes})


def without_prefix(name):
    return name.removeprefix("transformer.")


def with_prefix(name):
    return f"transformer.{name}"


def constant_buffers(prefix=""):
    """The causal mask that older files carry for every layer, and GPT-2's masked score."""

    def tensors(cfg):
        n = cfg.n_positions
        mask = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
        buffers = {f"{prefix}h.{i}.attn.bias": mask.clone() for i in range(cfg.n_layer)}
        if cfg.model_type == "gpt2":
            buffers |= {f"{prefix}h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(cfg.n_layer)}
        return buffers

    return tensors


def save(case, model_class, cfg, model, write, rename, buffers, dtype):
    """The checkpoint folder, in the layout asked for."""
    write_config(case.model, model.config, [model_class.__name__])
    weights = {rename(name): weight for name, weight in weights_of(model, dtype).items()}
    write(case.model, weights | (buffers(cfg) if buffers else {}))


def logits(model_class, mask=right_padding((13, 9, 4)), positions=False, types=False, write=write_safetensors,
           rename=lambda name: name, buffers=None, dtype=torch.float32, others=(), note=None, **changes):
    """One forward pass over three padded rows."""
    fields = ["logits"] if "LMHead" in model_class.__name__ else ["last_hidden_state"]

    def attempt(name, seed):
        cfg = config(model_class, **changes)
        model = randomise(model_class(cfg), seed)
        # The file holds half-precision values; the answer is computed from them in float32.
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, cfg.n_positions, low=0)
        if types:
            inputs["token_type_ids"] = ids(seed + 5, mask.shape, cfg.vocab_size)
        kept = last_shown(mask)
        run = lambda network: forward(network, inputs, fields, kept.get("logits_to_keep"))
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)

        case = Case(name, "GPT")
        save(case, model_class, cfg, model, write, rename, buffers, dtype)
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(model_class, lengths, new_tokens=17, stop=False, write=write_safetensors, rename=lambda name: name,
         buffers=None, note=None, **changes):
    """Greedy generation; with `stop`, one row meets the end token on the way and another does not."""

    def attempt(name, seed):
        cfg = config(model_class, **changes)
        # A strong network over weak embeddings, or a tied head only repeats the last token.
        model = randomise(model_class(cfg), seed, gain=2.5)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask}
        if len(set(lengths)) > 1:
            inputs["attention_mask"] = mask
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": 1}
        if stop:
            options["eos_token_id"] = met_by_some(generate(model, inputs, options)["sequences"], max(lengths))
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        if len(set(lengths)) > 1:
            check_rows_alone(model, inputs, options, expected["sequences"])

        case = Case(name, "GPT")
        save(case, model_class, cfg, model, write, rename, buffers, torch.float32)
        case.write(model_class.__name__, "generate", inputs, expected, options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def met_by_some(sequences, prompt):
    """A token that some rows emit early and at least one never does."""
    rows = [row[prompt:] for row in sequences.tolist()]
    for token in rows[0][3:-3]:
        if 0 < sum(token in row for row in rows) < len(rows) and rows[0].index(token) >= 3:
            return token
    raise Retry("no token ends some rows and not others")


def check_rows_alone(model, inputs, options, sequences):
    """A row in a left-padded batch must continue as it does alone."""
    for row, mask, expected in zip(inputs["input_ids"], inputs["attention_mask"], sequences):
        alone = generate(model, {"input_ids": row[mask == 1][None]}, options)["sequences"][0]
        prompt = row.shape[0]
        new = alone[int(mask.sum()):]
        assert torch.equal(expected[prompt : prompt + len(new)], new)
        assert (expected[prompt + len(new):] == options["pad_token_id"]).all()


def built(model_class, **changes):
    return lambda seed: randomise(model_class(config(model_class, **{"n_layer": 2, **NO_DROPOUT, **changes})), seed)


def save_official(case, model):
    """As the official file: no prefix, no head."""
    write_config(case.model, model.config, [type(model).__name__])
    write_safetensors(case.model, {without_prefix(name): weight for name, weight in weights_of(model).items()})


NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
CASES = {
    "gpt/gpt2_forward_prefix": logits(GPT2LMHeadModel, mask=left_padding((13, 9, 4)),
                                      note="left padding; positions count from 0; the last four are stored"),
    "gpt/gpt2_forward_official": logits(
        GPT2LMHeadModel, rename=without_prefix, buffers=constant_buffers(),
        note="as the official file: no prefix, no lm_head, constant attn.bias and attn.masked_bias"),
    "gpt/gpt2_forward_positions_and_types": logits(
        GPT2LMHeadModel, positions=True, types=True, note="token_type_ids are looked up in wte"),
    "gpt/gpt2_forward_untied_n_inner": logits(GPT2LMHeadModel, tie_word_embeddings=False, n_inner=50,
                                              activation_function="gelu", layer_norm_epsilon=1e-3),
    "gpt/gpt2_forward_inverse_layer_scale": logits(
        GPT2LMHeadModel, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True,
        others=[{"scale_attn_by_inverse_layer_idx": False}]),
    "gpt/gpt2_forward_no_scale_relu": logits(
        GPT2LMHeadModel, scale_attn_weights=False, activation_function="relu",
        others=[{"scale_attn_weights": True}, {"activation_function": "gelu_new"}]),
    "gpt/gpt2_forward_gelu_tanh_bin": logits(
        GPT2LMHeadModel, activation_function="gelu_pytorch_tanh", write=write_bin, rename=without_prefix,
        buffers=constant_buffers()),
    "gpt/gpt2_forward_silu": logits(GPT2LMHeadModel, activation_function="silu", n_layer=1),
    "gpt/gpt2_forward_half": logits(GPT2LMHeadModel, dtype=torch.float16),
    "gpt/gpt2_forward_sharded": logits(GPT2LMHeadModel, write=write_sharded_safetensors),
    "gpt/gpt2_hidden_state": logits(GPT2Model, note="the bare network"),
    "gpt/gpt2_hidden_state_prefix": logits(GPT2Model, rename=with_prefix, buffers=constant_buffers("transformer."),
                                           note="the bare network from a prefixed file"),
    "gpt/gpt2_generate_left_padding_eos": text(GPT2LMHeadModel, (9, 6, 3), stop=True),
    "gpt/gpt2_generate_bin": text(GPT2LMHeadModel, (7, 7), write=write_bin, rename=without_prefix,
                                  buffers=constant_buffers()),
    "gpt/gpt2_generate_to_the_last_position": text(GPT2LMHeadModel, (8, 8), new_tokens=32, tie_word_embeddings=False,
                                                   note="fills n_positions exactly"),
    "gpt/gpt1_forward": logits(OpenAIGPTLMHeadModel, others=[{"afn": "relu"}],
                               note="afn gelu is the tanh form"),
    "gpt/gpt1_forward_official_bin": logits(
        OpenAIGPTLMHeadModel, rename=without_prefix, buffers=constant_buffers(), write=write_bin),
    "gpt/gpt1_forward_positions_and_types": logits(
        OpenAIGPTLMHeadModel, positions=True, types=True, afn="relu"),
    "gpt/gpt1_forward_swish_untied": logits(
        OpenAIGPTLMHeadModel, afn="swish", tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    "gpt/gpt1_hidden_state": logits(OpenAIGPTModel),
    "gpt/gpt1_generate": text(OpenAIGPTLMHeadModel, (7, 7)),
    "gpt/gpt1_generate_left_padding_eos": text(OpenAIGPTLMHeadModel, (8, 5, 3), stop=True),
    "gpt/gpt2_train_step": step_case("GPT", built(GPT2LMHeadModel), causal_batch, save=save_official,
                                     name_of=without_prefix, note="as the official file: no prefix, a tied head"),
    "gpt/gpt2_train_step_untied": step_case(
        "GPT", built(GPT2LMHeadModel, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, n_inner=50),
        causal_batch),
    "gpt/gpt1_train_step": step_case("GPT", built(OpenAIGPTLMHeadModel), causal_batch),
    "gpt/gpt2_adapter_fan_in_fan_out": adapter_case(
        "GPT", built(GPT2LMHeadModel), tokens, ["logits"],
        [lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)]),
    "gpt/gpt2_adapter_dora": adapter_case(
        "GPT", built(GPT2LMHeadModel), tokens, ["logits"], [lora(["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True)],
        note="magnitudes of the columns of Conv1D, which are the outputs"),
    "gpt/gpt2_adapter_lora_bias": adapter_case(
        "GPT", built(GPT2LMHeadModel), tokens, ["logits"], [lora(["c_attn", "c_proj"], fan_in_fan_out=True, lora_bias=True)],
        safe=False),
    "gpt/gpt2_adapter_official": adapter_case(
        "GPT", built(GPT2LMHeadModel), tokens, ["logits"], [lora(["c_attn"], fan_in_fan_out=True)], save=save_official,
        note="the base file has no prefix, and the adapter's names do"),
    "gpt/gpt2_adapter_wte_wpe": adapter_case(
        "GPT", built(GPT2LMHeadModel, tie_word_embeddings=False), tokens, ["logits"], [lora(["wte", "wpe"])],
        note="LoRA on token and position embeddings"),
    "gpt/gpt1_adapter_patterns": adapter_case(
        "GPT", built(OpenAIGPTLMHeadModel), tokens, ["logits"],
        [lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, rank_pattern={"c_fc": 5, "h.0.attn.c_attn": 2},
              alpha_pattern={r"h.\d.mlp.c_proj": 4, "c_fc": 3})]),
    "gpt/gpt2_adapter_wte_tied": adapter_case(
        "GPT", built(GPT2LMHeadModel), tokens, ["logits"], [lora(["wte"])],
        note="the tied head stays as the table is without the adapter"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
