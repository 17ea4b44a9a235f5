"""The parity case of pocket-dalle: the shipped files of flax in the port's classes, whose sizes are cut as in dalle.py."""

import importlib.util
import json
import re

import msgpack
import torch
from tokenizers import Tokenizer

import common
from common import Case
from dalle import PARTS, PORT, Bart, generate, pictures

NAME = "pocket-dalle"
FOLDER = common.CASES.parent.parent / "assets/pocket/vision" / NAME
PROMPTS = [
    " a red square in the top left", " a picture of a blue ring in the bottom right", " draw a green triangle in the centre",
    " top, a pink circle", " a yellow heart at the left", " a purple star, bottom", " an orange cross in the right",
    " a cyan diamond at the top right",
]
# How many of the prompts are recorded: those whose codes rest on no near-tie.
COUNT = 3


def read_flax(path):
    """The arrays of a msgpack file of flax by their paths, float32."""
    def array(code, data):
        assert code == 1
        shape, dtype, raw = msgpack.unpackb(data)
        return torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).reshape(shape).float()

    def walk(node, path=()):
        if isinstance(node, dict):
            for key, inner in node.items():
                yield from walk(inner, (*path, key))
        else:
            yield path, node

    return dict(walk(msgpack.unpackb(path.read_bytes(), ext_hook=array)))


def turned(leaf, value):
    """The name and the values in torch of a leaf of flax."""
    if leaf == "kernel":
        value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.t()
    return {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[leaf], value.contiguous()


def transformer(config):
    """The port's transformer with the shipped weights."""
    names = {flax: ours for ours, flax in PARTS.items()}
    state = {}
    for path, value in read_flax(FOLDER / "flax_model.msgpack").items():
        if path == ("lm_head", "kernel"):
            state["decoder.lm_head.weight"] = value.t().contiguous()
            continue
        _, half, *inner, leaf = path
        if inner[0] != "layers":
            last, value = turned(leaf, value)
            state[".".join([half, *inner, last])] = value
            continue
        projection = inner.pop() if inner[-1].endswith("_proj") else None
        part = names[".".join(inner[2:])]
        for number, one in enumerate(value):
            last, one = turned(leaf, one)
            state[".".join(filter(None, [half, f"layers.{number}", part, projection, last]))] = one
    model = Bart(0, config, False)
    info = model.load_state_dict(state, strict=False)
    # Norms before maps have no scales in the release, which the model has as ones.
    if info.unexpected_keys or any(not key.endswith("weight") for key in info.missing_keys):
        raise RuntimeError(info)
    return model.eval()


def painter(config):
    """The port's detokenizer with the shipped weights: its sizes and the number of its blocks cut."""
    path = importlib.util.find_spec("min_dalle.models.vqgan_detokenizer").origin
    source = open(path, encoding="utf8").read()
    log2 = [(config["ch"] * mult).bit_length() - 1 for mult in config["ch_mult"]]
    count, top = config["num_res_blocks"] + 1, log2[-1]
    levels = "".join(f"UpsampleBlock({log2[min(i + 1, len(log2) - 1)]}, {n}, False, {i > 0})," for i, n in enumerate(log2))
    source = re.sub(r"self\.up = nn\.ModuleList\(\[.*?\]\)", f"self.up = nn.ModuleList([{levels}])", source, flags=re.S)
    blocks = "ResnetBlock(log2_count_in, log2_count_out)" + ", ResnetBlock(log2_count_out, log2_count_out)" * (count - 1)
    source = re.sub(r"self\.block = nn\.ModuleList\(\[.*?\]\)", f"self.block = nn.ModuleList([{blocks}])", source, flags=re.S)
    for old, new in [
        ("range(3)", f"range({count})"), ("range(5)", f"range({len(log2)})"), ("ResnetBlock(9, 9)", f"ResnetBlock({top}, {top})"),
        ("2 ** 9", f"2 ** {top}"), ("2 ** 7", f"2 ** {log2[0]}"), ("nn.Conv2d(2 ** 8, ", f"nn.Conv2d({config['z_channels']}, "),
        ("2 ** 14, 2 ** 8", f"{config['n_embed']}, {config['embed_dim']}"),
        ("nn.Conv2d(embed_count, embed_count, 1)", f"nn.Conv2d(embed_count, {config['z_channels']}, 1)"),
    ]:
        source = source.replace(old, new)
    module = {}
    exec(compile(source, path, "exec"), module)
    state = {}
    for path, value in read_flax(FOLDER / "vqgan/flax_model.msgpack").items():
        if path[0] in ("encoder", "quant_conv"):
            continue
        *inner, leaf = path
        last, value = turned(leaf, value)
        inner = ["embedding"] if inner == ["quantize", "embedding"] else inner
        name = ".".join([*inner, last])
        if ".up_" in name:
            name = re.sub(r"(up|block|attn)_(\d+)(?=\.)", r"\1.\2", name)
        state[name] = value
    model = module["VQGanDetokenizer"]()
    model.load_state_dict(state)
    for part in model.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.eps = 1e-6
    return model.eval()


def main():
    """Writes the case."""
    config = json.loads((FOLDER / "config.json").read_text())
    model, vqgan = transformer(config), painter(json.loads((FOLDER / "vqgan/config.json").read_text()))
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    length, side = config["max_text_length"], int(config["image_length"] ** 0.5)
    padded = lambda ids: torch.tensor(ids + [1] * (length - len(ids)))
    rows, answers = [], []
    for prompt in PROMPTS:
        ids, nothing = padded(tokenizer.encode(prompt).ids)[None], padded([0, 2])[None]
        try:
            answers.append(generate(model, ids, nothing, config["decoder_start_token_id"], 1.0, config["image_vocab_size"]))
            rows.append(ids)
        except common.Retry as reason:
            print(f"left out: {prompt}: {reason}")
        if len(rows) == COUNT:
            break
    sequences = torch.cat([answer["sequences"] for answer in answers])
    expected = {"sequences": sequences, "images": pictures(vqgan, sequences.reshape(-1, side, side)).contiguous()}
    common.REFERENCE = PORT
    case = Case(f"pocket/{NAME.removeprefix('pocket-')}", "DALL-E")
    case.write("DalleBartEncoder + DalleBartDecoder + VQGanDetokenizer (sizes cut)", "generate", {"input_ids": torch.cat(rows)},
               expected, {"model_ref": NAME, "condition_scale": 1.0, "do_sample": False}, atol=2e-2,
               note="the shipped pocket model; the likeliest codes, without guidance")


if __name__ == "__main__":
    main()
