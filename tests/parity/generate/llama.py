"""Parity cases of the Llama family (AstroLLaMA, Llemma and their relatives): shapes, rope scalings, both
spellings of the configuration, sharded files, generation, text. `llama_gguf.py` holds the GGUF ones."""

import sys

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
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
    write_json,
    write_safetensors,
    write_sharded_bin,
    write_sharded_safetensors,
)
from training import adapter_case, causal_batch, lora, save_plain, step_case, tokens, write_adapters
from llama_tokenizer import TEXTS, sentencepiece_ids, train, write_tokenizer_json


def config(kind=LlamaConfig, **changes):
    """Odd sizes on purpose: three layers, four query and two key heads of 10 in a width of 24."""
    fields = dict(
        vocab_size=61, hidden_size=24, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return kind(**{**fields, **changes})


def with_inv_freq(weights, cfg):
    """The constant buffers that older `.bin` files carry."""
    dim = cfg.head_dim
    inv_freq = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
    return weights | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": inv_freq.clone()
                      for i in range(cfg.num_hidden_layers)}


def save(case, model_class, cfg, model, write, dtype, inv_freq, drop, extra):
    write_config(case.model, model.config, [model_class.__name__], drop, **(extra or {}))
    weights = weights_of(model, dtype)
    write(case.model, with_inv_freq(weights, cfg) if inv_freq else weights)


def logits(system="Llemma", model_class=LlamaForCausalLM, mask=right_padding((13, 9, 4)), positions=False,
           write=write_safetensors, dtype=torch.float32, inv_freq=False, drop=(), extra=None, others=(),
           note=None, **changes):
    """One forward pass. `drop` and `extra` rewrite config.json after the reference has written it."""
    fields = ["last_hidden_state"] if model_class is LlamaModel else ["logits"]

    def attempt(name, seed):
        cfg = config(**changes)
        model = randomise(model_class(cfg), seed)
        # The file may hold half-precision values; the answer is computed from them in float32.
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask}
        if not mask.all():
            inputs["attention_mask"] = mask
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, cfg.max_position_embeddings, low=0)
        kept = last_shown(mask)
        run = lambda network: forward(network, inputs, fields, kept.get("logits_to_keep"))
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)

        case = Case(name, system)
        save(case, model_class, cfg, model, write, dtype, inv_freq, drop, extra)
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def built(model_class=LlamaForCausalLM, **changes):
    return lambda seed: randomise(model_class(config(**{"num_hidden_layers": 2, **changes})), seed)


def adapted_text(name):
    """Greedy generation with an adapter."""

    def attempt(seed):
        model = randomise(LlamaForCausalLM(config()), seed, gain=2.0)
        inputs = {"input_ids": ids(seed, (2, 7), model.config.vocab_size)}
        options = {"max_new_tokens": 17, "pad_token_id": 0}
        case = Case(name, "Llemma")
        save_plain(case, model)
        # A small tensor need not change a token.
        write_adapters(case, "LlamaForCausalLM", "generate", model, [lora(["q_proj", "v_proj", "o_proj"])],
                       lambda network: generate(network, inputs, options), inputs, reload_as(LlamaForCausalLM), seed,
                       options, unseen=("weight",))

    first_good(name, attempt)


FULL_ROWS = right_padding((29, 29))
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1000.0}


def rope(mask=FULL_ROWS, theta=1000.0, max_position_embeddings=64, against=(), drop=(), extra=None, note=None,
         **parameters):
    """A rope scaling: the answer must differ from the unscaled one and from every variant in `against`."""
    full = {"rope_theta": theta, **parameters}
    variants = [{"rope_parameters": {**DEFAULT_ROPE, "rope_theta": theta}}]
    variants += [{"rope_parameters": {key: value for key, value in {**full, **change}.items() if value is not None}}
                 for change in against]
    return logits(mask=mask, num_hidden_layers=2, tie_word_embeddings=True, rope_parameters=full,
                  max_position_embeddings=max_position_embeddings, drop=drop, extra=extra, others=variants,
                  note=note)


LONGROPE = dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=16,
                short_factor=[1.0, 1.1, 1.2, 1.3, 1.5], long_factor=[1.2, 1.6, 2.5, 4.0, 6.0])


def text(system, lengths, new_tokens=17, stop=None, write=write_safetensors, inv_freq=False,
         against_no_cache=False, note=None, **changes):
    """Greedy generation. `stop` is "int" or "list": end tokens that some rows meet and at least one does not."""

    def attempt(name, seed):
        cfg = config(**changes)
        # A strong network over weak embeddings, or a tied head only repeats the last token.
        model = randomise(LlamaForCausalLM(cfg), seed, gain=2.0)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask}
        padded = not mask.all()
        if padded:
            inputs["attention_mask"] = mask
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0}
        if stop:
            free = generate(model, inputs, options | {"eos_token_id": None})["sequences"][:, max(lengths):]
            options["eos_token_id"] = end_tokens(free.tolist(), stop)
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        if padded:
            check_rows_alone(model, inputs, options, expected["sequences"])
        if against_no_cache and torch.equal(
            expected["sequences"], generate(model, inputs, options | {"use_cache": False})["sequences"]):
            raise Retry("the cache makes no difference")

        case = Case(name, system)
        save(case, LlamaForCausalLM, cfg, model, write, torch.float32, inv_freq, (), None)
        case.write("LlamaForCausalLM", "generate", inputs, expected, options, note=note)
        case.check_repeats(reload_as(LlamaForCausalLM), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def end_tokens(rows, kind):
    """One token (or two, met by different rows) that ends some rows early and leaves one running."""
    met = lambda token: {i for i, row in enumerate(rows) if token in row}
    early = [t for row in rows for t in row[3:-3] if all(t not in r[:3] for r in rows)]
    if kind == "int":
        for token in early:
            if 0 < len(met(token)) < len(rows):
                return token
    else:
        for one in early:
            for two in early:
                both = met(one) | met(two)
                if met(one) - met(two) and met(two) - met(one) and len(both) < len(rows):
                    return [one, two]
    raise Retry("no end token splits the rows")


def check_rows_alone(model, inputs, options, sequences):
    """A row in a left-padded batch must continue as it does alone."""
    for row, mask, expected in zip(inputs["input_ids"], inputs["attention_mask"], sequences):
        alone = generate(model, {"input_ids": row[mask == 1][None]}, options)["sequences"][0]
        new = alone[int(mask.sum()):]
        prompt = row.shape[0]
        if not torch.equal(expected[prompt : prompt + len(new)], new):
            raise RuntimeError("a padded row continues otherwise than alone")


def last(network, inputs):
    """Logits at the last real token of each row, and the token they choose."""
    logits = forward(network, inputs, ["logits"])["logits"]
    end = (inputs["attention_mask"] * torch.arange(logits.shape[1])).argmax(1)
    chosen = logits[torch.arange(len(end)), end]
    best, second = chosen.topk(2).values.T
    if (best - second).min() < 1e-2:
        raise Retry("the next token is a near-tie")
    return {"logits": logits, "last_logits": chosen, "next_token": chosen.argmax(-1)}


def text_forward(name):
    """Text through a tokenizer.json as Llama 2's, left padding by the tokenizer's own configuration."""

    def attempt(seed):
        processor = train()
        cfg = config(vocab_size=processor.vocab_size(), num_hidden_layers=1, max_position_embeddings=256)
        model = randomise(LlamaForCausalLM(cfg), seed)
        case = Case(name, "AstroLLaMA")
        write_config(case.model, model.config, ["LlamaForCausalLM"])
        write_safetensors(case.model, weights_of(model))
        write_tokenizer_json(processor, case.model / "tokenizer.json")
        write_json(case.model / "tokenizer_config.json", {
            "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
            "padding_side": "left", "model_max_length": 256, "legacy": False})
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(case.model / "tokenizer.json"), pad_token="<unk>", padding_side="left")
        encoded = tokenizer(TEXTS, padding="longest", return_tensors="pt")
        inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
        for text, row, mask in zip(TEXTS, inputs["input_ids"], inputs["attention_mask"]):
            assert row[mask == 1].tolist() == sentencepiece_ids(processor, text), text
        fields = ("last_logits", "next_token")
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in fields}
        case.write("LlamaForCausalLM, tokenizer checked against sentencepiece", "forward", inputs, run(model),
                   {"texts": TEXTS, "padding": "longest"},
                   note="left padding; positions count from 0; the last real token of each row is the last")
        case.check_repeats(reload_as(LlamaForCausalLM), run)

    first_good(name, attempt)


OLD_STYLE = {"transformers_version": "4.33.0"}
# Every query sees something real, be it padding itself.
WINDOW = dict(model_class=MistralForCausalLM, kind=MistralConfig, mask=right_padding((13, 11, 10)))

CASES = {
    "llama/mistral_window": logits(sliding_window=4, others=[{"sliding_window": 6}], **WINDOW),
    "llama/mistral_no_window": logits(sliding_window=None, others=[{"sliding_window": 4}], **WINDOW,
                                      note="as Mistral v0.2 and LLaVA-Med"),
    "llama/mha_untied": logits("AstroLLaMA", num_key_value_heads=4, head_dim=None, intermediate_size=76),
    "llama/gqa_head_dim_tied": logits(tie_word_embeddings=True, mask=left_padding((13, 9, 4)),
                                      note="left padding; positions count from 0; the last four are stored"),
    "llama/one_key_head": logits(num_key_value_heads=1, num_hidden_layers=1, rms_norm_eps=1e-2,
                                 others=[{"rms_norm_eps": 1e-6}]),
    "llama/biases_position_ids": logits(attention_bias=True, mlp_bias=True, positions=True, num_hidden_layers=2),
    "llama/gelu": logits(hidden_act="gelu", num_hidden_layers=1, others=[{"hidden_act": "silu"}]),
    "llama/hidden_state": logits("AstroLLaMA", LlamaModel, num_hidden_layers=1),
    "llama/rope_theta": logits(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, num_hidden_layers=2,
                               others=[{"rope_parameters": DEFAULT_ROPE}], mask=FULL_ROWS),
    "llama/rope_linear": rope(rope_type="linear", factor=2.5),
    "llama/rope_dynamic_short": logits(
        mask=right_padding((15, 15)), num_hidden_layers=1, max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0},
        note="within max_position_embeddings nothing is scaled"),
    "llama/rope_dynamic_long": rope(rope_type="dynamic", factor=4.0, max_position_embeddings=16,
                                    against=[{"factor": 2.0}], note="past max_position_embeddings"),
    "llama/rope_llama3": rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=64, max_position_embeddings=512,
                              against=[{"original_max_position_embeddings": 512}, {"high_freq_factor": 16.0}]),
    "llama/rope_yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32,
                            max_position_embeddings=128, against=[{"truncate": False}, {"attention_factor": 1.0}]),
    "llama/rope_yarn_not_truncated": rope(
        rope_type="yarn", factor=32.0, original_max_position_embeddings=64, truncate=False, beta_fast=8.0,
        beta_slow=0.5, attention_factor=0.8, max_position_embeddings=2048,
        against=[{"truncate": True}, {"attention_factor": None}, {"beta_fast": None}, {"beta_slow": None}]),
    "llama/rope_yarn_mscale": rope(
        rope_type="yarn", factor=40.0, original_max_position_embeddings=32, mscale=1.2, mscale_all_dim=0.7,
        max_position_embeddings=1280, against=[{"mscale": None}, {"mscale_all_dim": 0.1}]),
    "llama/rope_longrope_short": rope(mask=right_padding((13, 13)), **LONGROPE,
                                      against=[{"short_factor": LONGROPE["long_factor"]}]),
    "llama/rope_longrope_long": rope(**LONGROPE, against=[{"long_factor": LONGROPE["short_factor"]}]),
    "llama/rope_longrope_no_factor": rope(
        **{k: v for k, v in LONGROPE.items() if k != "factor"}, max_position_embeddings=128,
        against=[{"attention_factor": 1.0}],
        note="the factor is then max_position_embeddings / original_max_position_embeddings"),
    "llama/old_config_linear": rope(
        rope_type="linear", factor=4.0, theta=10000.0, drop=["rope_parameters"], note="rope_scaling by the key type",
        extra={**OLD_STYLE, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama/old_config_dynamic": rope(
        rope_type="dynamic", factor=2.0, theta=10000.0, max_position_embeddings=16, drop=["rope_parameters"],
        extra={**OLD_STYLE, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, note="and without rope_theta"),
    "llama/old_config_llama3": rope(
        rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64, max_position_embeddings=2048, theta=500.0, drop=["rope_parameters"],
        extra={**OLD_STYLE, "rope_theta": 500.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}),
    "llama/old_config_bare": logits(
        "Llemma", num_key_value_heads=4, head_dim=None, intermediate_size=76, num_hidden_layers=2, mask=FULL_ROWS,
        drop=["rope_parameters", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"],
        extra={**OLD_STYLE, "rope_scaling": None}, note="as Llemma 7B: no rope_theta (10000), no num_key_value_heads"),
    "llama/sharded_safetensors": logits("AstroLLaMA", write=write_sharded_safetensors),
    "llama/sharded_bin_inv_freq": logits(write=write_sharded_bin, inv_freq=True, num_key_value_heads=4,
                                         note="as Llemma's files, with the old constant buffers"),
    "llama/bin_half": logits("AstroLLaMA", write=write_bin, inv_freq=True, dtype=torch.float16),
    "llama/bfloat16": logits("AstroLLaMA", dtype=torch.bfloat16, num_hidden_layers=2),
    "llama/bfloat16_bin": logits(dtype=torch.bfloat16, write=write_bin, num_hidden_layers=2),
    "llama/generate": text("Llemma", (7, 7), num_key_value_heads=1),
    "llama/generate_left_padding_eos": text("AstroLLaMA", (9, 6, 3), stop="int"),
    "llama/generate_eos_list": text("AstroLLaMA", (5, 8, 3, 8), stop="list"),
    "llama/generate_tied_sharded_bin": text("Llemma", (6, 6), write=write_sharded_bin, inv_freq=True,
                                            tie_word_embeddings=True),
    "llama/generate_llama3_rope": text(
        "AstroLLaMA", (11, 5), new_tokens=24, num_hidden_layers=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "llama/generate_dynamic_rope": text(
        "Llemma", (12, 12), num_hidden_layers=2, max_position_embeddings=16, against_no_cache=True,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0},
        note="crosses max_position_embeddings: keys already in the cache keep the rotation they were stored with"),
    "llama/text_left_padding": text_forward,
    "llama/train_step": step_case("Llemma", built(attention_bias=True, mlp_bias=True), causal_batch, unseen=()),
    "llama/train_step_tied": step_case("AstroLLaMA", built(tie_word_embeddings=True, num_key_value_heads=1),
                                       causal_batch),
    "llama/train_step_mistral": step_case(
        "Llemma", built(MistralForCausalLM, kind=MistralConfig, sliding_window=5),
        lambda seed, cfg: causal_batch(seed, cfg, (13, 11, 10)), note="a window of 5 tokens"),
    "llama/adapter_attention": adapter_case("Llemma", built(), tokens, ["logits"], [lora(["q_proj", "v_proj"])]),
    "llama/adapter_all_linear_rslora": adapter_case(
        "AstroLLaMA", built(tie_word_embeddings=True), tokens, ["logits"], [lora("all-linear", use_rslora=True)]),
    "llama/adapter_dora": adapter_case(
        "Llemma", built(), tokens, ["logits"], [lora(["q_proj", "o_proj", "down_proj"], use_dora=True)]),
    "llama/adapter_two_scaled": adapter_case(
        "Llemma", built(), tokens, ["logits"],
        [lora(["q_proj", "k_proj"]), lora(["v_proj", "k_proj", "up_proj"], r=2, lora_alpha=3)], scales=[0.5, 1.5]),
    "llama/adapter_embedding_head": adapter_case(
        "AstroLLaMA", built(), tokens, ["logits"], [lora(["embed_tokens", "q_proj"], modules_to_save=["lm_head"])],
        note="LoRA on the embedding, which PEFT stores beside it; a whole head"),
    "llama/adapter_embedding_tied": adapter_case(
        "AstroLLaMA", built(tie_word_embeddings=True), tokens, ["logits"], [lora(["embed_tokens", "o_proj"])],
        note="the tied head stays as the table is without the adapter"),
    "llama/adapter_pattern_of_modules": adapter_case(
        "Llemma", built(), tokens, ["logits"],
        [lora(r".*layers\.1\..*(q_proj|up_proj)", exclude_modules=r".*up_proj", init_lora_weights=False)],
        note="target_modules and exclude_modules are patterns: the queries of the second layer"),
    "llama/adapter_generate": adapted_text,
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
