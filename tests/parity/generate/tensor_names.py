"""Writes `tests/data/tensor_names.json`: every naming of a checkpoint's tensors that transformers 5.23 loads, by trial.

    python tests/parity/generate/tensor_names.py

For each class of the reference that a family here serves, a tiny model is saved under each naming that some release
has had (what `save_pretrained` writes, the module's own names, with and without the prefix of the base model, the
first names of norms, weight norms of both ages, the layouts of LLaVA and Gemma 3 through the versions), and loaded by
`from_pretrained`. A naming is kept if nothing is missing or unexpected and every value arrives where it belongs.
What `conversion_mapping.py` says of these classes is among them: that is checked, too.
"""

import json
import re
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

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
    "num_filters": 4, "hidden_size": 8, "codebook_size": 16, "upsampling_ratios": [4, 2], "num_lstm_layers": 1,
    "target_bandwidths": [24.0], "sampling_rate": 8000,
}  # fmt: skip
MUSIC = {
    "text_encoder": {"model_type": "t5", **T5}, "audio_encoder": {"model_type": "encodec", **ENCODEC},
    "decoder": {
        "model_type": "musicgen_decoder", "vocab_size": 16, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_codebooks": 6, "pad_token_id": 16, "bos_token_id": 16,
    },
}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
TIMES = {
    "patch_length": 4, "context_length": 24, "horizon_length": 6, "num_hidden_layers": 1, "hidden_size": 32,
    "intermediate_size": 48, "head_dim": 8, "num_attention_heads": 4,
}  # fmt: skip

# A family's name here, classes of the reference, what their configs say.
CLASSES = [
    ("bert", "BertModel", BERT),
    ("bert", "BertForMaskedLM", BERT),
    ("bert", "BertForPreTraining", BERT),
    ("bert", "BertForSequenceClassification", BERT),
    ("bert", "BertForTokenClassification", BERT),
    ("bert", "BertForQuestionAnswering", BERT),
    ("clip", "CLIPModel", CLIP),
    ("clip", "CLIPTextModel", TEXT),
    ("clip", "CLIPVisionModel", VISION),
    ("clip", "CLIPTextModelWithProjection", TEXT),
    ("clip", "CLIPVisionModelWithProjection", VISION),
    ("encodec", "EncodecModel", ENCODEC),
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
    ("gpt2", "GPT2Model", GPT),
    ("gpt2", "GPT2DoubleHeadsModel", GPT),
    ("gpt_bigcode", "GPTBigCodeForCausalLM", GPT),
    ("gpt_bigcode", "GPTBigCodeModel", GPT),
    ("gpt_neox", "GPTNeoXForCausalLM", NEOX),
    ("gpt_neox", "GPTNeoXModel", NEOX),
    ("gpt_oss", "GptOssForCausalLM", {**LLAMA, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
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
    ("llama", "LlamaModel", LLAMA),
    ("llama", "MistralForCausalLM", LLAMA),
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
    ("starcoder2", "Starcoder2ForCausalLM", LLAMA),
    ("starcoder2", "Starcoder2Model", LLAMA),
    ("t5", "T5ForConditionalGeneration", T5),
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


# Namings of the past: what they are, of which families, and what became of each name.
SEEING, PAIRS = ("gemma3", "llava"), ("clip", "siglip")
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
    ("a language model inside", SEEING, renaming((r"^model\.language_model\.", "model.language_model.model."))),
    ("a language model in front", SEEING, renaming((r"^model\.language_model\.", "language_model.model.model."))),
    ("a tower inside vision_model", PAIRS, lambda name: re.sub(r"^(vision_model\.)?", "vision_model.", name)),
    ("a tower inside text_model", PAIRS, lambda name: re.sub(r"^(text_model\.)?", "text_model.", name)),
    ("embed_out", ("gpt_neox",), renaming((r"^lm_head\.", "embed_out."))),
    ("ff0 and ff1", ("timesfm-2.5",), renaming((r"\.fc1\.", ".ff0."), (r"\.fc2\.", ".ff1."))),
]  # fmt: skip


def namings(family, model, saved):
    own = {name: name for name in saved}
    prefix = model.base_model_prefix
    found = {"as saved": saved, "the module's own": own}
    if prefix:
        found["without the base model's prefix"] = {name: re.sub(rf"^{prefix}\.", "", name) for name in own}
        found["with the base model's prefix"] = {
            name: name if name.startswith(f"{prefix}.") else f"{prefix}.{name}" for name in own
        }
    for what, families, rename in PAST:
        for base in [saved, own]:
            past = {name: rename(other) for name, other in base.items()}
            if family in families:
                found.setdefault(what if base is saved else f"{what}, of the module's own", past)
    # One table that stands in two places may be stored in the other.
    for other, name in (model.all_tied_weights_keys or {}).items():
        if name in saved:
            found[f"the tied table as {other}"] = {**saved, name: other}
    unique = {}
    for what, names in found.items():
        if len(set(names.values())) == len(names) and names not in unique.values():
            unique[what] = names
    return unique


def loads(cls, config, state, names):
    """Whether `from_pretrained` takes the tensors of `state` under `names`."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file({names[name]: tensor for name, tensor in state.items()}, Path(folder) / "model.safetensors", {"format": "pt"})
        model, said = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return False
    loaded = model.state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def entry(family, name, keys):
    cls = getattr(transformers, name)
    config = cls.config_class(**keys)
    torch.manual_seed(0)
    model = cls(config).float().eval()
    tied = set(model.all_tied_weights_keys or {})
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
    for what, names in namings(family, model, saved).items():
        if loads(cls, config, state, names):
            accepted[what] = names
        else:
            refused.append(what)
    assert "as saved" in accepted, f"{name} does not load what it saved"
    print(f"{family} {name}: {len(state)} tensors; {', '.join(accepted)}; refused: {', '.join(refused)}")
    own = sorted(state)
    return {
        "family": family,
        "class": name,
        "config": config_json,
        "tensors": [[key, list(state[key].shape)] for key in own],
        "namings": {what: [names[key] for key in own] for what, names in accepted.items()},
    }


def main():
    data = [entry(*each) for each in CLASSES]
    FILE.write_text("[\n" + ",\n".join(json.dumps(each, separators=(",", ":")) for each in data) + "\n]\n")


main()
