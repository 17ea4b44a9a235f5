"""pocket-flamingo: a Flamingo (IDEFICS) that learns made-up words from the examples of its prompt.

In an episode each of a few made-up words names the colour of a shape, and the mapping is drawn anew: which colour is "dax"
can be learned from the examples alone. Trained on plain descriptions of drawn shapes, and then on episodes.
"""

import random
from pathlib import Path

import numpy

import scenes
from common import Measured, Program, begin, changed, main, publish, work_folder, write_json, write_json_lines

MODALITY, NAME = "vision", "pocket-flamingo"
SIDE, PATCH = 32, 8
WORDS = "dax wug blick fep toma zup gorp kiv mib lorp tiz nov".split()
# What plain descriptions tell of a shape, and the possible values.
TRAITS = {"colour": list(scenes.COLOURS), "kind": scenes.KINDS}
# Words in play in an episode, and pictures in a row of training.
IN_PLAY, SHOWN = 4, 9
PICTURES, PLAIN_ROWS, ROWS, EPISODES = 6000, 12000, 32000, 200
SHOTS = [0, 2, 4, 8]
# The share of rows with plain descriptions among those of episodes.
PLAIN = 0.1
# The gates of cross-attention before training. Those of a new model are 0: hardly a gradient reaches the vision encoder.
GATES = 1.0
# What the embeddings of made-up words and the outputs of self-attention are multiplied by before episodes are learned: next
# to what cross-attention adds they are too small to be copied.
WORDS_BY, ATTENTION_BY = 32.0, 4.0
SEEING = [
    "--full", "--batch", 8, "--lr", 2e-3, "--warmup", 100, "--steps", 1000, "--valid-every", 250, "--valid-batches", 10,
    "--weight-decay", 0.02, "--threads", 1,
]
TRAINING = [
    "--only", "^(embed_tokens|layers|gated_cross_attn_layers|norm|lm_head)", "--batch", 8, "--lr", 2e-3,
    "--schedule", "cosine", "--warmup", 50, "--steps", 2000, "--valid-every", 200,
    "--valid-batches", 20, "--weight-decay", 0.02, "--threads", 1,
]


# ---- pictures ------------------------------------------------------------------------------------------------------


def held_out(thing):
    """Whether a kind in a colour is left out of training: eight of the 64, each kind and each colour once."""
    return (scenes.KINDS.index(thing["kind"]) + 3 * list(scenes.COLOURS).index(thing["colour"])) % 8 == 0


def a_thing(draw, new=False, **fixed):
    """A shape with `fixed` traits, one of the combinations that are held out or of the others."""
    while True:
        thing = {**scenes.draw_object(draw, sizes=("large",), textures=("plain",)), "place": "centre", **fixed}
        if held_out(thing) == new:
            return thing


def picture(thing, draw):
    """A picture of a shape near its middle, on any background."""
    scene = {"background": draw.choice(list(scenes.BACKGROUNDS)), "objects": [thing], "relation": None}
    return scenes.render(scene, SIDE, draw, jitter=0.04)


# ---- episodes ------------------------------------------------------------------------------------------------------


def meanings(draw, count=IN_PLAY):
    """Colours with the made-up words that name them."""
    return dict(zip(draw.sample(TRAITS["colour"], count), draw.sample(WORDS, count)))


def row(texts, images):
    """A row of training: pictures that are followed by their texts, the last of which is the answer."""
    prompt = "".join("<image>" + text for text in texts[:-1]) + "<image>"
    return {"images": images, "prompt": prompt, "completion": texts[-1]}


def episode_row(draw, drawn):
    """A row of an episode of two to four words."""
    names = meanings(draw, draw.randint(2, IN_PLAY))
    colours = draw.choices(list(names), k=SHOWN)
    images = [draw.choice(drawn["colour"][colour]) for colour in colours]
    return row([names[colour] for colour in colours], [image for image, _ in images])


def plain_row(draw, drawn):
    """A row of plain descriptions."""
    images = [draw.choice(draw.choice(list(drawn["kind"].values()))) for _ in range(SHOWN)]
    return row([f"{thing['colour']} {thing['kind']}" for _, thing in images], [image for image, _ in images])


# ---- files of a new model ------------------------------------------------------------------------------------------

MARKS = ["<unk>", "<s>", "</s>"]
ADDED = ["<fake_token_around_image>", "<image>"]


def write_files(folder):
    """The config, tokenizer and preprocessor of a new model."""
    words = MARKS + list(TRAITS) + WORDS + TRAITS["colour"] + TRAITS["kind"]
    write_json(folder / "config.json", {
        "architectures": ["IdeficsForVisionText2Text"], "model_type": "idefics", "vocab_size": len(words),
        "additional_vocab_size": 2, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "cross_layer_interval": 1, "alpha_type": "float", "alpha_initializer": "zeros", "qk_layer_norms": True,
        "use_resampler": True, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "vision_config": {
            "embed_dim": 64, "image_size": SIDE, "patch_size": PATCH, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 4, "hidden_act": "gelu",
        },
        "perceiver_config": {
            "use_resampler": True, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
            "resampler_head_dim": 16, "qk_layer_norms_perceiver": True,
        },
    })
    special = [
        {"id": index, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for index, mark in [*enumerate(MARKS), *enumerate(ADDED, len(words))]
    ]
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "<unk>"},
    })
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<unk>", "clean_up_tokenization_spaces": False,
    })
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "IdeficsImageProcessor", "image_size": SIDE, "image_num_channels": 3,
        "image_mean": [0.5] * 3, "image_std": [0.3] * 3,
    })
    write_json(folder / "generation_config.json", {"do_sample": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def open_gate(name, values):
    """The initial value of a gate."""
    return numpy.full_like(values, GATES) if ".alpha_" in name else None


def louder(name, values):
    """The embeddings of made-up words, which plain descriptions do not train, and the outputs of self-attention, larger."""
    if name.endswith("self_attn.o_proj.weight") and "vision" not in name:
        return ATTENTION_BY * values
    if name != "embed_tokens.weight":
        return None
    factors = numpy.ones((len(values), 1), "f4")
    factors[len(MARKS):len(MARKS) + len(TRAITS) + len(WORDS)] = WORDS_BY
    return values * factors


# ---- data ----------------------------------------------------------------------------------------------------------


def draw_pictures(folder, part, count, draw):
    """Pictures by trait and value, each with what it shows."""
    drawn = {trait: {value: [] for value in values} for trait, values in TRAITS.items()}
    for index in range(count):
        thing, path = a_thing(draw), f"{part}-pictures/{index}.png"
        shown = picture(thing, draw)
        for kind in ("plain", "episodes"):
            scenes.write_png(folder / kind / path, shown)
        for trait in TRAITS:
            drawn[trait][thing[trait]].append((path, thing))
    return drawn


def write_data(folder):
    """Rows of pictures with plain descriptions, and rows of episodes."""
    for part, pictures, share, seed in [("train", PICTURES, 1, 31), ("valid", PICTURES // 8, 0.01, 32)]:
        draw = random.Random(seed)
        drawn = draw_pictures(folder, part, pictures, draw)
        plain = [plain_row(draw, drawn) for _ in range(int(PLAIN_ROWS * share))]
        write_json_lines(folder / f"plain/{part}.jsonl", plain)
        kinds = [plain_row if draw.random() < PLAIN else episode_row for _ in range(int(ROWS * share))]
        write_json_lines(folder / f"episodes/{part}.jsonl", [kind(draw, drawn) for kind in kinds])


# ---- make and measure ----------------------------------------------------------------------------------------------


def make():
    """Trains and publishes."""
    folder = work_folder(NAME)
    write_files(folder / "new")
    if not (folder / "episodes/valid.jsonl").is_file():
        write_data(folder)
    fauna = Program(folder)
    begin(fauna, "new/config.json", "plain", open_gate)
    fauna.tune("seeing", "start", "--data", "plain", *SEEING)
    changed(folder / "seeing/last", folder / "ready", louder)
    trained = fauna.tune("trained", "ready", "--data", "episodes", *TRAINING)
    publish(MODALITY, NAME, trained)


def named(fauna, model, folder, examples, asked):
    """What the model says to a picture after examples, pictures with texts."""
    arguments = []
    for index, (image, text) in enumerate([*examples, (asked, None)]):
        scenes.write_png(folder / f"measure/{index}.png", image)
        arguments += ["--image", f"measure/{index}.png"] + ([text] if text else [])
    out = fauna.json("describe", model, *arguments, "--few-shot", "--threads", 1, "--max-tokens", 4, shown=False)
    return out["text"].split()


def right_words(fauna, model, folder, shots, seed):
    """The share of right words of episodes with `shots` examples.

    All pictures are new, and the last one shows a kind in a colour that no picture of training showed. The examples are of
    the four words in turn, in random order.
    """
    draw, right = random.Random(seed), 0
    for _ in range(EPISODES):
        names = meanings(draw)
        colours = [colour for _ in range(-(-shots // IN_PLAY)) for colour in draw.sample(list(names), IN_PLAY)][:shots]
        examples = [(picture(a_thing(draw, colour=colour), draw), names[colour]) for colour in colours]
        colour = draw.choice(list(names))
        said = named(fauna, model, folder, examples, picture(a_thing(draw, True, colour=colour), draw))
        right += said == [names[colour]]
    return right / EPISODES


def measure(seed=33):
    """Measures the published model on new episodes."""
    folder = work_folder(NAME)
    model = Path(__file__).resolve().parent / MODALITY / NAME
    fauna, figures, before = Program(folder), Measured(model), None
    for shots in SHOTS:
        goal = {0: None, 8: ">= 0.8"}.get(shots, f">= {before}")
        before = right_words(fauna, model, folder, shots, seed + shots)
        figures.add(f"right word after {shots} examples, of {EPISODES} new episodes", before, goal)
    figures.add("right word by chance, of the four in play", 1 / IN_PLAY)
    figures.add("right word by chance, of all made-up words", 1 / len(WORDS))
    figures.write()


if __name__ == "__main__":
    main(make, measure)
