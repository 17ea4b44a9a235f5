"""Parity cases of Qwen2 and Qwen2.5: biases, windows, rope scalings, both spellings of the configuration, generation,
text through a tokenizer of their kind, GGUF."""

import json
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

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
from llama import check_rows_alone, end_tokens, last
from llama_tokenizer import CORPUS, TEXTS
from training import adapter_case, causal_batch, lora, step_case, tokens

FULL_ROWS = right_padding((29, 29))


def config(**changes):
    """Three layers, four query and two key heads of 6 in a width of 24."""
    fields = dict(
        vocab_size=61, hidden_size=24, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    return Qwen2Config(**{**fields, **changes})


def logits(model_class=Qwen2ForCausalLM, mask=right_padding((13, 9, 4)), positions=False, write=write_safetensors,
           dtype=torch.float32, drop=(), extra=None, others=(), note=None, **changes):
    """One forward pass. `drop` and `extra` rewrite config.json after the reference has written it."""
    fields = ["last_hidden_state"] if model_class is Qwen2Model else ["logits"]

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

        case = Case(name, "Qwen")
        write_config(case.model, model.config, [model_class.__name__], drop, **(extra or {}))
        write(case.model, weights_of(model, dtype))
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(lengths, new_tokens=17, stop=None, note=None, **changes):
    """Greedy generation. `stop` is "int" or "list": end tokens that some rows meet and at least one does not."""

    def attempt(name, seed):
        cfg = config(**changes)
        model = randomise(Qwen2ForCausalLM(cfg), seed, gain=2.0)
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
        case = Case(name, "Qwen")
        write_config(case.model, model.config, ["Qwen2ForCausalLM"])
        write_safetensors(case.model, weights_of(model))
        case.write("Qwen2ForCausalLM", "generate", inputs, expected, options, note=note)
        case.check_repeats(reload_as(Qwen2ForCausalLM), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- a tokenizer of Qwen2's kind

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer():
    """Byte-level BPE after NFC, single digits, and the special tokens behind the vocabulary."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def text_forward(name):
    def attempt(seed):
        made = tokenizer()
        cfg = config(vocab_size=made.get_vocab_size(), num_hidden_layers=1, max_position_embeddings=256)
        model = randomise(Qwen2ForCausalLM(cfg), seed)
        case = Case(name, "Qwen")
        write_config(case.model, model.config, ["Qwen2ForCausalLM"])
        write_safetensors(case.model, weights_of(model))
        made.save(str(case.model / "tokenizer.json"))
        write_json(case.model / "tokenizer_config.json", {
            "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None, "padding_side": "left",
            "model_max_length": 256, "additional_special_tokens": SPECIAL[1:]})
        fast = PreTrainedTokenizerFast(
            tokenizer_file=str(case.model / "tokenizer.json"), pad_token="<|endoftext|>", padding_side="left")
        encoded = fast(TEXTS, padding="longest", return_tensors="pt")
        inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        fields = ("last_logits", "next_token")
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in fields}
        case.write("Qwen2ForCausalLM, tokenizers", "forward", inputs, run(model), {"texts": TEXTS, "padding": "longest"},
                   note="left padding; a tokenizer of Qwen2's kind: NFC, single digits, byte-level BPE")
        case.check_repeats(reload_as(Qwen2ForCausalLM), run)

    first_good(name, attempt)


# ---------------------------------------------------------------- GGUF

FILE = "tiny.gguf"
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{PARTS[part]}.{kind}"


def write_gguf(path, cfg, weights, kind):
    """Writes the file as llama.cpp's converter does, and gives back the tensors it decodes to."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    writer.add_vocab_size(cfg.vocab_size)
    made = tokenizer()
    tokens = [made.id_to_token(i) for i in range(cfg.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = json.loads(made.to_str())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_eos_token_id(made.token_to_id("<|im_end|>"))
    writer.add_pad_token_id(made.token_to_id("<|endoftext|>"))
    decoded = {}
    for name, weight in weights.items():
        weight = weight.numpy().astype(np.float32)
        stored = Q.F32 if weight.ndim == 1 else kind
        data = gguf.quants.quantize(weight, stored)
        writer.add_tensor(gguf_name(name), data, raw_dtype=None if stored in (Q.F32, Q.F16) else stored)
        plain = data.astype(np.float32) if stored in (Q.F32, Q.F16) else gguf.quants.dequantize(data, stored)
        decoded[name] = torch.from_numpy(np.ascontiguousarray(plain))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def from_gguf(kind, note=None, **changes):
    """One forward pass from the decoded weights, and the text through the file's own tokenizer."""

    def attempt(name, seed):
        cfg = config(vocab_size=tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=64, **changes)
        case = Case(name, "Qwen")
        case.model.mkdir(parents=True)
        weights = weights_of(randomise(Qwen2ForCausalLM(cfg), seed))
        decoded = write_gguf(case.model / FILE, cfg, weights, kind)
        by_hand = Qwen2ForCausalLM(cfg)
        by_hand.set_attn_implementation("eager")
        missing, unexpected = by_hand.load_state_dict(decoded, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        by_hand.tie_weights()
        encoded = [tokenizer().encode(text).ids for text in TEXTS]
        longest = max(map(len, encoded))
        pad = tokenizer().token_to_id("<|endoftext|>")
        inputs = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in encoded]),
            "attention_mask": left_padding([len(row) for row in encoded]),
        }
        fields = ("last_logits", "next_token")
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in fields}
        answer = run(reload_as(AutoModelForCausalLM, gguf_file=FILE)(case.model))
        assert distance(answer, run(by_hand.eval())) < 1
        options = {"gguf_file": FILE, "dequantize": True, "dtype": "float32", "texts": TEXTS, "padding": "longest"}
        case.write("Qwen2ForCausalLM, its GGUF reader, tokenizers", "forward", inputs, answer, options, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


WINDOW = dict(use_sliding_window=True, sliding_window=4, mask=right_padding((13, 11, 10)))

def built(**changes):
    return lambda seed: randomise(Qwen2ForCausalLM(config(**{"num_hidden_layers": 2, **changes})), seed)


CASES = {
    "qwen2/untied": logits(),
    "qwen2/tied_left_padding": logits(tie_word_embeddings=True, mask=left_padding((13, 9, 4)),
                                      note="as 0.5B to 3B; positions count from 0; the last four are stored"),
    "qwen2/position_ids": logits(positions=True, num_hidden_layers=2),
    "qwen2/head_dim": logits(head_dim=10, num_hidden_layers=2, note="not hidden_size over heads"),
    "qwen2/window_upper_layers": logits(max_window_layers=1, **WINDOW,
                                        others=[{"sliding_window": 6}], note="the first layer attends to all"),
    "qwen2/window_layer_types": logits(layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                       **WINDOW, note="the list wins over max_window_layers"),
    "qwen2/window_unused": logits(use_sliding_window=False, sliding_window=4, max_window_layers=0,
                                  mask=right_padding((13, 11, 10)), note="as all releases: a window that is off"),
    "qwen2/hidden_state": logits(Qwen2Model, num_hidden_layers=1),
    "qwen2/rope_yarn": logits(
        mask=FULL_ROWS, num_hidden_layers=2, max_position_embeddings=128,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                         "original_max_position_embeddings": 32},
        others=[{"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}],
        note="as the model card has it for long texts"),
    "qwen2/as_released": logits(
        mask=FULL_ROWS, num_hidden_layers=2, drop=["rope_parameters", "layer_types"],
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        extra={"transformers_version": "4.43.1", "rope_theta": 1000000.0, "sliding_window": 32768,
               "use_sliding_window": False, "max_window_layers": 21},
        note="the keys that the releases have"),
    "qwen2/bfloat16_sharded": logits(dtype=torch.bfloat16, write=write_sharded_safetensors),
    "qwen2/generate_left_padding_eos": text((9, 6, 3), stop="int"),
    "qwen2/generate_window_eos_list": text((5, 8, 3, 8), stop="list", use_sliding_window=True, sliding_window=4,
                                           max_window_layers=1),
    "qwen2/text_left_padding": text_forward,
    "qwen2/gguf_q8_0": from_gguf(Q.Q8_0),
    "qwen2/gguf_f16_tied": from_gguf(Q.F16, tie_word_embeddings=True),
    "qwen2/train_step": step_case("Qwen", built(), causal_batch),
    "qwen2/train_step_tied_window": step_case(
        "Qwen", built(tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        causal_batch, double=False, note="padding further back than the window sees no token"),
    "qwen2/adapter_all_linear": adapter_case("Qwen", built(), tokens, ["logits"], [lora("all-linear")]),
    "qwen2/adapter_lora_bias_layers": adapter_case(
        "Qwen", built(), tokens, ["logits"],
        [lora(["q_proj", "down_proj"], lora_bias=True, layers_to_transform=[1], layers_pattern="layers")],
        note="the second layer alone"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
