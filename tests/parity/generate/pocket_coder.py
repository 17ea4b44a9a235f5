"""The parity cases of pocket-coder: what transformers' GPTBigCode computes from code with the published checkpoint."""

import sys
from pathlib import Path

from transformers import AutoTokenizer, GPTBigCodeForCausalLM

from common import Case, generate, reload_as, run_all
from starcoder import last
from starcoder_tokenizer import END, psm

NAME = "pocket-coder"
FOLDER = Path(__file__).resolve().parents[3] / "assets/pocket/text" / NAME
GAP = psm("    def __repr__(self):\n        ", "\n\n    def close(self):\n        self.closed = True\n")
TEXTS = [
    GAP,
    psm("    try:\n        import ssl\n    ", "\n        ssl = None\n"),
    "def area(width, height):\n    return width * 2048 if width else 'naïve 東京 🚀'\n\n\nclass A(B):\n",
    "\n\n    x = [1, 2]<|endoftext|>    y\n",
]


def forward(name):
    """The last logits of texts: two gaps, letters beyond ASCII, indentation, the end of a text within."""
    read = AutoTokenizer.from_pretrained(FOLDER, padding_side="left", pad_token="<|endoftext|>")
    encoded = read(TEXTS, padding="longest", return_tensors="pt")
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    for text, row, mask in zip(TEXTS, inputs["input_ids"], inputs["attention_mask"]):
        assert read.decode(row[mask == 1]) == text, text
    gap = [read.convert_tokens_to_ids(token) for token in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")]
    assert gap == [1, 3, 2] and [token for token in read(GAP)["input_ids"] if token < 4] == gap
    fields = ("last_logits", "next_token")
    run = lambda model: inputs | {key: value for key, value in last(model, inputs).items() if key in fields}
    case, reload = Case(name, "StarCoder"), reload_as(GPTBigCodeForCausalLM)
    case.write("GPT2TokenizerFast + GPTBigCodeForCausalLM", "forward", inputs, run(reload(FOLDER)),
               {"model_ref": NAME, "texts": TEXTS, "padding": "left"}, note="the published pocket-coder")
    case.check_repeats(lambda _: reload(FOLDER), run)


def written(name):
    """A gap that is filled up to the end of the text."""
    read = AutoTokenizer.from_pretrained(FOLDER)
    inputs = {"input_ids": read(GAP, return_tensors="pt")["input_ids"]}
    options = {"max_new_tokens": 24, "pad_token_id": END, "eos_token_id": END}
    run = lambda model: generate(model, inputs, options)
    case, reload = Case(name, "StarCoder"), reload_as(GPTBigCodeForCausalLM)
    case.write("GPTBigCodeForCausalLM", "generate", inputs, run(reload(FOLDER)),
               options | {"model_ref": NAME, "dtype": "float32"}, note="the published pocket-coder fills a gap")
    case.check_repeats(lambda _: reload(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/coder": forward, "pocket/coder_generate": written}, sys.argv[1:])
