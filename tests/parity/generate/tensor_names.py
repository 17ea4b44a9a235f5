"""Writes `tests/data/tensor_names.json`: every naming of a checkpoint's tensors that transformers 5.23 loads, by trial.

    python tests/parity/generate/tensor_names.py

For each class of the reference that a family here serves, a tiny model is saved under each naming that some release
has had (what `save_pretrained` writes, the module's own names, with and without the prefix of the base model, each
entry of `conversion_mapping.py` turned back, the layouts of LLaVA and Gemma 3 through the versions), and loaded by
`from_pretrained`. A naming is kept if nothing is missing or unexpected and every value arrives where it belongs.
An entry that renames a tensor of a class stands in at least one naming that is kept, or the script fails.

Beside the namings of a class are the tensors that the reference passes over (`ignored`: buffers of older files, which
it computes), what it ties (`tied`), and, for what opens from GGUF, the names that gguf 0.19 gives (`gguf`) and those
that its architecture may have beside them (`gguf_others`).
"""

import json
import re
import tempfile
from pathlib import Path

import gguf
import torch
import transformers
from chronos.chronos2 import Chronos2Model
from chronos.chronos_bolt import ChronosBoltModelForForecasting
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

FILE = Path(__file__).resolve().parents[3] / "tests/data/tensor_names.json"
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

LLAMA = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
GPT = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 1, "n_head": 4}
NEOX = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 24,
}  # fmt: skip
BERT = {**NEOX, "type_vocab_size": 2}
TEXT = {**NEOX, "projection_dim": 16, "eos_token_id": 2}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 20,
    "patch_size": 10, "projection_dim": 16,
}  # fmt: skip
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
ENCODEC = {
    "num_filters": 4, "hidden_size": 8, "codebook_size": 16, "upsampling_ratios": [2], "num_lstm_layers": 1,
    "target_bandwidths": [32.0], "sampling_rate": 8000,
}  # fmt: skip
MUSIC = {
    "text_encoder": {"model_type": "t5", **T5}, "audio_encoder": {"model_type": "encodec", **ENCODEC},
    "decoder": {
        "model_type": "musicgen_decoder", "vocab_size": 16, "hidden_size": 24, "ffn_dim": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_codebooks": 2, "pad_token_id": 16, "bos_token_id": 16,
    },
}  # fmt: skip
GPT_OSS = {**LLAMA, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
TIMES = {
    "patch_length": 4, "context_length": 24, "horizon_length": 6, "num_hidden_layers": 1, "hidden_size": 32,
    "intermediate_size": 48, "head_dim": 8, "num_attention_heads": 4,
}  # fmt: skip
SERIES = {
    "context_length": 24, "input_patch_size": 6, "input_patch_stride": 6, "use_reg_token": True, "quantiles": [0.1, 0.5, 0.9],
}  # fmt: skip
TOKENS = {
    "tokenizer_class": "MeanScaleUniformBins", "tokenizer_kwargs": {"low_limit": -6.0, "high_limit": 8.0},
    "context_length": 24, "prediction_length": 6, "n_tokens": 61, "n_special_tokens": 2, "pad_token_id": 0,
    "eos_token_id": 1, "use_eos_token": True, "model_type": "seq2seq", "num_samples": 5, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0,
}  # fmt: skip

# A family's name here, classes of the reference, what their configs say.
CLASSES = [
    ("bert", "BertModel", BERT),
    ("bert", "BertForMaskedLM", BERT),
    ("bert", "BertForMaskedLM", {**BERT, "tie_word_embeddings": False}),
    ("bert", "BertForNextSentencePrediction", BERT),
    ("bert", "BertForPreTraining", BERT),
    ("bert", "BertForSequenceClassification", BERT),
    ("bert", "BertForTokenClassification", BERT),
    ("bert", "BertForQuestionAnswering", BERT),
    ("chronos-2", "Chronos2Model", {
        "d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 1, "num_heads": 4, "attn_implementation": "eager",
        "chronos_config": {**SERIES, "output_patch_size": 6, "max_output_patches": 2, "use_arcsinh": True},
    }),
    ("chronos-bolt", "ChronosBoltModelForForecasting", {**T5, "decoder_start_token_id": 0, "chronos_config": {**SERIES, "prediction_length": 6}}),
    ("chronos-t5", "T5ForConditionalGeneration", {
        **T5, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "chronos_config": TOKENS,
    }),
    ("chronos-t5", "GPT2LMHeadModel", {
        **GPT, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 1,
        "chronos_config": {**TOKENS, "model_type": "causal"},
    }),
    ("clip", "CLIPModel", CLIP),
    ("clip", "CLIPTextModel", TEXT),
    ("clip", "CLIPVisionModel", VISION),
    ("clip", "CLIPTextModelWithProjection", TEXT),
    ("clip", "CLIPVisionModelWithProjection", VISION),
    ("encodec", "EncodecModel", ENCODEC),
    ("encodec", "EncodecModel", {**ENCODEC, "norm_type": "time_group_norm"}),
    ("gemma3", "Gemma3ForConditionalGeneration", {
        "text_config": GEMMA, "vision_config": {**VISION, "vision_use_head": False}, "mm_tokens_per_image": 4,
        "image_token_index": 60,
    }),
    ("gemma3_text", "Gemma3ForCausalLM", GEMMA),
    ("gemma3_text", "Gemma3TextModel", GEMMA),
    ("gpt1", "OpenAIGPTLMHeadModel", GPT),
    ("gpt1", "OpenAIGPTModel", GPT),
    ("gpt1", "OpenAIGPTDoubleHeadsModel", GPT),
    ("gpt2", "GPT2LMHeadModel", GPT),
    ("gpt2", "GPT2LMHeadModel", {**GPT, "tie_word_embeddings": False}),
    ("gpt2", "GPT2Model", GPT),
    ("gpt2", "GPT2DoubleHeadsModel", GPT),
    ("gpt_bigcode", "GPTBigCodeForCausalLM", GPT),
    ("gpt_bigcode", "GPTBigCodeModel", GPT),
    ("gpt_neox", "GPTNeoXForCausalLM", NEOX),
    ("gpt_neox", "GPTNeoXForCausalLM", {**NEOX, "tie_word_embeddings": True}),
    ("gpt_neox", "GPTNeoXModel", NEOX),
    ("gpt_oss", "GptOssForCausalLM", GPT_OSS),
    ("gpt_oss", "GptOssModel", GPT_OSS),
    ("idefics", "IdeficsForVisionText2Text", {
        **{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}, "additional_vocab_size": 2,
        "use_resampler": True,
        "vision_config": {
            "embed_dim": 32, "image_size": 8, "patch_size": 4, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4,
        },
        "perceiver_config": {
            "use_resampler": True, "resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 8,
        },
    }),
    ("llama", "LlamaForCausalLM", LLAMA),
    ("llama", "LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", "LlamaModel", LLAMA),
    ("llama", "MistralForCausalLM", LLAMA),
    ("llama", "MistralModel", LLAMA),
    ("llava", "LlavaForConditionalGeneration", {
        "text_config": {"model_type": "llama", **LLAMA}, "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": 60, "image_seq_length": 4, "vision_feature_layer": -1,
    }),
    ("mpt", "MptForCausalLM", {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 24}),
    ("mpt", "MptModel", {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 24}),
    ("musicgen", "MusicgenForConditionalGeneration", MUSIC),
    ("musicgen", "MusicgenMelodyForConditionalGeneration", {
        **MUSIC, "decoder": {**MUSIC["decoder"], "model_type": "musicgen_melody_decoder"}, "chroma_length": 9,
    }),
    ("siglip", "SiglipModel", {"text_config": TEXT, "vision_config": VISION}),
    ("siglip", "SiglipTextModel", TEXT),
    ("siglip", "SiglipVisionModel", VISION),
    ("qwen2", "Qwen2ForCausalLM", LLAMA),
    ("qwen2", "Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    ("qwen2", "Qwen2Model", LLAMA),
    ("starcoder2", "Starcoder2ForCausalLM", LLAMA),
    ("starcoder2", "Starcoder2Model", LLAMA),
    ("t5", "T5ForConditionalGeneration", T5),
    ("t5", "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("t5", "T5EncoderModel", T5),
    ("t5", "T5Model", T5),
    ("timesfm", "TimesFmModelForPrediction", TIMES),
    ("timesfm-2.5", "TimesFm2_5ModelForPrediction", {**TIMES, "num_key_value_heads": 4, "output_quantile_len": 8}),
]


def renaming(*pairs):
    """Regular expressions, each tried on every name, the first that matches."""

    def rename(name):
        for pattern, to in pairs:
            renamed, count = re.subn(pattern, to, name)
            if count:
                return renamed
        return name

    return rename


# Of another package, on the same loader.
CHRONOS = {each.__name__: each for each in [ChronosBoltModelForForecasting, Chronos2Model]}

# What opens from GGUF, by the name that its files have.
GGUF = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
    "GPTBigCodeForCausalLM": gguf.MODEL_ARCH.STARCODER,
    "Starcoder2ForCausalLM": gguf.MODEL_ARCH.STARCODER2,
}


def renaming(*pairs):
    """Regular expressions, each tried on every name, the first that matches."""

    def rename(name):
        for pattern, to in pairs:
            renamed, count = re.subn(pattern, to, name)
            if count:
                return renamed
        return name

    return rename


# Namings of the past that are several entries at once: what they are, of which families, and what became of each name.
SEEING = ("gemma3", "llava")
PAST = [
    ("norms by gamma and beta", ("bert", "clip", "encodec", "idefics", "llava", "siglip"), renaming(
        (r"((?:L|l)ayer_?(?:N|n)orm\d?)\.weight$", r"\1.gamma"), (r"((?:L|l)ayer_?(?:N|n)orm\d?)\.bias$", r"\1.beta"),
    )),
    ("weight norms of torch 1", ("encodec", "musicgen"), renaming(
        (r"\.parametrizations\.weight\.original0$", ".weight_g"), (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    )),
    ("the language model's own names", SEEING, renaming(
        (r"^lm_head", "language_model.lm_head"), (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.vision_tower\.(?!vision_model)", "vision_tower.vision_model."), (r"^model\.", ""),
    )),
    ("the same without vision_model", SEEING, renaming(
        (r"^lm_head", "language_model.lm_head"), (r"^model\.language_model\.", "language_model.model."), (r"^model\.", ""),
    )),
    ("one base model", SEEING, renaming((r"^model\.vision_tower\.(?!vision_model)", "model.vision_tower.vision_model."))),
    ("a language model in front", SEEING, renaming((r"^model\.language_model\.", "language_model.model.model."))),
]  # fmt: skip


def turned_back(entry):
    """The reverse of an entry of the mapping."""
    reverse = entry.reverse_transform()
    return lambda name: reverse.rename_source_key(name)[0]


def said(entry):
    where = f" below {entry.scope_prefix or 'the base model'}" if entry.scope_prefix is not None else ""
    return f"{' or '.join(entry.source_patterns)}{where}"


def namings(family, model, saved):
    """Namings by what they are, and for each entry of the mapping that matters those that hold it."""
    own = {name: name for name in saved}
    prefix = model.base_model_prefix
    found = {"as saved": saved, "the module's own": own}
    if prefix:
        found["without the base model's prefix"] = {name: re.sub(rf"^{prefix}\.", "", name) for name in own}
        found["with the base model's prefix"] = {
            name: name if name.startswith(f"{prefix}.") else f"{prefix}.{name}" for name in own
        }
    bases = dict(found)
    for what, families, rename in PAST:
        for base in [saved, own]:
            past = {name: rename(other) for name, other in base.items()}
            if family in families:
                found.setdefault(what if base is saved else f"{what}, of the module's own", past)
    entries = {}
    for entry in get_model_conversion_mapping(model):
        back = turned_back(entry)
        for base, names in bases.items():
            # No file has a tower's name before that of the model around it.
            if isinstance(entry, PrefixChange) and entry.scope_prefix is None and base.startswith("with the"):
                continue
            past = {name: back(other) for name, other in names.items()}
            if past != names:
                entries.setdefault(said(entry), []).append(past)
                found[f"{said(entry)}, {base}"] = past
    # One table that stands in two places may be stored in the other.
    for other, name in (model.all_tied_weights_keys or {}).items():
        if name in saved:
            found[f"the tied table as {other}"] = {**saved, name: other}
    unique = {}
    for what, names in found.items():
        if len(set(names.values())) == len(names) and names not in unique.values():
            unique[what] = names
    return unique, entries


def unexpected(cls, config, file, state):
    """What of `file` `from_pretrained` does not expect; none if any of `state` is missing or has another value."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(file, Path(folder) / "model.safetensors", {"format": "pt"})
        loaded, said = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if said["missing_keys"] or said["mismatched_keys"]:
        return None
    loaded = loaded.state_dict()
    if any(not torch.equal(loaded[name], tensor) for name, tensor in state.items()):
        return None
    return said["unexpected_keys"]


def passed_over(cls, config, model, saved, state):
    """Tensors that the reference takes for granted in a file and does not read."""
    patterns = model._keys_to_ignore_on_load_unexpected or []
    candidates = {name: list(buffer.shape) for name, buffer in model.named_buffers() if name not in state}
    for name, _ in model.named_modules():
        # What each layer computed for itself, before rotations and masks were shared.
        if re.search(r"(^|\.)(self_attn|attn|attention|cross_attn)$", name):
            candidates[f"{name}.rotary_emb.inv_freq"] = [4]
            candidates[f"{name}.bias"] = [1, 1, 24, 24]
            candidates[f"{name}.masked_bias"] = []
    # Said of an encoder that was taken out of a whole T5, where it hides every tensor of any decoder.
    if "decoder" in patterns:
        whole = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
        at = "text_encoder." if hasattr(model, "text_encoder") else ""
        candidates = {name: shape for name, shape in candidates.items() if name.endswith("embed_positions.weights")}
        for name, tensor in whole.state_dict().items():
            if name.startswith("decoder."):
                candidates[at + name] = list(tensor.shape)
    for pattern in patterns:
        if pattern.endswith("relative_attention_bias.weight"):
            candidates[pattern] = [32, 4]
        if pattern == "lm_head.weight":
            candidates[pattern] = [61, config.d_model]
    prefix = model.base_model_prefix
    for name, shape in list(candidates.items()):
        if prefix and name.startswith(f"{prefix}."):
            candidates[name.removeprefix(f"{prefix}.")] = shape
        elif prefix:
            candidates[f"{prefix}.{name}"] = shape
    file = {saved[name]: tensor for name, tensor in state.items()}
    found = []
    for name, shape in sorted(candidates.items()):
        # A tensor that is known is none to pass over.
        if name in file or name in state:
            continue
        if unexpected(cls, config, {**file, name: torch.zeros(shape)}, state) == set():
            found.append([name, shape])
    return found


def in_gguf(arch, names, layers):
    known = gguf.get_tensor_name_map(arch, layers)
    ours = {name: known.get_name(name, (".weight", ".bias")) for name in names}
    assert all(ours.values()), f"{arch}: {ours}"
    stems = {name.rsplit(".", 1)[0] for name in ours.values()}
    every = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[arch]}
    return ours, sorted(every - stems)


def entry(family, name, keys, held):
    cls = CHRONOS.get(name) or getattr(transformers, name)
    config = cls.config_class(**keys)
    torch.manual_seed(0)
    model = cls(config).float().eval()
    tied = dict(model.all_tied_weights_keys or {})
    # No two values are alike, so that none can stand in for another.
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        written = load_file(Path(folder) / "model.safetensors")
        config_json = json.loads((Path(folder) / "config.json").read_text())
    state = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items() if key not in tied}
    # What is saved, under the names that it is saved by.
    saved = {}
    for key, tensor in state.items():
        same = [other for other, found in written.items() if found.shape == tensor.shape and torch.equal(found, tensor)]
        if same:
            saved[key] = key if key in same else same[0]
    state = {key: state[key] for key in saved}
    accepted, refused = {}, []
    tried, entries = namings(family, model, saved)
    for what, names in tried.items():
        if unexpected(cls, config, {names[key]: tensor for key, tensor in state.items()}, state) == set():
            accepted[what] = names
        else:
            refused.append(what)
    assert "as saved" in accepted, f"{name} does not load what it saved"
    for what, ways in entries.items():
        assert any(way in accepted.values() for way in ways), f"{name}: {what} is in no naming that loads"
    held |= set(entries)
    # Both places of a table, of the same values.
    both = {saved[key]: tensor for key, tensor in state.items()}
    tied = {other: key for other, key in tied.items() if key in state}
    both |= {other: state[key].clone() for other, key in tied.items()}
    assert unexpected(cls, config, both, state) == set(), f"{name} does not load both places of a table"
    ignored = passed_over(cls, config, model, saved, state)
    print(f"{family} {name}: {len(state)} tensors; {', '.join(accepted)}; refused: {', '.join(refused)}")
    print("  ignored:", " ".join(other for other, _ in ignored))
    own = sorted(state)
    found = {
        "family": family,
        "class": name,
        "config": config_json,
        "tensors": [[key, list(state[key].shape)] for key in own],
        # A name that is the module's own is left out.
        "namings": {
            what: ["" if names[key] == key else names[key] for key in own] for what, names in accepted.items()
        },
        "tied": tied,
        "ignored": ignored,
    }
    if arch := GGUF.get(name):
        found["gguf"], found["gguf_others"] = in_gguf(arch, [*own, *tied], 1)
    return found


def main():
    held = set()
    data = [entry(*each, held) for each in CLASSES]
    print("entries held:", sorted(held))
    FILE.write_text("[\n" + ",\n".join(json.dumps(each, separators=(",", ":")) for each in data) + "\n]\n")


main()
