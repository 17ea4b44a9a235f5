#!/usr/bin/env python3
"""pocket-policy: an OpenVLA that picks up the block that the words name, on the simulated table-top.

    assets/pocket/policy.py make         records episodes, trains, publishes, measures
    assets/pocket/policy.py measure      measures the published model again

The episodes are those of a scripted expert from fixed seeds; what is measured are scenes of other seeds, in which the model
moves the gripper and sees nothing but the camera's picture and the instruction.
"""

import json
import re
import struct

import numpy

import common

NAME, MODALITY = "pocket-policy", "robotics"
# What the camera sees and the words say, in training and measurement.
SCENES = ["--size", 84, "--carriage", "--varied"]
# Blocks of a scene; training has scenes with fewer, too.
BLOCKS = 3
BATCH = 16
# Stages of training, each with its own episodes: first seed, number, options of the recording; learning rate, steps. In the
# first, many episodes begin near the block; in the second all begin where a scene begins, and the expert turns the jaws
# near the block only.
STAGES = [
    (10000, 1500, ["--smooth"], 2e-3, 8000),
    (20000, 1500, ["--smooth", "--turn-near", "--whole"], 1.5e-3, 12000),
]
# Scenes of the measurement: no seed of the episodes.
MEASURED, FIRST = 100, 1000

WORDS = "<unk> <s> </s> ? pick up grasp grab lift take get hold of the block cube red green blue yellow purple orange".split()
# Edges of the bins of an action's number (an even number, so that one of the bins has 0 in its middle), and tokens at the
# end of the vocabulary that no tokenizer has.
BINS, SPARE = 10, 4
CONFIG = {
    "architectures": ["OpenVLAForActionPrediction"],
    "model_type": "openvla",
    "arch_specifier": "no-align+gelu-mlp",
    "vision_backbone_id": "siglip-vit-so400m",
    "llm_backbone_id": "llama2-7b-pure",
    "use_fused_vision_backbone": False,
    "image_sizes": [84],
    "image_resize_strategy": "resize-naive",
    "timm_model_ids": ["vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None],
    "timm_model_kwargs": [{"embed_dim": 96, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "patch_size": 12}],
    "n_action_bins": BINS,
    "pad_to_multiple_of": SPARE,
    "text_config": {
        "model_type": "llama",
        "vocab_size": len(WORDS) + BINS + SPARE,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 100,
    },
}

# The colour of the table, from which colours are counted, so that what stands out is what is far from 0.
PROCESSOR = {
    "image_processor_type": "PrismaticImageProcessor",
    "use_fused_vision_backbone": False,
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 84, 84]],
    "interpolations": ["bicubic"],
    "means": [[0.78, 0.64, 0.47]],
    "stds": [[0.2, 0.2, 0.2]],
}


def tokenizer():
    """A tokenizer.json of whole words, to which the template around the instruction is the token "?" alone."""
    special = [
        {"id": index, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, word in enumerate(WORDS[:3])
    ]
    begin, single = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    replace = lambda text, by: {"type": "Replace", "pattern": {"String": text}, "content": by}
    template = [replace("in: what action should the robot take to ", ""), replace("?\nout:", " ?")]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *template]},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, single],
            "pair": [single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "WordLevel", "vocab": {word: index for index, word in enumerate(WORDS)}, "unk_token": "<unk>",
        },
    }


def shapes():
    """The tensors of the release's layout, those that are not read among them: the last block of the vision tower, its
    last norm and its attention pooling."""
    tower, text = CONFIG["timm_model_kwargs"][0], CONFIG["text_config"]
    width, patch, side = tower["embed_dim"], tower["patch_size"], CONFIG["image_sizes"][0]
    inner, hidden, vocabulary = int(tower["mlp_ratio"] * width), text["hidden_size"], text["vocab_size"]
    found = {}

    def linear(name, rows, columns, bias=True):
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    def norm(name, bias=True):
        found[f"{name}.weight"] = (width if bias else hidden,)
        if bias:
            found[f"{name}.bias"] = (width,)

    def mlp(name):
        linear(f"{name}.fc1", inner, width)
        linear(f"{name}.fc2", width, inner)

    see = "vision_backbone.featurizer"
    found[f"{see}.pos_embed"] = (1, (side // patch) ** 2, width)
    found[f"{see}.patch_embed.proj.weight"] = (width, 3, patch, patch)
    found[f"{see}.patch_embed.proj.bias"] = (width,)
    for layer in range(tower["depth"]):
        block = f"{see}.blocks.{layer}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2")
        mlp(f"{block}.mlp")
    norm(f"{see}.norm")
    pool = f"{see}.attn_pool"
    found[f"{pool}.latent"] = (1, 1, width)
    for name, rows in [("q", width), ("kv", 2 * width), ("proj", width)]:
        linear(f"{pool}.{name}", rows, width)
    norm(f"{pool}.norm")
    mlp(f"{pool}.mlp")
    linear("projector.fc1", hidden, width)
    linear("projector.fc2", hidden, hidden)
    model = "language_model.model"
    found[f"{model}.embed_tokens.weight"] = (vocabulary, hidden)
    for layer in range(text["num_hidden_layers"]):
        block = f"{model}.layers.{layer}"
        for name in "qkvo":
            linear(f"{block}.self_attn.{name}_proj", hidden, hidden, bias=False)
        linear(f"{block}.mlp.gate_proj", text["intermediate_size"], hidden, bias=False)
        linear(f"{block}.mlp.up_proj", text["intermediate_size"], hidden, bias=False)
        linear(f"{block}.mlp.down_proj", hidden, text["intermediate_size"], bias=False)
        norm(f"{block}.input_layernorm", bias=False)
        norm(f"{block}.post_attention_layernorm", bias=False)
    norm(f"{model}.norm", bias=False)
    linear("language_model.lm_head", vocabulary, hidden, bias=False)
    return found


def waves(side, width):
    """Sines and cosines of the columns and rows of a square of patches (Beyer et al. 2022, arXiv 2205.01580),
    (1, side * side, width)."""
    rates = 30.0 ** -(numpy.arange(width // 4) / (width // 4 - 1))
    y, x = numpy.divmod(numpy.arange(side * side), side)
    angles = [numpy.outer(place, rates) for place in (x, y)]
    return numpy.concatenate([wave(angle) for angle in angles for wave in (numpy.sin, numpy.cos)], axis=1)[None]


def initial(name, shape, draw):
    """Initial values of a tensor: norms 1, biases 0, matrices uniform (Glorot and Bengio 2010), position embeddings waves,
    token embeddings normal."""
    if len(shape) == 1:
        return numpy.full(shape, float("norm" in name and name.endswith("weight")))
    if name.endswith("pos_embed"):
        return 0.3 * waves(round(shape[1] ** 0.5), shape[2])
    if name.endswith(("embed_tokens.weight", "latent")):
        return draw.normal(0, 0.2, shape)
    return draw.uniform(-1, 1, shape) * numpy.sqrt(6 / (shape[0] + numpy.prod(shape[1:])))


def write_start(folder):
    """A checkpoint in the release's layout with initial values, from a fixed seed."""
    common.write_json(folder / "config.json", CONFIG)
    common.write_json(folder / "preprocessor_config.json", PROCESSOR)
    common.write_json(folder / "tokenizer.json", tokenizer())
    draw, header, parts, at = numpy.random.default_rng(1), {}, [], 0
    for name, shape in shapes().items():
        parts.append(initial(name, shape, draw).astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def make():
    folder = common.work_folder("policy")
    program = common.Program(folder)
    write_start(folder / "start")
    trained = "start"
    for stage, (first, count, options, rate, steps) in enumerate(STAGES, 1):
        episodes = f"episodes{stage}"
        if not (folder / episodes).is_dir():
            said = program.example(
                "tabletop_episodes", "record", episodes, count, "--first", first, "--blocks", BLOCKS, "--fewer", *options,
                *SCENES,
            )
            print(said, end="", flush=True)
        trained = program.tune(
            f"run{stage}", trained, "--full", "--data", episodes, "--valid", 0.01, "--batch", BATCH, "--lr", rate,
            "--schedule", "cosine", "--warmup", 200, "--steps", steps, "--valid-every", 500, "--threads", 1,
        )
    common.publish(MODALITY, NAME, trained)


def evaluated(program, policy, *options):
    """Scenes solved, scenes in which another block was taken, and actions a second, of a policy."""
    said = program.example(
        "tabletop_episodes", "evaluate", policy, MEASURED, "--first", FIRST, "--blocks", BLOCKS, *SCENES, *options
    )
    print(f"  {said}", end="", flush=True)
    found = re.fullmatch(r"(\d+) of \d+ scenes, \d+ steps, another block taken in (\d+), ([\d.]+) steps per second\n", said)
    return [float(number) for number in found.groups()]


def measure():
    folder = common.HERE / MODALITY / NAME
    program = common.Program(common.work_folder("policy"))
    measured = common.Measured(folder)
    solved, other, speed = evaluated(program, folder)
    measured.add(f"scenes solved, of {MEASURED} unseen with {BLOCKS} blocks", solved, ">= 90")
    measured.add("scenes in which a block was taken that the words do not name", other)
    measured.add("actions a second on two cores, pictures of the simulator included", speed, ">= 20")
    measured.add("scenes solved by the expert, which reads the state", evaluated(program, "expert", "--smooth")[0])
    measured.add("scenes solved by random actions", evaluated(program, "random")[0])
    measured.write()


if __name__ == "__main__":
    common.main(make, measure)
