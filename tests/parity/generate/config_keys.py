"""Writes `tests/data/config_keys.json`: the keys of every config class that a family here reads, as transformers 5.23 has them.

    python tests/parity/generate/config_keys.py

Jukebox, which 5.23 no longer has, and what never was in it (DALL·E mini, OpenVLA, Orb) are left out.

For each family, and each place in its config (`""` is the whole file, `text_config` an object inside it), the class of the
reference, its keys with their defaults (null where the class computes the value), and its `attribute_map`: other names,
each with the canonical one.
"""

import dataclasses
import importlib
import inspect
import json
from pathlib import Path

FILE = Path(__file__).resolve().parents[3] / "tests/data/config_keys.json"

# A family's name here, then the places in its config with their classes.
FAMILIES = {
    "bert": {"": "BertConfig"},
    "clip": {"": "CLIPConfig", "text_config": "CLIPTextConfig", "vision_config": "CLIPVisionConfig"},
    "encodec": {"": "EncodecConfig"},
    "gemma3": {"": "Gemma3Config", "text_config": "Gemma3TextConfig", "vision_config": "SiglipVisionConfig"},
    "gemma3_text": {"": "Gemma3TextConfig"},
    "gpt1": {"": "OpenAIGPTConfig"},
    "gpt2": {"": "GPT2Config"},
    "gpt_bigcode": {"": "GPTBigCodeConfig"},
    "gpt_neox": {"": "GPTNeoXConfig"},
    "gpt_oss": {"": "GptOssConfig"},
    "idefics": {
        "": "IdeficsConfig",
        "perceiver_config": "IdeficsPerceiverConfig",
        "vision_config": "IdeficsVisionConfig",
    },
    "llama": {"": "LlamaConfig"},
    "llama as mistral": {"": "MistralConfig"},
    "llava": {"": "LlavaConfig", "text_config": "MistralConfig", "vision_config": "CLIPVisionConfig"},
    "mpt": {"": "MptConfig", "attn_config": "models.mpt.configuration_mpt.MptAttentionConfig"},
    "musicgen": {
        "": "MusicgenConfig",
        "audio_encoder": "EncodecConfig",
        "decoder": "MusicgenDecoderConfig",
        "text_encoder": "T5Config",
    },
    "musicgen as musicgen_melody": {"": "MusicgenMelodyConfig", "decoder": "MusicgenMelodyDecoderConfig"},
    "qwen2": {"": "Qwen2Config"},
    "siglip": {"": "SiglipConfig", "text_config": "SiglipTextConfig", "vision_config": "SiglipVisionConfig"},
    "starcoder2": {"": "Starcoder2Config"},
    "t5": {"": "T5Config"},
    "chronos-t5": {"": "T5Config"},
    "chronos-bolt": {"": "T5Config"},
    "timesfm": {"": "TimesFmConfig"},
    "timesfm-2.5": {"": "TimesFm2_5Config"},
}


def plain(value):
    """`value` as JSON has it; null for what is computed."""
    if value is inspect.Parameter.empty or value is dataclasses.MISSING:
        return None
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def keys(cls):
    found = {}
    fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        field = fields.get(name)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[name] = plain(default)
    return found


def main():
    data = {}
    for family, places in FAMILIES.items():
        data[family] = {}
        for place, name in places.items():
            module, _, name = name.rpartition(".")
            cls = getattr(importlib.import_module(f"transformers.{module}".rstrip(".")), name)
            data[family][place] = {
                "class": name,
                "keys": dict(sorted(keys(cls).items())),
                "attribute_map": dict(sorted(cls.attribute_map.items())),
            }
    FILE.write_text(json.dumps(data, indent=1) + "\n")


main()
