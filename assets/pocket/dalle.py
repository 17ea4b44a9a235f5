"""pocket-dalle: a DALL·E mini that draws a shape of a colour at a place, with a VQGAN of its own.

Trained on drawn scenes of one object: first the VQGAN as an autoencoder, then the transformer on captions and the codes of
pictures. A fifth of the combinations of kind, colour and place are left out of both.
"""

import collections
import itertools
import json
import random
import re
import shutil
import struct

import numpy

import scenes
from clip import letters_of_bytes, merges_of, share, word_counts
from common import HERE, REPOSITORY, Measured, Program, main, work_folder, write_json, write_json_lines

MODALITY, NAME = "vision", "pocket-dalle"
SIDE, CODES = 24, 256
PICTURES, VALID = 5000, 160
VQGAN = {
    "model_type": "vqgan", "architectures": ["VQModel"], "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1,
    "attn_resolutions": [], "resolution": SIDE, "z_channels": 32, "n_embed": CODES, "embed_dim": 4, "in_channels": 3,
    "out_ch": 3, "double_z": False, "dropout": 0.0, "resamp_with_conv": True, "give_pre_end": False,
}
VQGAN_TRAINING = [
    "--batch", 8, "--lr", 2e-3, "--schedule", "cosine", "--warmup", 20, "--steps", 1500, "--valid-every", 100,
    "--valid-batches", 2, "--weight-decay", 0.0, "--loss", "reconstruction=l2", "--loss", "commitment=0.01",
    "--threads", 2,
]

# The decoder alone, whose codes stay as they are.
DECODER_TRAINING = [
    "--only", "^(decoder|post_quant_conv)", "--batch", 8, "--lr", 1e-3, "--schedule", "cosine", "--warmup", 10,
    "--steps", 450, "--valid-every", 150, "--valid-batches", 2, "--weight-decay", 0.0, "--loss", "reconstruction=l2",
    "--threads", 2,
]
BART = {
    "model_type": "dallebart", "architectures": ["DalleBart"], "d_model": 96, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192,
    "image_vocab_size": CODES, "image_length": (SIDE // 4) ** 2, "max_text_length": 16, "decoder_start_token_id": CODES,
    "bos_token_id": CODES, "eos_token_id": CODES, "pad_token_id": CODES, "activation_function": "gelu",
    "ln_type": "layernorm", "ln_positions": "normformer", "use_glu": True, "use_bias": False, "force_ln_scale": False,
    "use_final_ln_encoder": True, "use_final_ln_decoder": True, "use_absolute_position_embeddings": True,
    "scale_embedding": False, "normalize_text": True, "tie_word_embeddings": False, "is_encoder_decoder": True,
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "use_scan": True,
}
BART_TRAINING = [
    "--batch", 32, "--lr", 3e-3, "--schedule", "cosine", "--warmup", 60, "--steps", 1600, "--valid-every", 200,
    "--weight-decay", 0.05, "--threads", 2,
]
# Chosen on prompts of training.
GENERATION = {"guidance_scale": 1.0, "temperature": 0.0}

PHRASES = [
    "{thing} in the {place}", "{thing} at the {place}", "a picture of {thing} in the {place}", "{place}, {thing}",
    "draw {thing} in the {place}", "{thing}, {place}",
]


# ---- data ----------------------------------------------------------------------------------------------------------


def combinations():
    """All combinations of kind, colour and place, those of training and those that are left out."""
    everything = list(itertools.product(scenes.KINDS, scenes.COLOURS, scenes.PLACES))
    random.Random(21).shuffle(everything)
    fifth = len(everything) // 5
    return everything[fifth:], everything[:fifth]


def scene(kind, colour, place):
    """A large plain object on white."""
    thing = {"kind": kind, "colour": colour, "size": "large", "texture": "plain", "place": place}
    return {"background": "white", "objects": [thing], "relation": None}


def drawn(combination, draw):
    """A picture of a combination."""
    return scenes.render(scene(*combination), SIDE, draw, jitter=0.02, noise=0.0, variation=0.0)


def prompt(combination, draw):
    """A caption of a combination."""
    kind, colour, place = combination
    return draw.choice(PHRASES).format(thing=scenes.with_article(f"{colour} {kind}"), place=place)


def write_data(folder):
    """Pictures alone, and pictures with captions, of which one of ten is empty, for guidance."""
    draw, (training, _) = random.Random(22), combinations()
    for part, count in [("train", PICTURES), ("valid", VALID)]:
        rows = []
        for index in range(count):
            one = draw.choice(training)
            picture = drawn(one, draw)
            path = f"{part}-pictures/{index}.png"
            scenes.write_png(folder / "captions" / path, picture)
            scenes.write_png(folder / f"pictures/{part}/{index}.png", picture)
            rows.append({"image": path, "text": "" if draw.random() < 0.1 else prompt(one, draw)})
        write_json_lines(folder / f"captions/{part}.jsonl", rows)


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def write_tokenizer(folder, texts):
    """A byte-level byte-pair encoding of the words of the texts, in the files of the release. Returns its size."""
    words = {("Ġ", *word) if word.isalpha() else tuple(word): count for word, count in word_counts(texts).items()}
    merges = merges_of(words)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens = special + letters_of_bytes() + ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(special)],
        "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {
            "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "vocab": vocabulary, "merges": list(map(" ".join, merges)),
        },
    })
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "DalleBartTokenizer", "model_max_length": BART["max_text_length"], "add_prefix_space": False,
        **names,
    })
    return len(tokens)


# ---- the files of flax ---------------------------------------------------------------------------------------------

# The modules of a layer, which flax numbers in order.
PARTS = {
    "glu.ln0": "GLU_0.LayerNorm_0", "glu.ln1": "GLU_0.LayerNorm_1", "glu.fc0": "GLU_0.Dense_0",
    "glu.fc1": "GLU_0.Dense_1", "glu.fc2": "GLU_0.Dense_2", "pre_self_attn_layer_norm": "LayerNorm_0",
    "self_attn_layer_norm": "LayerNorm_1", "pre_encoder_attn_layer_norm": "LayerNorm_2",
    "encoder_attn_layer_norm": "LayerNorm_3", "self_attn": "FlaxBartAttention_0",
    "encoder_attn": "FlaxBartAttention_1",
}


def read_safetensors(path):
    """The float32 tensors of a file."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    part = lambda entry: data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]]
    return {name: numpy.frombuffer(part(entry), "<f4").reshape(entry["shape"]) for name, entry in header.items()}


def leaf_of(name, weight):
    """The name of the last part of a tensor in flax, and its values."""
    last = name.rsplit(".", 1)[1]
    if last == "bias":
        return "bias", weight
    if weight.ndim == 1:
        return "scale", weight
    if "embed" in name:
        return "embedding", weight
    return "kernel", weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def transformer_tree(tensors):
    """The tensors of the transformer as the release has them: those of all layers in one stack."""
    tree, stacks = {}, collections.defaultdict(list)
    for name, weight in sorted(tensors.items(), key=lambda item: [int(p) if p.isdigit() else -1 for p in item[0].split(".")]):
        leaf, values = leaf_of(name, weight)
        if name == "decoder.lm_head.weight":
            tree["lm_head", "kernel"] = values
        elif found := re.fullmatch(r"(\w+)\.layers\.\d+\.(.*?)(?:\.(\w_proj|out_proj))?\.\w+", name):
            half, part, projection = found.groups()
            path = [*PARTS[part].split("."), *([projection] if projection else []), leaf]
            stacks["model", half, "layers", f"FlaxBart{half.capitalize()}Layers", *path].append(values)
        else:
            tree["model", *name.split(".")[:-1], leaf] = values
    return {**tree, **{path: numpy.stack(weights) for path, weights in stacks.items()}}


def vqgan_tree(tensors):
    """The tensors of the VQGAN as the release has them."""
    tree = {}
    for name, weight in tensors.items():
        leaf, values = leaf_of(name, weight)
        path = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")[:-1]
        tree[("quantize", "embedding", leaf) if name == "embedding.weight" else (*path, leaf)] = values
    return tree


def packed(value):
    """A value in msgpack; arrays as flax writes them, bfloat16."""
    def sized(count, small, *kinds):
        if small is not None and count < small[1]:
            return bytes([small[0] | count])
        kind, form = next((kind, form) for kind, form, limit in kinds if count < limit)
        return bytes([kind]) + struct.pack(form, count)

    if isinstance(value, dict):
        begin = sized(len(value), (0x80, 16), (0xDE, ">H", 2**16))
        return begin + b"".join(packed(key) + packed(inner) for key, inner in value.items())
    if isinstance(value, str):
        text = value.encode()
        return sized(len(text), (0xA0, 32), (0xD9, ">B", 2**8)) + text
    if isinstance(value, tuple):
        return sized(len(value), (0x90, 16), (0xDC, ">H", 2**16)) + b"".join(map(packed, value))
    if isinstance(value, int):
        return sized(value, (0, 128), (0xCD, ">H", 2**16), (0xCE, ">I", 2**32))
    if isinstance(value, bytes):
        return sized(len(value), None, (0xC4, ">B", 2**8), (0xC5, ">H", 2**16), (0xC6, ">I", 2**32)) + value
    bits = numpy.ascontiguousarray(value, "<f4").view("<u4")
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1)).astype("<u4")) >> 16).astype("<u2")
    inside = packed((tuple(map(int, value.shape)), "bfloat16", rounded.tobytes()))
    return sized(len(inside), None, (0xC7, ">B", 2**8), (0xC8, ">H", 2**16), (0xC9, ">I", 2**32)) + b"\x01" + inside


def write_flax(path, tree):
    """Writes arrays by their paths as `flax_model.msgpack`."""
    nested = {}
    for names, values in tree.items():
        inner = nested
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(nested))


def publish(transformer, vqgan):
    """Writes the release from two trained checkpoints, as the original's files."""
    folder = HERE / MODALITY / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]:
        shutil.copyfile(transformer / name, folder / name)
    write_json(folder / "generation_config.json", GENERATION)
    write_flax(folder / "flax_model.msgpack", transformer_tree(read_safetensors(transformer / "model.safetensors")))
    write_json(folder / "vqgan/config.json", VQGAN)
    write_flax(folder / "vqgan/flax_model.msgpack", vqgan_tree(read_safetensors(vqgan / "model.safetensors")))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.relative_to(REPOSITORY)}: {size / 1e6:.2f} MB", flush=True)


def prepare(checkpoint):
    """Sets the codebook of a new VQGAN to a grid of four levels in four dimensions, and the bias of its pixels to white.

    No code is far from the latents then, as in finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505). Training
    moves them.
    """
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    levels = list(itertools.product([-0.75, -0.25, 0.25, 0.75], repeat=VQGAN["embed_dim"]))
    for name, values in [("embedding.weight", levels), ("decoder.conv_out.bias", [scenes.BACKGROUNDS["white"]] * 3)]:
        begin, end = header[name]["data_offsets"]
        data[8 + length + begin:8 + length + end] = numpy.array(values, "<f4").tobytes()
    path.write_bytes(data)


# ---- make and measure ----------------------------------------------------------------------------------------------


def make():
    """Trains the VQGAN, then the transformer on its codes, and publishes both."""
    folder = work_folder(NAME)
    if not (folder / "captions/valid.jsonl").is_file():
        write_data(folder)
    fauna = Program(folder)
    write_json(folder / "new-vqgan/config.json", VQGAN)
    new = ["--from-config", "new-vqgan/config.json", "--steps", 1, "--lr", 1e-9, "--valid-batches", 1]
    if not (folder / "vqgan-start").is_dir():
        shutil.copytree(fauna.tune("vqgan-new", "--data", "pictures", *new), folder / "vqgan-start")
        prepare(folder / "vqgan-start")
    # The last weights: the validation loss has the distances of the latents in it, which grow while pictures become better.
    fauna.tune("vqgan-trained", "vqgan-start", "--full", "--data", "pictures", *VQGAN_TRAINING)
    vqgan = folder / "vqgan-trained/last"
    new = folder / "new"
    shutil.copytree(vqgan, new / "vqgan", dirs_exist_ok=True, ignore=shutil.ignore_patterns("training_state.*"))
    texts = [json.loads(line)["text"] for line in (folder / "captions/train.jsonl").read_text().splitlines()]
    write_json(new / "config.json", {**BART, "encoder_vocab_size": write_tokenizer(new, texts)})
    better = fauna.tune("vqgan-better", "vqgan-trained/last", "--data", "pictures", *DECODER_TRAINING)
    trained = fauna.tune("trained", "--from-config", "new/config.json", "--data", "captions", *BART_TRAINING)
    publish(trained, better)


def right(picture, combination):
    """Which of kind, colour and place of the largest object of a picture are those of a combination."""
    found = scenes.find_objects(picture)
    return [bool(found) and found[0][key] == value for key, value in zip(("kind", "colour", "place"), combination)]


def reconstructed(fauna, model, folder, wanted, seed):
    """Which properties are right in pictures that were encoded and decoded."""
    draw, judged = random.Random(seed), []
    for combination in wanted:
        scenes.write_png(folder / "measure/original.png", drawn(combination, draw))
        where = ["--threads", 1, "--force", "--out"]
        fauna.run("codec", "encode", model, "--image", "measure/original.png", *where, "measure/codes.safetensors", shown=False)
        fauna.run("codec", "decode", model, "--codes", "measure/codes.safetensors", *where, "measure/again.png", shown=False)
        judged.append(right(scenes.read_png(folder / "measure/again.png"), combination))
    return judged


def pictures_of(fauna, model, folder, prompts, *options):
    """Draws prompts with the program."""
    shutil.rmtree(folder / "drawn", ignore_errors=True)
    (folder / "drawn").mkdir()
    fauna.run("draw", model, *prompts, "--no-previews", "--threads", 1, "--out", "drawn/picture.png", *options, shown=False)
    return [scenes.read_png(folder / f"drawn/picture-{index + 1}.png") for index in range(len(prompts))]


def prompts_of(combinations, count, seed):
    """Prompts of combinations, each combination as often as another, and the combinations."""
    draw = random.Random(seed)
    wanted = [combinations[index % len(combinations)] for index in range(count)]
    return [prompt(combination, draw) for combination in wanted], wanted


def measure():
    """Measures the published model on combinations that training did not have."""
    folder, model = work_folder(NAME), HERE / MODALITY / NAME
    fauna, figures = Program(folder), Measured(model)
    training, left_out = combinations()
    again = reconstructed(fauna, model / "vqgan", folder, left_out[:100], 201)
    figures.add("100 pictures of new combinations encoded and decoded: right in all three", share((all(one), True) for one in again), ">= 0.95")
    for of, known, seed, goal in [("new", left_out, 202, ">= 0.8"), ("trained", training, 203, None)]:
        prompts, wanted = prompts_of(known, 200, seed)
        pictures = pictures_of(fauna, model, folder, prompts)
        judged = [right(picture, combination) for picture, combination in zip(pictures, wanted)]
        what = f"200 prompts of {of} combinations: right in"
        figures.add(f"{what} kind, colour and place", share((all(one), True) for one in judged), goal)
        for index, name in enumerate(["kind", "colour", "place"]):
            figures.add(f"{what} {name}", share((one[index], True) for one in judged))
    figures.write()


if __name__ == "__main__":
    main(make, measure)
