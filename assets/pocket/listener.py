"""pocket-listener: a LLark (Jukebox's codec and prior, a projector, Llama) that tells tempo and instrument of music.

Three trainings: the codec of Jukebox with one level and codes on a grid, as in codec.py; the prior on these codes; and the
language model with its projector on questions and answers.
"""

import collections
import io
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

import synth
from codec import read_tensors, write_tensors
from common import Measured, Program, main, publish, work_folder, write_json, write_json_lines

HERE = Path(__file__).resolve().parent
SPACING = 0.4
CODEC = {
    "levels": 1, "embed_dim": 4, "nb_discrete_codes": 256, "res_conv_depth": 2, "res_conv_width": 16, "res_downs_t": [4],
    "res_strides_t": [4], "multipliers": [1], "res_dilation_growth_rate": 3, "res_convolution_multiplier": 1,
    "conv_input_shape": 1, "sample_length": 128 * 256,
}
PRIOR = {
    "attention_pattern": "raw_column_previous_row_attention", "mask": True, "is_encoder_decoder": False,
    "nb_relevant_lyric_tokens": 0, "lyric_vocab_size": 0, "merged_decoder": True, "level": 0, "n_ctx": 128, "hidden_size": 64,
    "num_layers": 3, "n_heads": 2, "blocks": 8, "attention_multiplier": 0.5, "mlp_multiplier": 2.0, "metadata_dims": [2, 2],
    "music_vocab_size": 256, "res_downs_t": [4], "res_strides_t": [4],
}
JUKEBOX = {
    "architectures": ["JukeboxModel"], "model_type": "jukebox", "nb_priors": 0, "sampling_rate": synth.RATE, "timing_dims": 4,
    "min_duration": 1, "max_duration": 600, "max_nb_genres": 1, "metadata_conditioning": True, "vqvae_config": CODEC,
}
# The same in OpenAI's names.
HPS = {
    "vqvae": {
        "levels": 1, "downs_t": [4], "strides_t": [4], "emb_width": 4, "l_bins": 256, "hvqvae_multipliers": [1], "width": 16,
        "depth": 2, "m_conv": 1.0, "dilation_growth_rate": 3, "dilation_cycle": None, "vqvae_reverse_decoder_dilation": True,
    },
    "prior": {
        "level": 0, "n_ctx": 128, "prior_width": 64, "prior_depth": 3, "heads": 2, "attn_order": 2, "blocks": 8, "m_attn": 0.5,
        "m_mlp": 2.0, "merged_decoder": True, "y_bins": [2, 2], "t_bins": 4, "max_bow_genre_size": 1, "sr": synth.RATE,
        "min_duration": 1.0, "max_duration": 600.0, "n_tokens": 0, "use_tokens": False, "labels": True,
    },
}
HEADER = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the human's questions.\n\n### Human: \n### Assistant:"
)
QUESTIONS = {
    "tempo": ("What is the tempo?", "How fast is this?", "How many beats per minute does this have?"),
    "instrument": ("Which instrument is playing?", "What instrument is this?", "What do you hear?"),
}
CODEC_TRAINING = (
    "--full", "--steps", 800, "--batch", 8, "--lr", 0.002, "--schedule", "cosine", "--warmup", 50, "--valid-every", 200,
    "--max-length", 32, "--threads", 1, "--seed", 1, "--loss", "commit=0.5", "--loss", "bandwidth_l2=0.02", "--loss", "bandwidth_spec=280",
    "--loss", "multispec_n_fft=[512]", "--loss", "multispec_hop_length=[128]", "--loss", "multispec_window_size=[512]",
)
PRIOR_TRAINING = (
    "--only", "^priors", "--steps", 600, "--batch", 8, "--lr", 0.002, "--schedule", "cosine", "--warmup", 50, "--valid-every", 200,
    "--valid-batches", 4, "--threads", 1, "--seed", 1,
)
TRAINING = (
    "--full", "--steps", 3000, "--batch", 8, "--lr", 0.002, "--schedule", "cosine", "--warmup", 100, "--valid-every", 250,
    "--valid-batches", 12, "--threads", 1, "--seed", 1,
)


def answer(piece, kind):
    """What is true of a piece."""
    if kind == "tempo":
        return f"{round(synth.tempo_of(piece))} beats per minute"
    return {"bells": "bells"}.get(piece["instrument"], f"a {piece['instrument']}")


def tokenizer():
    """tokenizer.json of the words of prompts, questions and answers, with LLark's tokens."""
    import re

    texts = [HEADER, *(text for texts in QUESTIONS.values() for text in texts)]
    texts += [f"{round(tempo)} beats per minute" for tempo in synth.TEMPOS.values()]
    texts += ["a harp", "a flute", "a violin", "bells"]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())})
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    sounds = ["<audio_patch>", "<audio_start>", "<audio_end>"]
    every = special + words + sounds
    added = [
        {"id": every.index(text), "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for text in special + sounds
    ]
    return len(every), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(every)}, "unk_token": "<unk>"},
    }


# ---------------------------------------------------------------- OpenAI's files


def openai_name(name):
    """OpenAI's name of a tensor of transformers' Jukebox, and whether it is of the prior."""
    parts = name.split(".")
    if parts[0] == "vqvae":
        if parts[-1] == "codebook":
            return ".".join(parts[1:-1] + ["k"]), False
        head, inside = parts[1:5], parts[5:]
        if parts[3] == "out":
            return ".".join(parts[1:]), False
        resnet = {"conv1d_1": "1", "conv1d_2": "3"}
        if inside[0] == "proj_in":
            inside = ["0", *inside[1:]]
        elif inside[0] == "proj_out":
            inside = [str(CODEC["res_downs_t"][0]), *inside[1:]]
        else:
            at = int(inside[1])
            down = inside[0] == "downsample_block"
            block = str(at // 2 if down else at // 2 + 1)
            if inside[2] == "resnet_block":
                inside = [block, "1" if down else "0", "model", inside[3], "model", resnet[inside[4]], *inside[5:]]
            else:
                inside = [block, "0" if down else "1", *inside[2:]]
        return ".".join(head + ["model", *inside]), False
    parts = parts[2:]
    if parts[0] == "metadata_embedding":
        parts = ["y_emb", parts[1], "emb", parts[2]] if parts[1] in ("bow_genre_emb", "artist_emb") else ["y_emb", *parts[1:]]
    elif parts[1] in ("embed_tokens", "fc_proj_out"):
        parts[1] = {"embed_tokens": "x_emb", "fc_proj_out": "x_out"}[parts[1]]
    elif "_attn_mods" in parts:
        if parts[-2].startswith("layer_norm"):
            parts[-2] = parts[-2].replace("layer_norm", "ln")
        else:
            parts[-1] = parts[-1][0]
    return ".".join(parts), True


def write_torch(path, tensors):
    """Writes {"model": tensors} as torch.save does, in bfloat16."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.BFloat16Storage = type("BFloat16Storage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2(*_):
        return None

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2, torch._utils = _rebuild_tensor_v2, utils
    Storage = collections.namedtuple("Storage", "key count")

    class Tensor:
        def __init__(self, key, tensor):
            self.key, self.tensor = key, tensor

        def __reduce__(self):
            strides = tuple(stride // self.tensor.itemsize for stride in self.tensor.strides)
            storage = Storage(self.key, self.tensor.size)
            return _rebuild_tensor_v2, (storage, 0, self.tensor.shape, strides, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.BFloat16Storage, value.key, "cpu", value.count) if isinstance(value, Storage) else None

    kept = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        arrays = {name: np.ascontiguousarray(tensor, "<f4") for name, tensor in tensors.items()}
        buffer = io.BytesIO()
        model = {name: Tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
        Pickler(buffer, 2).dump({"model": model})
    finally:
        for name, module in kept.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        when = (1980, 1, 1, 0, 0, 0)
        file.writestr(zipfile.ZipInfo("archive/data.pkl", when), buffer.getvalue())
        for i, array in enumerate(arrays.values()):
            bits = array.ravel().view("<u4")
            half = ((bits + (0x7FFF + (bits >> 16 & 1)).astype("<u4")) >> 16).astype("<u2")
            file.writestr(zipfile.ZipInfo(f"archive/data/{i}", when), half.tobytes())
        file.writestr(zipfile.ZipInfo("archive/version", when), "3\n")


def openai_layout(folder, tensors):
    """`vqvae.pth.tar` and `prior_level_2.pth.tar`."""
    files = {False: {}, True: {}}
    for name, tensor in tensors.items():
        official, is_prior = openai_name(name)
        files[is_prior][official] = tensor
    write_torch(folder / "vqvae.pth.tar", files[False])
    write_torch(folder / "prior_level_2.pth.tar", files[True])


# ---------------------------------------------------------------- training


def data(folder):
    """Pieces, and questions with answers."""
    for part, count, seed in (("train", 2000, 51), ("valid", 64, 52)):
        if (folder / "data" / f"{part}.jsonl").is_file():
            continue
        rows, random = [], np.random.default_rng(seed)
        for i, (piece, sound, _) in enumerate(synth.pieces(part, count, seed)):
            synth.write_wav(folder / "sounds" / part / f"{i:04d}.wav", sound)
            synth.write_wav(folder / "data" / part / f"{i:04d}.wav", sound)
            for kind in ("tempo", "tempo", "instrument"):
                question = QUESTIONS[kind][random.integers(len(QUESTIONS[kind]))]
                rows.append({"audio": f"{part}/{i:04d}.wav", "prompt": question, "completion": answer(piece, kind)})
        write_json_lines(folder / "data" / f"{part}.jsonl", [rows[i] for i in random.permutation(len(rows))])


def grid():
    """256 entries: four levels in each of four dimensions."""
    codes = np.arange(256)
    return np.stack([SPACING * ((codes >> 2 * axis & 3) - 1.5) for axis in range(4)], 1).astype("f4")


def fresh(program, name, config, *options):
    """The initial weights of a config."""
    write_json(program.folder / name / "config.json", config)
    first = program.tune(
        f"{name}-first", "--from-config", f"{name}/config.json", "--steps", 1, "--batch", 1, "--lr", 1e-30, "--valid-batches", 1,
        "--threads", 1, *options)
    return read_tensors(first / "model.safetensors")


def jukebox(program):
    """The tensors of codec and prior."""
    start = program.folder / "codec-start"
    spectra = [option for option in CODEC_TRAINING[CODEC_TRAINING.index("--loss"):]]
    if not (start / "model.safetensors").is_file():
        tensors = fresh(program, "codec", JUKEBOX, "--data", "sounds", *spectra)
        tensors["vqvae.bottleneck.level_blocks.0.codebook"] = grid()
        start.mkdir(exist_ok=True)
        write_json(start / "config.json", JUKEBOX)
        write_tensors(start / "model.safetensors", tensors)
    codec = program.tune("codec-tuned", "codec-start", "--data", "sounds", *CODEC_TRAINING)
    whole = JUKEBOX | {"nb_priors": 1, "prior_config_list": [PRIOR]}
    start = program.folder / "prior-start"
    if not (start / "model.safetensors").is_file():
        tensors = fresh(program, "prior", whole, "--data", "sounds", *spectra)
        tensors |= read_tensors(codec / "model.safetensors")
        # A prior of initial weights has no head.
        head = np.random.default_rng(3).normal(size=(256, 64)) * 0.02
        tensors.setdefault("priors.0.prior.fc_proj_out.weight", head.astype("f4"))
        start.mkdir(exist_ok=True)
        write_json(start / "config.json", whole)
        write_tensors(start / "model.safetensors", tensors)
    return read_tensors(program.tune("prior-tuned", "prior-start", "--data", "sounds", *PRIOR_TRAINING) / "model.safetensors")


def make():
    """Trains and publishes."""
    program = Program(work_folder("listener"))
    data(program.folder)
    count, words = tokenizer()
    start = program.folder / "config"
    if not (start / "jukebox/prior_level_2.pth.tar").is_file():
        openai_layout(start / "jukebox", jukebox(program))
    write_json(start / "tokenizer.json", words)
    write_json(program.folder / "hps.json", HPS)
    write_json(start / "config.json", {
        "architectures": ["WrappedLlamav2ForCausalLM"], "model_type": "wrapped_llamav2", "vocab_size": count, "hidden_size": 96,
        "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "mm_hidden_size": 64, "use_mm_proj": True,
        "mm_use_audio_start_end": True,
    })
    tuned = program.tune(
        "tuned", "--from-config", "config/config.json", "--set", "hps=@hps.json", "--data", "data", *TRAINING)
    if not (tuned / "jukebox").is_dir():
        shutil.copytree(start / "jukebox", tuned / "jukebox")
    publish("audio", "pocket-listener", tuned)
    write_json(HERE / "audio/pocket-listener/hps.json", HPS)


def heard(program, model, part, count, seed):
    """The share of right answers on tempo (within 8 %) and instrument."""
    tempos, instruments = [], []
    for piece, sound, _ in synth.pieces(part, count, seed):
        synth.write_wav(program.folder / "heard.wav", sound)
        said = {
            kind: program.run(
                "listen", model, "--audio", "heard.wav", "--set", f"hps=@{program.folder / 'hps.json'}", "--threads", 1,
                QUESTIONS[kind][0], shown=False).strip()
            for kind in ("tempo", "instrument")
        }
        number = next((int(word) for word in said["tempo"].split() if word.isdigit()), 0)
        tempos.append(abs(number / synth.tempo_of(piece) - 1) <= 0.08)
        instruments.append(piece["instrument"] in said["instrument"].split())
    return float(np.mean(tempos)), float(np.mean(instruments))


def measure(count=100):
    """Asks about pieces of combinations that were not in training."""
    program = Program(work_folder("listener"))
    write_json(program.folder / "hps.json", HPS)
    folder = HERE / "audio/pocket-listener"
    tempo, instrument = heard(program, folder, "test", count, 61)
    measured = Measured(folder)
    measured.add(f"tempo within 8 %, of {count} held-out pieces", tempo, ">= 0.8")
    measured.add("instrument right", instrument, ">= 0.8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".safetensors", ".tar"))
    measured.add("weights", size / 1e6, "<= 4", "MB")
    measured.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["try"]:
        print(heard(Program(work_folder("listener")), Path(sys.argv[2]).resolve(), "valid", int(sys.argv[3]), 62))
    else:
        main(make, measure)
