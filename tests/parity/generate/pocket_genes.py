"""The parity case of pocket-genes: what transformers' GPT-NeoX computes from genes with the published checkpoint."""

import sys
from pathlib import Path

from common import Case, run_all
from genslm import GENES, reload, tokens_of, vectors

NAME = "pocket-genes"
FOLDER = Path(__file__).resolve().parents[3] / "assets/pocket/science" / NAME
VOCABULARY, LENGTH = 69, 40


def hidden(name):
    """Hidden states, logits and vectors of genes: too short, in lower case, with N, U, gaps and a piece of one base."""
    inputs = tokens_of(GENES, VOCABULARY, LENGTH)
    run = lambda model: vectors(model, inputs)
    case = Case(name, "GenSLMs")
    case.write("GPTNeoXForCausalLM under genslm 0.0.5a1's tokens and means", "forward", inputs, run(reload(FOLDER)),
               {"model_ref": NAME, "sequences": GENES, "seq_length": LENGTH}, note="the published pocket-genes")
    case.check_repeats(lambda _: reload(FOLDER), run)


if __name__ == "__main__":
    run_all({"pocket/genes": hidden}, sys.argv[1:])
