"""Parity cases of GenSLMs: codons, both recipes of a gene's vector, both generations of weight files, the network's forms.

The project's package needs libraries of its time, so its few lines that matter are written here again: genes cut in
threes, its table of codons, its padding, its two means. The network is transformers'.
"""

import argparse
import collections
import datetime
import functools
import json
import pathlib
import sys

import numpy
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

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
    right_padding,
    round_weights,
    run_all,
    weights_of,
    write_json,
    write_safetensors,
)
from training import adapter_case, causal_batch, lora, step_case, tokens

SYSTEM = "GenSLMs"
CODONS = """
    GGC GCC ATC GAC GAA ATG GTG CTG GTC GCG GAT AAA GGT AAG GAG ACC AAC GTT ATT GCA CTC CGC GCT CAG CCG TTC GTA TCG GGA
    AAT TAC CTT TTG ACG TCC GGG AGC CCC ACA ACT TCT TTA CGT TAT CAA CGG TTT CAC CCT CCA TGG ATA TCA TGC AGT AGA CAT TGT
    CTA AGG TAA CGA TGA TAG
""".split()
SPECIAL = {69: ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"],
           71: ["[UNK]", "[CLS]", "[BOS]", "[EOS]", "[SEP]", "[PAD]", "[MASK]"]}
WEIGHTS = "genslm_tiny_patric.pt"
# Three heads of 23, of which five numbers are turned; a feed-forward part narrower than the rest. As the package writes
# it: no use_parallel_residual, rotary keys of before transformers 5.
PACKAGE = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "hidden_dropout_prob": 0.1, "hidden_size": 69, "initializer_range": 0.02,
    "intermediate_size": 40, "layer_norm_eps": 1e-05, "max_position_embeddings": 64, "model_type": "gpt_neox",
    "num_attention_heads": 3, "num_hidden_layers": 2, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.21.1", "use_cache": True,
    "vocab_size": 69,
}
GENES = [
    "ATGAAAGTAACCGTTGTTGGAGCAGGTGCAGTTGGTGCAAGTTGCGCAGAATATATTGCATAA",
    "atgttcattctnccggcacttatc",
    "ATTAAAGATTTCGCATCTGAAGTTGTTTTGTTAGACATTAAAGAAGGTTATGCCGAAGGTTAAC",
    "ATG---GTTA-GUAARYK",
    "ATGCCC" * 20,
    "AT",
]


# ---------------------------------------------------------------- the project's own lines


def tokenizer_of(vocabulary):
    """The project's table of codons as its tokenizer file holds it."""
    tokens = SPECIAL[vocabulary] + CODONS
    assert len(tokens) == vocabulary
    table = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(SPECIAL[vocabulary])
    if "[BOS]" in table:
        tokenizer.post_processor = TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[(token, table[token]) for token in ("[BOS]", "[EOS]")])
    return tokenizer


def in_threes(gene):
    return " ".join(gene[i : i + 3] for i in range(0, len(gene), 3)).upper()


def tokens_of(genes, vocabulary, length):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(vocabulary))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    read = tokenizer([in_threes(gene) for gene in genes], max_length=length, padding="max_length",
                     truncation=True, return_tensors="pt")
    return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}


@torch.inference_mode()
def vectors(model, inputs):
    """The last hidden state, and its mean as the project's run_inference and as its README take it."""
    output = model(**inputs, output_hidden_states=True)
    hidden, mask = output.hidden_states[-1].float(), inputs["attention_mask"]
    real = [row[: int(count)].mean(0) for row, count in zip(hidden, mask.sum(1))]
    return {**inputs, "last_hidden_state": hidden, "logits": output.logits.float(),
            "embeddings": torch.stack(real), "embeddings_all_positions": hidden.mean(1)}


@torch.inference_mode()
def likelihoods(model, inputs):
    """The sum of the logarithms of each codon's probability after those before it, and the perplexity."""
    logits, ids, mask = model(**inputs).logits.float(), inputs["input_ids"], inputs["attention_mask"]
    each = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    return {"log_likelihood": each.sum(1), "perplexity": (-each.sum(1) / (mask.sum(1) - 1)).exp()}


# ---------------------------------------------------------------- checkpoints


class Stopping:
    """A callback as Lightning pickles them."""

    def __init__(self):
        self.best, self.patience, self.where = torch.tensor(0.57), 3, pathlib.PurePosixPath("/runs/patric")


def official_names(model, dtype):
    weights = weights_of(model, dtype)
    if "lm_head.weight" in weights:
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    return weights


def buffers(config, with_mask):
    """What files of the time keep beside weights."""
    n = config.max_position_embeddings
    mask = torch.tril(torch.ones(n, n, dtype=torch.uint8)).view(1, 1, n, n)
    out = {}
    for i in range(config.num_hidden_layers):
        at = f"gpt_neox.layers.{i}.attention."
        out |= {at + "masked_bias": torch.tensor(-1e9), at + "rotary_emb.inv_freq": torch.rand(3)}
        out |= {at + "bias": mask.clone()} if with_mask else {}
    return out


def left_by_training(weights):
    """What DeepSpeed and Lightning write beside the weights."""
    return {
        "epoch": 1, "global_step": 7000, "pytorch-lightning_version": "1.6.5", "ds_version": "0.7.0",
        "buffer_names": [name for name in weights if "bias" in name][:3],
        "param_shapes": [collections.OrderedDict((name, weight.shape) for name, weight in weights.items())],
        "callbacks": {"EarlyStopping": Stopping(), "best_k_models": {pathlib.PurePosixPath("a/b.pt"): torch.tensor(0.5)}},
        "loops": {"fit": {"state": {}, "progress": {"total": (1, 2.0, None)}}},
        "hyper_parameters": {
            "cfg": argparse.Namespace(node_local=pathlib.PurePosixPath("/tmp"), seed=10 ** 30, names={"a", "b"}),
            "started": datetime.date(2022, 5, 1), "rate": numpy.float64(5e-5), "order": numpy.arange(3),
            "warmup": functools.partial(dict, steps=3), "token_weights": torch.rand(5),
        },
        "lr_schedulers": [{"last_epoch": -1, "base": complex(1, 2)}],
    }


def save(case, model, config, layout, dtype=torch.float32):
    case.model.mkdir(parents=True, exist_ok=True)
    weights = official_names(model, dtype)
    write_json(case.model / ("neox_tiny.json" if layout == "older" else "config.json"), config)
    if layout == "safetensors":
        return write_safetensors(case.model, weights)
    if layout == "older":
        state = weights | buffers(model.config, with_mask=True)
        state = collections.OrderedDict(("model." + name, weight) for name, weight in state.items())
        content = {**left_by_training(state), "state_dict": state}
    else:
        state = collections.OrderedDict(weights | buffers(model.config, with_mask=False))
        content = {"epoch": 1, "state_dict": state, "hyper_parameters": {"cfg": pathlib.PurePosixPath("x.yaml")}}
    torch.save(content, case.model / WEIGHTS)
    if layout == "table":
        tokenizer_of(model.config.vocab_size).save(
            str(case.model / f"codon_wordlevel_{model.config.vocab_size}vocab.json"))


def model_of(config):
    return GPTNeoXForCausalLM(GPTNeoXConfig.from_dict(dict(config)))


def reload(folder):
    """The model in a folder, opened as the project opens it, but for names that do not fit."""
    (file,) = [file for file in folder.glob("*.json") if file.name in ("config.json", "neox_tiny.json")]
    model = model_of(json.loads(file.read_text()))
    if (folder / WEIGHTS).exists():
        state = torch.load(folder / WEIGHTS, weights_only=False)["state_dict"]
    else:
        from safetensors.torch import load_file
        state = load_file(folder / "model.safetensors")
    state = {name.removeprefix("model."): weight.float() for name, weight in state.items()}
    state = {name: weight for name, weight in state.items()
             if not name.endswith(("attention.bias", "masked_bias", "inv_freq"))}
    if "embed_out.weight" in state:
        state["lm_head.weight"] = state.pop("embed_out.weight")
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - set(getattr(model, "all_tied_weights_keys", {}) or {}):
        raise RuntimeError(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.set_attn_implementation("eager")
    return model.eval()


# ---------------------------------------------------------------- cases


def options_of(layout, dtype, **more):
    options = {} if layout == "safetensors" else {"weights": WEIGHTS}
    return options | ({} if dtype == torch.float32 else {"dtype": "float32"}) | more


def genes(layout, length, run_on=vectors, call="forward", sequences=GENES, dtype=torch.float32, others=(), note=None,
          **changes):
    """One pass over genes as they are written."""

    def attempt(name, seed):
        config = PACKAGE | changes
        model = randomise(model_of(config), seed, gain=1.6)
        round_weights(model, dtype)
        inputs = tokens_of(sequences, config["vocab_size"], length)
        run = lambda network: run_on(network, inputs)
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)
        case = Case(name, SYSTEM)
        save(case, model, config, layout, dtype)
        given = inputs if call == "forward" else {}
        options = options_of(layout, dtype, sequences=sequences, seq_length=length)
        case.write("GPTNeoXForCausalLM under genslm 0.0.5a1's tokens and means", call, given, run(model), options,
                   note=note)
        case.check_repeats(reload, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def logits(layout="safetensors", mask=right_padding((13, 9, 4)), positions=None, dtype=torch.float32, others=(),
           note=None, **changes):
    """One pass over three padded rows of tokens."""

    def attempt(name, seed):
        config = PACKAGE | changes
        model = randomise(model_of(config), seed, gain=1.6)
        round_weights(model, dtype)
        inputs = {"input_ids": ids(seed, mask.shape, 69, low=5) * mask + 3 * (1 - mask), "attention_mask": mask}
        if positions:
            inputs["position_ids"] = ids(seed + 3, mask.shape, positions, low=positions // 2)
        kept = last_shown(mask)
        run = lambda network: forward(network, inputs, ["logits"], kept.get("logits_to_keep"))
        check_every_weight_matters(model, run)
        check_options_matter(model, run, others)
        case = Case(name, SYSTEM)
        save(case, model, config, layout, dtype)
        case.write("GPTNeoXForCausalLM", "forward", inputs, run(model), options_of(layout, dtype, **kept), note=note)
        case.check_repeats(reload, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def text(layout, lengths, dtype=torch.float32, note=None, **changes):
    """Greedy generation over left-padded rows."""

    def attempt(name, seed):
        config = PACKAGE | changes
        model = randomise(model_of(config), seed, gain=2.5)
        round_weights(model, dtype)
        mask = left_padding(lengths)
        inputs = {"input_ids": ids(seed, mask.shape, 69, low=5) * mask + 3 * (1 - mask), "attention_mask": mask}
        options = {"max_new_tokens": 13, "pad_token_id": 3, "eos_token_id": [65, 67, 68, 10, 22, 31]}
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        if not (expected["sequences"][:, -1] == 3).any():
            raise Retry("no row ends early")
        case = Case(name, SYSTEM)
        save(case, model, config, layout, dtype)
        case.write("GPTNeoXForCausalLM", "generate", inputs, expected, options_of(layout, dtype, **options), note=note)
        case.check_repeats(reload, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def built(**changes):
    return lambda seed: randomise(model_of(PACKAGE | NO_DROPOUT | changes), seed)


def save_package(case, model):
    """As the package's own configuration says it; the head is `embed_out` in files."""
    config = PACKAGE | NO_DROPOUT | {"hidden_size": model.config.hidden_size}
    save(case, model, config | {"use_parallel_residual": model.config.use_parallel_residual}, "safetensors")


def as_released(name):
    return name.replace("lm_head.", "embed_out.")


SERIAL = {"use_parallel_residual": False}
CASES = {
    "genslm/embed_sequences": genes(
        "table", 28, dtype=torch.float16, others=[SERIAL],
        note="as the releases are: half precision, today's names, the table of codons; genes too long, too short, in lower "
             "case, with N, U, gaps and a piece of one base"),
    "genslm/embed_older_file": genes(
        "older", 24, others=[{"hidden_act": "relu"}],
        note="a file of before May 2023 beside the package's neox_….json and no table: a prefix, buffers, and all that "
             "training leaves beside the weights"),
    "genslm/embed_71_tokens": genes(
        "table", 22, vocab_size=71, note="the table that puts [BOS] and [EOS] around a gene, which stay when it is cut"),
    "genslm/score": genes(
        "today", 30, likelihoods, "score", dtype=torch.float16,
        sequences=["ATGAAAGTAACCGTTGTTGGAGCATAA", "ATGAAAGTAACCGTTGTCGGAGCATAA", "atgttc", "ATGCCCAAT" * 8],
        note="a wild type, a variant of it, a short gene and one that is cut"),
    "genslm/forward_sequential_whole_rope": logits(
        "today", use_parallel_residual=False, rotary_pct=1.0, hidden_size=66, others=[{"use_parallel_residual": True}],
        note="heads of 22, turned whole"),
    "genslm/forward_head_of_115": logits(
        "today", dtype=torch.float16, hidden_size=115, num_attention_heads=1, intermediate_size=48,
        others=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}],
        note="28 of 115 numbers are turned, as in the 250M model"),
    "genslm/forward_long": logits(
        positions=10_240, max_position_embeddings=10_240,
        note="positions of the 10240 that the covid model has"),
    "genslm/forward_left_padding_bf16": logits(
        mask=left_padding((13, 9, 5)), dtype=torch.bfloat16, positions=40, note="left padding with its positions"),
    "genslm/forward_no_attention_bias": logits(
        "older", attention_bias=False, layer_norm_eps=1e-3, mask=left_padding((13, 9, 5)),
        others=[{"layer_norm_eps": 1e-6}], note="the older file again, keys that the package does not write"),
    "genslm/forward_tied": logits(tie_word_embeddings=True, hidden_size=69),
    "genslm/generate": text("table", (8, 5, 3), dtype=torch.float16, note="a row ends early"),
    "genslm/generate_older_file": text("older", (3, 7, 5), use_parallel_residual=False),
    "genslm/train_step": step_case(SYSTEM, built(hidden_size=45), causal_batch, save=save_package, reload=reload,
                                   name_of=as_released),
    "genslm/train_step_sequential": step_case(
        SYSTEM, built(hidden_size=45, use_parallel_residual=False), causal_batch, save=save_package, reload=reload,
        name_of=as_released),
    "genslm/adapter_attention_rslora": adapter_case(
        SYSTEM, built(hidden_size=45), tokens, ["logits"], [lora(["query_key_value", "dense"], use_rslora=True)],
        save=save_package, reload=reload, safe=False),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
