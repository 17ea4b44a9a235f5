"""pocket-music: a MusicGen (T5, language model in the delay pattern, pocket-codec) of four seconds by a description.

The text encoder and the language model are trained from random weights on the codes of pocket-codec, which codec.py makes.
"""

import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np

import synth
from codec import CONFIG as CODEC, complete, read_tensors, write_tensors
from common import Measured, Program, main, publish, work_folder, write_json, write_json_lines

HERE = Path(__file__).resolve().parent
TRAINING = (
    "--only", r"^(text_encoder|decoder|enc_to_dec_proj)\.", "--steps", 3000, "--batch", 8, "--lr", 0.0015, "--schedule",
    "cosine", "--warmup", 100, "--valid-every", 250, "--valid-batches", 12, "--threads", 1, "--seed", 1,
)
SAMPLING = ("--temperature", 0.5, "--top-k", 20)


def vocabulary():
    """The words of the captions."""
    words = set()
    for seed in range(3):
        for _, _, text in spoken("train", 2000, seed):
            words.update(re.findall(r"\w+|[^\w\s]+", text.lower()))
    return {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}


def spoken(part, count, seed):
    """`synth.pieces` without their sound."""
    allowed, random = synth.split()[part], np.random.default_rng(seed)
    made = 0
    while made < count:
        piece = synth.spec(random)
        if synth.triple(piece) in allowed:
            made += 1
            yield piece, None, synth.caption(piece, random)


def tokenizer(words):
    """tokenizer.json of words and marks, in lower case, with T5's `</s>` at the end."""
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(["<pad>", "</s>", "<unk>"])
    ]
    template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "single": template, "pair": pair,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def config(words):
    """config.json."""
    return {
        "architectures": ["MusicgenForConditionalGeneration"], "model_type": "musicgen", "is_encoder_decoder": True,
        "text_encoder": {
            "model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": words, "d_model": 64, "d_kv": 16, "d_ff": 128,
            "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 32,
            "feed_forward_proj": "relu", "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
        },
        "audio_encoder": CODEC,
        "decoder": {
            "model_type": "musicgen_decoder", "vocab_size": 256, "pad_token_id": 256, "bos_token_id": 256, "hidden_size": 128,
            "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 512, "num_codebooks": 2, "audio_channels": 1,
            "activation_function": "gelu", "max_position_embeddings": 2048, "dropout": 0.0, "attention_dropout": 0.0,
            "activation_dropout": 0.0, "layerdrop": 0.0, "tie_word_embeddings": False,
        },
    }


def data(folder):
    """Pieces with captions."""
    for part, count, seed in (("train", 3000, 31), ("valid", 96, 32)):
        if (folder / "data" / f"{part}.jsonl").is_file():
            continue
        rows = []
        for i, (_, sound, text) in enumerate(synth.pieces(part, count, seed)):
            name = f"{part}/{i:04d}.wav"
            synth.write_wav(folder / "data" / name, sound)
            rows.append({"audio": name, "text": text})
        write_json_lines(folder / "data" / f"{part}.jsonl", rows)


def initial(program):
    """Random weights around pocket-codec."""
    start, codec = program.folder / "start", work_folder("codec") / "tuned/best"
    if not (start / "model.safetensors").is_file():
        words = vocabulary()
        write_json(program.folder / "config/config.json", config(len(words)))
        write_json(program.folder / "config/tokenizer.json", tokenizer(words))
        write_json(program.folder / "config/tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        })
        write_json(program.folder / "config/generation_config.json", {
            "guidance_scale": 1.0, "do_sample": True, "max_length": 103, "bos_token_id": 256, "decoder_start_token_id": 256,
            "pad_token_id": 256,
        })
        write_json(program.folder / "config/preprocessor_config.json", {
            "feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": synth.RATE,
            "padding_side": "left", "padding_value": 0.0, "return_attention_mask": True,
        })
        first = program.tune(
            "first", "--from-config", "config/config.json", "--data", "data", "--steps", 1, "--batch", 1, "--lr", 1e-30,
            "--valid-batches", 1, "--threads", 1,
        )
        shutil.copytree(program.folder / "config", start, dirs_exist_ok=True)
        tensors = read_tensors(first / "model.safetensors")
        for name, tensor in read_tensors(codec / "model.safetensors").items():
            assert tensors[f"audio_encoder.{name}"].shape == tensor.shape
            tensors[f"audio_encoder.{name}"] = tensor
        write_tensors(start / "model.safetensors", tensors)
    return start


def make():
    """Trains and publishes."""
    program = Program(work_folder("music"))
    data(program.folder)
    initial(program)
    trained = program.tune("tuned", "start", "--data", "data", *TRAINING)
    publish("audio", "pocket-music", complete(trained, "audio_encoder."))


def composed(program, model, texts, *options):
    """The samples that `fauna compose` writes for each text, and the seconds that it took."""
    folder = program.folder / "composed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sounds, begun = [], time.monotonic()
    for at in range(0, len(texts), 25):
        part = texts[at:at + 25]
        program.run("compose", model, *part, "--seconds", synth.SECONDS, "--out", folder / f"{at}.wav", *options, shown=at == 0)
        names = [folder / f"{at}-{i + 1}.wav" for i in range(len(part))] if len(part) > 1 else [folder / f"{at}.wav"]
        sounds += [synth.read_wav(name) for name in names]
    return sounds, time.monotonic() - begun


def verdicts(program, model, part, count, seed, *options):
    """What is right in pieces composed by captions of combinations of `part`."""
    asked = list(spoken(part, count, seed))
    sounds, _ = composed(program, model, [text for _, _, text in asked], *options)
    return [synth.verdict(sound, piece) for (piece, _, _), sound in zip(asked, sounds)]


def measure(count=100):
    """Measures music for captions of combinations that were not in training."""
    program = Program(work_folder("music"))
    folder = HERE / "audio/pocket-music"
    shares = synth.shares(verdicts(program, folder, "test", count, 41, *SAMPLING, "--seed", 5))
    measured = Measured(folder)
    measured.add(f"tempo within 5 % of the caption, of {count} held-out captions", shares["tempo"], ">= 0.7")
    measured.add("key as in the caption", shares["key"], ">= 0.7")
    measured.add("instrument as in the caption", shares["instrument"], ">= 0.7")
    measured.add("all three", shares["all"])
    _, seconds = composed(program, folder, [text for _, _, text in spoken("test", 1, 42)], *SAMPLING)
    measured.add("seconds of music per second, two threads, with starting", synth.SECONDS / seconds, ">= 1")
    size = sum(path.stat().st_size for name in ("pocket-codec", "pocket-music") for path in (HERE / "audio" / name).glob("*.safetensors"))
    measured.add("weights of codec and music", size / 1e6, "<= 6", "MB")
    measured.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["try"]:
        # A checkpoint of the run on captions of the validation set: FOLDER COUNT OPTION...
        print(synth.shares(verdicts(
            Program(work_folder("music")), Path(sys.argv[2]).resolve(), "valid", int(sys.argv[3]), 43, *sys.argv[4:])))
    else:
        main(make, measure)
