"""Parity cases of StarCoder (GPTBigCode) and StarCoder2: layouts, every option that changes the mathematics, windows,
generation, text with a gap to fill, GGUF."""

import random
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import (
    AutoTokenizer,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTBigCodeModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    Starcoder2Model,
)

from common import (
    VISIBLE,
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
    write_bin,
    write_config,
    write_safetensors,
    write_sharded_bin,
    write_sharded_safetensors,
)
from llama import check_rows_alone, end_tokens, last
from llama_gguf import FILE, OPTIONS, check_spread, encode, from_gguf, mixed, vocabulary
from starcoder_tokenizer import END, SNIPPETS, metadata, psm, train
from starcoder_tokenizer import write as write_tokenizer
from training import adapter_case, causal_batch, lora, step_case, tokens

CONFIGS = {GPTBigCodeForCausalLM: GPTBigCodeConfig, GPTBigCodeModel: GPTBigCodeConfig,
           Starcoder2ForCausalLM: Starcoder2Config, Starcoder2Model: Starcoder2Config}
SIZES = {
    # Three heads of 12.
    GPTBigCodeConfig: dict(vocab_size=83, n_embd=36, n_layer=3, n_head=3, n_positions=40),
    # Six query and two key heads of 6.
    Starcoder2Config: dict(vocab_size=79, hidden_size=36, intermediate_size=50, num_hidden_layers=3,
                           num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
                           rope_parameters={"rope_type": "default", "rope_theta": 700.0}),
}


def config(model_class, **changes):
    kind = CONFIGS[model_class]
    return kind(**{**SIZES[kind], "bos_token_id": 0, "eos_token_id": 0, **changes})


# ---------------------------------------------------------------- layouts


def without_prefix(name):
    return name.removeprefix("transformer.").removeprefix("model.")


def with_prefix(name):
    return f"transformer.{name}"


def causal_buffers(cfg, _):
    """The masks and masked scores that older files carry for every layer."""
    n = cfg.n_positions
    mask = torch.tril(torch.ones(n, n, dtype=torch.uint8)).view(1, 1, n, n)
    return {f"transformer.h.{i}.attn.{name}": value.clone() for i in range(cfg.n_layer)
            for name, value in (("bias", mask), ("masked_bias", torch.tensor(-1e4)))}


def stored_head(_, model):
    """A copy of the tied table under the head's name."""
    return {"lm_head.weight": model.get_input_embeddings().weight.detach().clone()}


def save(case, model_class, model, write=write_safetensors, rename=None, added=None, dtype=torch.float32, drop=(),
         extra=None):
    write_config(case.model, model.config, [model_class.__name__], drop, **(extra or {}))
    weights = {(rename or (lambda name: name))(name): weight for name, weight in weights_of(model, dtype).items()}
    write(case.model, weights | (added(model.config, model) if added else {}))


# ---------------------------------------------------------------- forward and generate


def logits(model_class, mask=right_padding((13, 9, 4)), positions=False, types=False, gain=1.6, lowest=3, others=(),
           note=None, dtype=torch.float32, write=write_safetensors, rename=None, added=None, drop=(), extra=None,
           **changes):
    """One forward pass over padded rows. `drop` and `extra` rewrite config.json after the reference has written it."""
    fields = ["logits"] if "CausalLM" in model_class.__name__ else ["last_hidden_state"]

    def attempt(name, seed):
        cfg = config(model_class, **changes)
        model = randomise(model_class(cfg), seed, gain)
        # The file may hold half-precision values; the answer is computed from them in float32.
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size, lowest) * mask, "attention_mask": mask}
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, 40, low=0)
        if types:
            inputs["token_type_ids"] = ids(seed + 5, mask.shape, cfg.vocab_size)
        kept = last_shown(mask)
        run = lambda network: forward(network, inputs, fields, kept.get("logits_to_keep"))
        # A bias on keys shifts a softmax and no more, where no rotation turns it.
        unseen = ["k_proj.bias"] if CONFIGS[model_class] is Starcoder2Config else []
        check_every_weight_matters(model, run, unseen)
        check_options_matter(model, run, others)

        case = Case(name, "StarCoder")
        save(case, model_class, model, write, rename, added, dtype, drop, extra)
        options = kept if dtype == torch.float32 else kept | {"dtype": "float32"}
        case.write(model_class.__name__, "forward", inputs, run(model), options, note=note)
        # The reference does not read a null there.
        null = (extra or {}).get("layer_norm_epsilon", "") is None
        case.check_repeats(reload_as(model_class, **({"config": model.config} if null else {})), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(model_class, lengths, new_tokens=17, stop=None, note=None, write=write_safetensors, rename=None, added=None,
         **changes):
    """Greedy generation. `stop` is "int" or "list": end tokens that some rows meet and at least one does not."""

    def attempt(name, seed):
        # A strong network over weak embeddings, or a tied head only repeats the last token.
        model = randomise(model_class(config(model_class, **changes)), seed, gain=2.5)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, model.config.vocab_size) * mask}
        padded = not mask.all()
        if padded:
            inputs["attention_mask"] = mask
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": 1}
        if stop:
            free = generate(model, inputs, options)["sequences"][:, max(lengths):]
            options["eos_token_id"] = end_tokens(free.tolist(), stop)
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        if padded:
            check_rows_alone(model, inputs, options, expected["sequences"])

        case = Case(name, "StarCoder")
        save(case, model_class, model, write, rename, added)
        case.write(model_class.__name__, "generate", inputs, expected, options, note=note)
        case.check_repeats(reload_as(model_class), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- text

TEXTS = [
    psm("def f(\n", "\n    return x"),
    "def area(width, height):\n    return width * 2048  # naïve 東京 🚀",
    "<filename>a.py\n\tx  =   1\n<|endoftext|>",
    "fn main() { println!(\"{}\", 31 / 4); }",
]


def text_forward(name):
    """Texts through a tokenizer.json as StarCoder's: special tokens are read, digits stand alone."""

    def attempt(seed):
        tokenizer = train()
        cfg = config(GPTBigCodeForCausalLM, vocab_size=tokenizer.get_vocab_size(), n_layer=2, n_positions=96)
        model = randomise(GPTBigCodeForCausalLM(cfg), seed)
        case = Case(name, "StarCoder")
        save(case, GPTBigCodeForCausalLM, model)
        write_tokenizer(tokenizer, case.model, pad_token="<|endoftext|>", padding_side="left")
        read = AutoTokenizer.from_pretrained(case.model)
        encoded = read(TEXTS, padding="longest", return_tensors="pt")
        inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
        for text, row, mask in zip(TEXTS, inputs["input_ids"], inputs["attention_mask"]):
            assert row[mask == 1].tolist() == tokenizer.encode(text).ids, text
            assert read.decode(row[mask == 1]) == text, text
        gap = [tokenizer.token_to_id(token) for token in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")]
        assert gap == [1, 3, 2] and [id for id in tokenizer.encode(TEXTS[0]).ids if id < 4] == gap
        fields = ("last_logits", "next_token")
        run = lambda network: inputs | {k: v for k, v in last(network, inputs).items() if k in fields}
        case.write("GPT2TokenizerFast + GPTBigCodeForCausalLM", "forward", inputs, run(model),
                   {"texts": TEXTS, "padding": "left"},
                   note="a gap to fill, digits one by one; left padding; positions count from 0")
        case.check_repeats(reload_as(GPTBigCodeForCausalLM), run)

    first_good(name, attempt)


def gaps(tokenizer, dice):
    """A snippet with a piece cut out, from the border of a word to the end of its line or of the next, as the tokens
    of the prompt and of the piece."""
    code = dice.choice(SNIPPETS)
    borders = [i for i in range(len(code) - 1)
               if i == 0 or code[i - 1] == "\n" or code[i - 1].isalnum() != code[i].isalnum()]
    start = dice.choice(borders)
    end = dice.choice([i for i, letter in enumerate(code) if letter == "\n" and i > start][:2])
    return tokenizer.encode(psm(code[:start], code[end:])).ids, tokenizer.encode(code[start:end]).ids + [END]


def learn(model, tokenizer, steps):
    """Teaches the network to fill gaps in the snippets, which it then knows by heart."""
    dice = random.Random(7)
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = [gaps(tokenizer, dice) for _ in range(16)]
        longest = max(len(prompt) + len(middle) for prompt, middle in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(input_ids, -100)
        mask = torch.zeros_like(input_ids)
        for row, (prompt, middle) in enumerate(rows):
            length = len(prompt) + len(middle)
            input_ids[row, :length] = torch.tensor(prompt + middle)
            labels[row, len(prompt) : length] = torch.tensor(middle)
            mask[row, :length] = 1
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


GAP = ("def factorial(n):\n", "\n    return n * factorial(n - 1)\n")
MIDDLE = "    if n < 2:\n        return 1"


def fill_the_middle(name):
    """A gap in code that the small network was taught: what it writes is the code."""
    tokenizer = train()
    cfg = config(GPTBigCodeForCausalLM, vocab_size=tokenizer.get_vocab_size(), n_embd=64, n_layer=2, n_head=4,
                 n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    torch.manual_seed(3)
    model = learn(GPTBigCodeForCausalLM(cfg), tokenizer, steps=2000)
    model.set_attn_implementation("eager")
    round_weights(model, torch.bfloat16)
    case = Case(name, "StarCoder")
    save(case, GPTBigCodeForCausalLM, model, dtype=torch.bfloat16)
    write_tokenizer(tokenizer, case.model)
    inputs = {"input_ids": torch.tensor([tokenizer.encode(psm(*GAP)).ids])}
    options = {"max_new_tokens": 24, "pad_token_id": END, "eos_token_id": END}
    run = lambda network: generate(network, inputs, options)
    expected = run(model)
    new = expected["sequences"][0, inputs["input_ids"].shape[1]:].tolist()
    assert new[-1] == END and tokenizer.decode(new[:-1]) == MIDDLE, tokenizer.decode(new, skip_special_tokens=False)
    case.write("GPTBigCodeForCausalLM", "generate", inputs, expected, options | {"dtype": "float32"},
               note="a network taught to fill gaps in ten short pieces of code; the prompt is one of them")
    case.check_repeats(reload_as(GPTBigCodeForCausalLM), run)


# ---------------------------------------------------------------- GGUF


def gguf_sizes(model_class):
    """Rows are multiples of 32, which the block formats need."""
    if model_class is GPTBigCodeForCausalLM:
        return dict(vocab_size=61, n_embd=64, n_head=4, n_layer=2)
    return dict(vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def gguf_names(cfg):
    """Name in the reference -> name in a GGUF, less the ends."""
    if cfg.model_type == "gpt_bigcode":
        names = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
        parts = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
                 "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
        layers = "transformer.h"
    else:
        names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
        parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
                 "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
                 "post_attention_layernorm": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
        layers = "model.layers"
    for i in range(cfg.num_hidden_layers):
        names |= {f"{layers}.{i}.{part}": f"blk.{i}.{short}" for part, short in parts.items()}
    return names | {"lm_head": "output"}


def write_gguf(path, model, kind_of, seed, tokenizer, window):
    """Writes the file as llama.cpp's converter does, and gives back the tensors it decodes to."""
    cfg = model.config
    first = cfg.model_type == "gpt_bigcode"
    writer = gguf.GGUFWriter(str(path), "starcoder" if first else "starcoder2")
    writer.add_name("tiny")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(4 * cfg.n_embd if first else cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_eps(cfg.layer_norm_epsilon if first else cfg.norm_epsilon)
    if not first:
        writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    if window:
        writer.add_sliding_window(cfg.sliding_window)
    for add in tokenizer:
        add(writer)
    names, numbers, decoded = gguf_names(cfg), np.random.default_rng(seed), {}
    for name, weight in weights_of(model).items():
        owner, _, end = name.rpartition(".")
        target = f"{names[owner]}.{end}"
        weight = weight.numpy().astype(np.float32)
        kind = Q.F32 if weight.ndim == 1 else kind_of(target)
        data = encode(weight, kind, numbers)
        writer.add_tensor(target, data, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
        stored = data.astype(np.float32) if kind in (Q.F32, Q.F16) else gguf.quants.dequantize(data, kind)
        decoded[name] = torch.from_numpy(np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def filled(model_class, cfg, decoded):
    """The reference with the decoded tensors put in by hand."""
    model = model_class(cfg)
    model.set_attn_implementation("eager")
    missing, unexpected = model.load_state_dict(decoded, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def llama_cpp_says(path, token_ids):
    """llama.cpp's logits at every position."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(token_ids)
    return torch.tensor(np.array(model.scores[: len(token_ids)]))


def in_gguf(model_class, kind_of, by_hand=True, window=False, second_opinion=True, lengths=(13, 8), note=None,
            **changes):
    """One forward pass from the decoded weights. `by_hand` where the reference's reader does not know a part of the
    file. llama.cpp gives a second opinion where it computes in as many bits."""

    def attempt(name, seed):
        cfg = config(model_class, **{**gguf_sizes(model_class), **changes})
        model = randomise(model_class(cfg), seed)
        case = Case(name, "StarCoder")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, model, kind_of, seed, vocabulary(cfg), window)
        check_spread(decoded)
        mask = right_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, cfg.vocab_size) * mask, "attention_mask": mask}
        run = lambda network: forward(network, inputs, ["logits"])
        expected = run(filled(model_class, cfg, decoded))
        if not by_hand and distance(expected, run(from_gguf(case.model))) > 1:
            raise RuntimeError(f"{name}: the reference's reader is off")
        if window:
            everywhere = filled(model_class, config(model_class, **gguf_sizes(model_class)), decoded)
            assert distance(expected, run(everywhere)) > VISIBLE, f"{name}: the window makes no difference"
        if second_opinion:
            theirs = llama_cpp_says(case.model / FILE, inputs["input_ids"][0].tolist())
            off = (theirs - expected["logits"][0]).abs().max()
            print(f"{name}: llama.cpp is off by {off:.4f} on logits of deviation {expected['logits'][0].std():.2f}")
            # Its caches are in half precision.
            assert off < 0.03, f"{name}: llama.cpp says otherwise"
        reference = model_class.__name__ + ("" if by_hand else "(gguf_file)")
        case.write(reference + ", weights dequantised to float32", "forward", inputs, expected, OPTIONS, note=note)
        case.check_repeats((lambda _: filled(model_class, cfg, decoded)) if by_hand else from_gguf, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def gguf_generate(model_class, kind_of, note=None, **changes):
    """Greedy generation from decoded weights."""

    def attempt(name, seed):
        cfg = config(model_class, **{**gguf_sizes(model_class), **changes})
        model = randomise(model_class(cfg), seed, gain=2.5)
        case = Case(name, "StarCoder")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, model, kind_of, seed, vocabulary(cfg), False)
        inputs = {"input_ids": ids(seed, (2, 7), cfg.vocab_size)}
        options = {"max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": 2}
        run = lambda network: generate(network, inputs, options)
        load = lambda _: filled(model_class, cfg, decoded)
        case.write(f"{model_class.__name__}, weights dequantised to float32", "generate", inputs, run(load(None)),
                   OPTIONS | options, note=note)
        case.check_repeats(load, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def gguf_text(name):
    """A gap to fill through the vocabulary inside the file."""

    def attempt(seed):
        tokenizer = train()
        cfg = config(GPTBigCodeForCausalLM, vocab_size=tokenizer.get_vocab_size(), n_embd=32, n_head=2, n_layer=1)
        model = randomise(GPTBigCodeForCausalLM(cfg), seed)
        case = Case(name, "StarCoder")
        case.model.mkdir(parents=True)
        decoded = write_gguf(case.model / FILE, model, mixed(Q.Q8_0), seed, metadata(tokenizer), False)
        text = psm("def f(x):\n    y = 2048\n", "\n    return x, y")
        input_ids = torch.tensor([tokenizer.encode(text).ids])
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        run = lambda network: inputs | last(network, inputs)
        load = lambda _: filled(GPTBigCodeForCausalLM, cfg, decoded)
        case.write("GPTBigCodeForCausalLM, weights dequantised to float32, tokenised by tokenizers", "forward",
                   inputs, run(load(None)), OPTIONS | {"texts": [text]},
                   note="the tokenizer is the byte-level vocabulary in the GGUF's metadata")
        case.check_repeats(load, run)

    first_good(name, attempt)


def built(model_class, **changes):
    layers = {GPTBigCodeConfig: {"n_layer": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
              Starcoder2Config: {"num_hidden_layers": 2, "residual_dropout": 0.0, "embedding_dropout": 0.0}}
    return lambda seed: randomise(model_class(config(model_class, **{**layers[CONFIGS[model_class]], **changes})), seed)


BIG, BARE = GPTBigCodeForCausalLM, GPTBigCodeModel
TWO, BARE_TWO = Starcoder2ForCausalLM, Starcoder2Model
THEIRS = "the reference's reader knows no starcoder: its class is filled by hand; llama.cpp agrees"
# Every query sees something real: no row has more padding than the window reaches.
WINDOW = dict(mask=right_padding((13, 11, 10)))
OLD_KEYS = {"rope_theta": 700.0, "transformers_version": "4.39.0"}
STRAY = {"activation_function": "gelu", "rms_norm_eps": 1e-2, "mlp_type": "default", "norm_type": "layer_norm"}

CASES = {
    "starcoder/bigcode_forward_shared_key": logits(
        BIG, mask=left_padding((13, 9, 4)), note="left padding; positions count from 0; the last four are stored"),
    "starcoder/bigcode_forward_own_keys": logits(
        BIG, multi_query=False, note="the rows of c_attn are grouped by head: its query, its key, its value"),
    "starcoder/bigcode_forward_erf_gelu": logits(
        BIG, activation_function="gelu", others=[{"activation_function": "gelu_pytorch_tanh"}], gain=2.5,
        note="as the 7B and 15B compute it"),
    "starcoder/bigcode_forward_tanh_gelu": logits(
        BIG, activation_function="gelu_pytorch_tanh", n_inner=50, multi_query=False,
        others=[{"activation_function": "gelu"}], gain=2.5, note="as the smaller ones compute it; n_inner is set"),
    "starcoder/bigcode_forward_null_epsilon": logits(
        BIG, layer_norm_epsilon=1e-5, extra={"layer_norm_epsilon": None, "inference_runner": 0,
                                             "pre_allocate_kv_cache": False, "pad_key_length": True,
                                             "max_batch_size": None, "summary_type": "cls_index"},
        note="layer_norm_epsilon null, as in a published copy: 1e-5; keys of older programs"),
    "starcoder/bigcode_forward_no_scale": logits(
        BIG, scale_attn_weights=False, attention_softmax_in_fp32=False, scale_attention_softmax_in_fp32=False,
        layer_norm_epsilon=1e-2, others=[{"scale_attn_weights": True}, {"layer_norm_epsilon": 1e-5}], gain=1.0,
        note="the two keys of softmax's type change nothing in float32"),
    "starcoder/bigcode_forward_untied": logits(BIG, tie_word_embeddings=False, write=write_bin),
    "starcoder/bigcode_forward_tied_head_stored": logits(
        BIG, added=stored_head, write=write_sharded_safetensors, note="lm_head.weight stored although tied"),
    "starcoder/bigcode_forward_no_prefix_buffers": logits(
        BIG, rename=without_prefix, added=causal_buffers, write=write_sharded_bin,
        note="no prefix; the constant attn.bias and attn.masked_bias of older files"),
    "starcoder/bigcode_forward_positions_and_types": logits(
        BIG, positions=True, types=True, note="token_type_ids are looked up in wte"),
    "starcoder/bigcode_forward_bfloat16_sharded": logits(BIG, dtype=torch.bfloat16, write=write_sharded_safetensors),
    "starcoder/bigcode_forward_half_bin": logits(BIG, dtype=torch.float16, write=write_bin, multi_query=False),
    "starcoder/bigcode_forward_grown_vocabulary": logits(
        BIG, vocab_size=87, lowest=80, tie_word_embeddings=False,
        note="four tokens were added, as StarChat's, and are used"),
    "starcoder/bigcode_hidden_state": logits(BARE, note="the bare network"),
    "starcoder/bigcode_hidden_state_prefix": logits(BARE, rename=with_prefix, multi_query=False,
                                                    note="the bare network from a prefixed file"),
    "starcoder/bigcode_generate_left_padding_eos": text(BIG, (9, 6, 3), stop="int"),
    "starcoder/bigcode_generate_eos_list": text(BIG, (5, 8, 3, 8), stop="list", write=write_sharded_bin),
    "starcoder/bigcode_generate_own_keys": text(BIG, (7, 7), multi_query=False, activation_function="gelu",
                                                write=write_bin, rename=without_prefix),
    "starcoder/bigcode_generate_to_the_last_position": text(
        BIG, (8, 8), new_tokens=32, tie_word_embeddings=False, note="fills n_positions exactly"),
    "starcoder/starcoder2_forward_window": logits(
        TWO, sliding_window=4, others=[{"sliding_window": 6}], tie_word_embeddings=False, **WINDOW),
    "starcoder/starcoder2_forward_window_old_keys": logits(
        TWO, sliding_window=3, others=[{"sliding_window": 4}], mask=right_padding((13, 12, 11)), dtype=torch.bfloat16,
        drop=["rope_parameters", "tie_word_embeddings"], extra=OLD_KEYS | STRAY,
        note="rope_theta alone; tied, and no key says so; keys of other families, which count for nothing"),
    "starcoder/starcoder2_forward_no_window": logits(
        TWO, sliding_window=None, others=[{"sliding_window": 4}], mask=left_padding((13, 9, 4)),
        note="left padding; positions count from 0; the last four are stored"),
    "starcoder/starcoder2_forward_no_bias": logits(TWO, use_bias=False, num_key_value_heads=6, write=write_bin),
    "starcoder/starcoder2_forward_one_key_head": logits(
        TWO, num_key_value_heads=1, hidden_act="gelu", norm_epsilon=1e-2, others=[{"norm_epsilon": 1e-5}],
        added=stored_head, write=write_sharded_safetensors, note="lm_head.weight stored although tied"),
    "starcoder/starcoder2_forward_head_dim": logits(
        TWO, head_dim=10, positions=True, sliding_window=32, tie_word_embeddings=False, write=write_sharded_bin,
        note="heads wider than the share of hidden_size"),
    "starcoder/starcoder2_forward_rope_linear": logits(
        TWO, rename=without_prefix, rope_parameters={"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0},
        others=[{"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}], note="no prefix"),
    "starcoder/starcoder2_forward_half": logits(TWO, dtype=torch.float16, sliding_window=5, **WINDOW),
    "starcoder/starcoder2_hidden_state": logits(BARE_TWO, sliding_window=4, **WINDOW, note="the bare network"),
    "starcoder/starcoder2_generate_past_the_window": text(
        TWO, (9, 9), new_tokens=40, sliding_window=5, note="the window leaves the prompt behind"),
    "starcoder/starcoder2_generate_left_padding_eos": text(TWO, (9, 6, 3), stop="int", sliding_window=4),
    "starcoder/starcoder2_generate_untied_sharded": text(
        TWO, (8, 5), write=write_sharded_safetensors, tie_word_embeddings=False, use_bias=False),
    "starcoder/forward_text": text_forward,
    "starcoder/generate_fim_text": fill_the_middle,
    "starcoder/gguf_starcoder_f16": in_gguf(BIG, mixed(Q.F16), note=THEIRS),
    "starcoder/gguf_starcoder_q8_0_untied": in_gguf(
        BIG, mixed(Q.Q8_0), tie_word_embeddings=False, second_opinion=False,
        note="the reference's reader knows no starcoder: its class is filled by hand"),
    "starcoder/gguf_starcoder_generate": gguf_generate(BIG, mixed(Q.Q8_0, token_embd=Q.F16)),
    "starcoder/gguf_text": gguf_text,
    "starcoder/gguf_starcoder2_f32": in_gguf(TWO, mixed(Q.F32), by_hand=False),
    "starcoder/gguf_starcoder2_q8_0_untied": in_gguf(
        TWO, mixed(Q.Q8_0, attn_k=Q.F16), by_hand=False, second_opinion=False, tie_word_embeddings=False),
    "starcoder/gguf_starcoder2_base": in_gguf(
        TWO, mixed(Q.F16), rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        note="rope.freq_base, which the reference's reader leaves out: its class is filled by hand; llama.cpp agrees"),
    "starcoder/gguf_starcoder2_window": in_gguf(
        TWO, mixed(Q.F16), window=True, sliding_window=4, second_opinion=False, lengths=(13, 10),
        note="attention.sliding_window, which the reference's reader leaves out: its class is filled by hand"),
    "starcoder/gguf_starcoder2_generate": gguf_generate(
        TWO, mixed(Q.Q8_0), rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "starcoder/bigcode_train_step": step_case("StarCoder", built(BIG), causal_batch),
    "starcoder/bigcode_train_step_own_keys": step_case(
        "StarCoder", built(BIG, multi_query=False, tie_word_embeddings=False), causal_batch),
    # A bias on keys is turned by their position, and so is seen.
    "starcoder/starcoder2_train_step": step_case(
        "StarCoder", built(TWO, sliding_window=5, tie_word_embeddings=False),
        lambda seed, cfg: causal_batch(seed, cfg, (13, 11, 10))),
    "starcoder/bigcode_adapter_attention": adapter_case(
        "StarCoder", built(BIG), tokens, ["logits"], [lora(["c_proj", "c_attn", "q_attn"])],
        note="c_proj is that of the attention and that of the feed-forward part"),
    "starcoder/bigcode_adapter_own_keys_dora": adapter_case(
        "StarCoder", built(BIG, multi_query=False, tie_word_embeddings=False), tokens, ["logits"],
        [lora(["c_attn", "mlp.c_fc"], use_dora=True, modules_to_save=["lm_head"])]),
    "starcoder/starcoder2_adapter_bias_all": adapter_case(
        "StarCoder", built(TWO), tokens, ["logits"],
        [lora(["q_proj", "c_fc"], bias="all", rank_pattern={"c_fc": 4})]),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
