"""Parity cases of CLIP and SigLIP: both towers and each alone, activations, end tokens, masks, layouts, positions.

open_clip is pinned in requirements-flamingo.txt.
"""

import contextlib
import copy
import json
import math
import sys

import numpy
import open_clip.model
import open_clip.version
import sentencepiece
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextModel,
    SiglipTokenizer,
    SiglipVisionModel,
)

import common
from common import (
    Case,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    ids,
    right_padding,
    run_all,
    weights_of,
    write_bin,
    write_json,
    write_safetensors,
)
from training import lora, write_adapters, write_train_step

# A bias on keys shifts every score of a query alike, and what stands on no patch is not seen.
UNSEEN = ("k_proj.bias", "in_proj_bias")

TEXT = dict(vocab_size=83, hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=11)
VISION = dict(hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4, image_size=29,
              patch_size=7)


def fill(model, seed):
    """Random weights that keep activations near one."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if "logit" in name:
                weight.fill_(1.3 if "scale" in name else -2.1)
            elif any(part in name for part in ("norm", "ln_")) and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif any(part in name for part in ("position", "token_embedding", "probe")):
                weight.copy_(0.7 * noise)
            elif name in ("text_projection", "visual.proj", "proj"):
                weight.copy_(1.3 * noise / weight.shape[0] ** 0.5)
            else:
                weight.copy_(1.3 * noise / math.prod(weight.shape[1:]) ** 0.5)
    return model.eval()


def pictures(seed, count, height, width=None):
    return torch.randn(count, 3, height, width or height, generator=torch.Generator().manual_seed(seed + 2))


def ended(tokens, lengths, end):
    """Rows of `tokens` with `end` as the last of each length, and on."""
    for row, length in zip(tokens, lengths):
        row[length - 1 :] = end
    return tokens


@torch.inference_mode()
def run_of(model, inputs, **extra):
    """Every tensor of the answer that has a name in the table of calls."""

    def run(network):
        answer = network(**inputs, **extra)
        got = {}
        both = hasattr(network, "logit_scale")
        for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
            if answer.get(name) is not None:
                got[name] = answer[name]
        if both:
            words = {k: inputs[k] for k in ("input_ids", "attention_mask") if k in inputs}
            if isinstance(network, CLIPModel):
                got["text_features"] = network.get_text_features(**words).pooler_output
                got["image_features"] = network.get_image_features(inputs["pixel_values"], **extra).pooler_output
                got["text_last_hidden_state"] = answer.text_model_output.last_hidden_state
                got["vision_last_hidden_state"] = answer.vision_model_output.last_hidden_state
        else:
            got["last_hidden_state"] = answer.last_hidden_state
            if answer.get("pooler_output") is not None:
                got["pooler_output"] = answer.pooler_output
        return {name: value.float().contiguous().clone() for name, value in got.items()}

    return run


def loaded(model_class, config):
    """A loader for `check_repeats` that is told the configuration: some cases leave it half filled."""

    def load(folder):
        model, info = model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise RuntimeError(f"{folder}: {info}")
        return model.eval()

    return load


def saved_config(folder, config, architecture, drop, said):
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields["architectures"] = [architecture]
    for key in drop:
        for part in (fields, fields.get("text_config", {}), fields.get("vision_config", {})):
            part.pop(key, None)
    fields.update(said)
    write_json(folder / "config.json", fields)


# Half of what a release leaves out.
LEFT_OUT = ("attention_dropout", "initializer_factor", "initializer_range", "num_channels", "dropout",
            "transformers_version", "dtype", "logit_scale_init_value", "layer_norm_eps", "bos_token_id")


def whole(model_class, system, text, vision, lengths=(11, 5, 8), mask=None, end=None, others=(), write=write_safetensors,
          positions=False, scalars=False, size=None, drop=LEFT_OUT, said=None, old=False, note=None, **top):
    """Both towers."""
    config_class = CLIPConfig if model_class is CLIPModel else SiglipConfig

    def attempt(name, seed):
        config = config_class(text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **top)
        model = fill(model_class(config), seed)
        if scalars:
            model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().reshape(()))
            model.logit_bias = torch.nn.Parameter(model.logit_bias.detach().reshape(()))
        time = config.text_config.max_position_embeddings if mask is None else mask.shape[1]
        tokens = ids(seed, (len(lengths), time), config.text_config.vocab_size - 2)
        if end is not None:
            tokens = ended(tokens, lengths, end)
        inputs = {"input_ids": tokens}
        if mask is not None:
            inputs["attention_mask"] = mask
        inputs["pixel_values"] = pictures(seed, 2, *(size or (config.vision_config.image_size,)))
        extra = {"interpolate_pos_encoding": True} if size else {}
        run = run_of(model, inputs, **extra)
        check_every_weight_matters(model, run, UNSEEN)
        check_options_matter(model, run, others)
        case = Case(name, system)
        saved_config(case.model, config, model_class.__name__, drop, said or {})
        if old:
            # Files of 2021 hold each tower's configuration twice.
            fields = json.loads((case.model / "config.json").read_text())
            fields["text_config_dict"] = fields["text_config"]
            fields["text_config"] = {**fields["text_config"], "hidden_size": 999}
            fields["vision_config_dict"] = None
            write_json(case.model / "config.json", fields)
        weights = weights_of(model)
        if positions:
            for tower, count in (("text", time), ("vision", model.vision_model.embeddings.num_positions)):
                weights[f"{tower}_model.embeddings.position_ids"] = torch.arange(count).expand((1, -1)).contiguous()
        write(case.model, weights)
        case.write(model_class.__name__, "forward", inputs, run(model), extra, note=note)
        if not scalars:
            case.check_repeats(loaded(model_class, config), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def alone(model_class, system, config, inputs_of, prefix=None, others=(), said=None, drop=LEFT_OUT, note=None):
    """One tower; with `prefix`, as transformers 4 named its tensors."""

    def attempt(name, seed):
        cfg = config()
        model = fill(model_class(cfg), seed)
        inputs = inputs_of(cfg, seed)
        run = run_of(model, inputs)
        check_every_weight_matters(model, run, UNSEEN)
        check_options_matter(model, run, others)
        case = Case(name, system)
        saved_config(case.model, cfg, model_class.__name__, drop, said or {})
        weights = weights_of(model)
        if prefix is not None:
            plain = {key.removeprefix(prefix): value for key, value in weights.items()}
            kept = lambda key: "projection" in key
            weights = {key if kept(key) else prefix + key: value for key, value in plain.items()}
        else:
            weights = {key.removeprefix("vision_model.").removeprefix("text_model."): value
                       for key, value in weights.items()}
        write_safetensors(case.model, weights)
        case.write(model_class.__name__, "forward", inputs, run(model), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def open_clip_case(file, quick, vision, text, wrap=None, note=None, archive=False):
    """A model of open_clip's in its own layout, or in OpenAI's."""

    def attempt(name, seed):
        cfg = {"embed_dim": 22, "vision_cfg": vision, "text_cfg": text}
        model = fill(open_clip.model.CLIP(**cfg, quick_gelu=quick), seed)
        random = torch.Generator().manual_seed(seed + 1)
        context, words = model.context_length, model.vocab_size
        tokens = torch.randint(1, words - 1, (3, context), generator=random)
        for row, length in zip(tokens, (context, 4, 7)):
            row[length - 1] = words - 1
            row[length:] = 0
        inputs = {"image": pictures(seed, 2, vision["image_size"]), "text": tokens}
        if archive:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.half().float())

        @torch.inference_mode()
        def run(network):
            image, text_ = network.encode_image(inputs["image"]), network.encode_text(inputs["text"])
            cosines = torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text_, dim=-1).T
            return {"image_features": image, "text_features": text_,
                    "logits_per_image": network.logit_scale.exp() * cosines}

        check_every_weight_matters(model, run, UNSEEN)
        case = Case(name, "CLIP")
        case.model.mkdir(parents=True)
        weights = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
        if archive:
            write_archive(case.model / file, weights, vision, text)
        else:
            said = {"quick_gelu": True} if quick else {}
            write_json(case.model / "open_clip_config.json", {"model_cfg": {**cfg, **said}, "preprocess_cfg": {}})
            save = (lambda w, path: save_file(w, path)) if file.endswith(".safetensors") else torch.save
            save(weights, case.model / file)
        common.REFERENCE = f"open-clip-torch {open_clip.version.__version__}"
        case.write("CLIP", "forward", inputs, run(model), {"weights": file} if archive else {}, note=note)
        common.REFERENCE = f"transformers {common.transformers.__version__}"

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- training


def both_towers(model_class, seed, text, vision, mask, end=None, **top):
    """The model, and a batch of pairs: the text of a row belongs to the picture of the same row."""
    config_class = CLIPConfig if model_class is CLIPModel else SiglipConfig
    vision = {**VISION, "num_hidden_layers": 2, "image_size": 22, **vision}
    config = config_class(text_config={**TEXT, **text}, vision_config=vision, **top)
    model = fill(model_class(config), seed)
    tokens = ids(seed, mask.shape, config.text_config.vocab_size - 2)
    if end is not None:
        tokens = ended(tokens, mask.sum(1).tolist(), end)
    return model, {"input_ids": tokens, "attention_mask": mask,
                   "pixel_values": pictures(seed, len(mask), config.vision_config.image_size)}


def trained(model_class, system, text, mask, end=None, note=None, **top):
    """The loss that the class computes with `return_loss`."""

    def attempt(name, seed):
        model, inputs = both_towers(model_class, seed, text, {}, mask, end, **top)
        case = Case(name, system)
        saved_config(case.model, model.config, model_class.__name__, LEFT_OUT, {})
        write_safetensors(case.model, weights_of(model))
        write_train_step(case, model_class.__name__, model, lambda network, batch: network(**batch, return_loss=True).loss,
                         inputs, ("pixel_values",), loaded(model_class, model.config),
                         unseen=("k_proj.bias",), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def open_clip_model(seed, vision, text):
    """The model, its configuration, and a batch of pairs."""
    cfg = {"embed_dim": 22, "vision_cfg": vision, "text_cfg": text}
    model = fill(open_clip.model.CLIP(**cfg), seed)
    random = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(1, text["vocab_size"] - 1, (3, text["context_length"]), generator=random)
    for row, length in zip(tokens, (text["context_length"], 4, 7)):
        row[length - 1] = text["vocab_size"] - 1
        row[length:] = 0
    return model, cfg, {"image": pictures(seed, 3, vision["image_size"]), "text": tokens}


def write_open_clip(folder, model, cfg):
    folder.mkdir(parents=True)
    write_json(folder / "open_clip_config.json", {"model_cfg": cfg, "preprocess_cfg": {}})
    weights = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def open_clip_loaded(vision, text):
    """A loader of the file beside `open_clip_config.json`."""

    def load(folder):
        model, _, _ = open_clip_model(0, vision, text)
        model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
        return model

    return load


SMALL_OPEN_CLIP = ({"image_size": 24, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, "mlp_ratio": 2.0},
                   {"context_length": 9, "vocab_size": 61, "width": 20, "heads": 5, "layers": 2})


def open_clip_trained(vision, text, note=None):
    """The loss of open_clip's training code on one device."""

    def attempt(name, seed):
        model, cfg, inputs = open_clip_model(seed, vision, text)
        case = Case(name, "CLIP")
        write_open_clip(case.model, model, cfg)
        with said_reference(f"open-clip-torch {open_clip.version.__version__}"):
            write_train_step(case, "CLIP + ClipLoss", model, lambda network, batch: ClipLoss()(*network(**batch)), inputs,
                             ("image",), open_clip_loaded(vision, text), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def with_adapters(model_class, system, text, mask, configs, end=None, note=None, scales=None, safe=True, **top):
    """Both towers, with adapters on them."""

    def attempt(name, seed):
        model, inputs = both_towers(model_class, seed, text, {}, mask, end, **top)
        case = Case(name, system)
        saved_config(case.model, model.config, model_class.__name__, LEFT_OUT, {})
        write_safetensors(case.model, weights_of(model))
        write_adapters(case, model_class.__name__, "forward", model, copy.deepcopy(configs), run_of(model, inputs), inputs,
                       loaded(model_class, model.config), seed, scales=scales, safe=safe, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def open_clip_adapter(vision, text, configs, note=None):
    """open_clip's model, with adapters on it."""

    def attempt(name, seed):
        model, cfg, inputs = open_clip_model(seed, vision, text)

        @torch.inference_mode()
        def run(network):
            image, text_, scale = network(**inputs)
            return {"image_features": network.encode_image(inputs["image"]),
                    "text_features": network.encode_text(inputs["text"]), "logits_per_image": scale * image @ text_.T}

        case = Case(name, "CLIP")
        write_open_clip(case.model, model, cfg)
        with said_reference(f"open-clip-torch {open_clip.version.__version__}"):
            write_adapters(case, "CLIP", "forward", model, copy.deepcopy(configs), run, inputs,
                           open_clip_loaded(vision, text), seed, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


@contextlib.contextmanager
def said_reference(reference):
    """The package that a case names as its reference."""
    kept, common.REFERENCE = common.REFERENCE, reference
    try:
        yield
    finally:
        common.REFERENCE = kept


def write_archive(path, weights, vision, text):
    """A TorchScript archive in float16 with the three scalars, as OpenAI published."""

    def holder(names):
        module = torch.nn.Module()
        for name, value in names.items():
            *owners, leaf = name.split(".")
            at = module
            for owner in owners:
                if not hasattr(at, owner):
                    at.add_module(owner, torch.nn.Module())
                at = getattr(at, owner)
            at.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
        return module

    module = holder({name: value.half() for name, value in weights.items()})
    for name, value in (("input_resolution", vision["image_size"]), ("context_length", text["context_length"]),
                        ("vocab_size", text["vocab_size"])):
        module.register_buffer(name, torch.tensor(value))
    torch.jit.script(module).save(str(path))


# ---------------------------------------------------------------- texts and pictures


def photo(seed, height, width):
    """Bytes with edges and slopes, `(height, width, 3)`."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[:height, :width]
    waves = [numpy.sin(x / random.uniform(2, 9) + y / random.uniform(2, 9) + i) for i in range(3)]
    picture = 127 + 90 * numpy.stack(waves, -1) + 30 * (random.random((height, width, 3)) > 0.9)
    return picture.clip(0, 255).astype(numpy.uint8)


CAPTIONS = ["A Photo of two CATS!", "it's a dog's   bowl, isn't it?", "naïve café, 2 <tables>",
            "a very long caption that says far more of the picture than anybody would ever want to read of it"]


def clip_tokenizer(folder):
    """A vocabulary of bytes and a few merges, as CLIP's are written."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    bytes_ = list(bytes_to_unicode().values())
    merges = ["a t</w>", "c at</w>", "p h", "o t", "ph ot", "phot o</w>", "d o", "do g</w>", "a n", "t h", "i t</w>"]
    vocab = bytes_ + [byte + "</w>" for byte in bytes_] + [pair.replace(" ", "") for pair in merges]
    vocab = {token: i for i, token in enumerate([*vocab, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(pair.split()) for pair in merges], model_max_length=16)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")

    def tokenise(texts, length):
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt", max_length=length).input_ids

    return tokenise, vocab


def siglip_tokenizer(folder):
    """A unigram model whose end token is 1, as SigLIP's is."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    text = "a photo of two cats\nits a dogs bowl isnt it\nnaïve café 2 tables\na very long caption that says far more"
    corpus.write_text("\n".join([text] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=60, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    # The reference's own class asks for protobuf before anything else; its cleaning needs none.
    reader = SiglipTokenizer.__new__(SiglipTokenizer)
    reader.do_lower_case = True

    def tokenise(texts, length):
        unknown = len(pieces.encode("<unk>"))
        rows = [pieces.encode("<unk>" + reader.canonicalize_text("▁" + text))[unknown:] for text in texts]
        rows = [row[: length - 1] + [1] for row in rows]
        return torch.tensor([row + [1] * (length - len(row)) for row in rows])

    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "eos_token": "</s>", "pad_token": "</s>",
        "unk_token": "<unk>", "model_max_length": 12})
    return tokenise, pieces.get_piece_size()


def end_to_end(model_class, processor, note):
    """A picture in bytes and texts in words; the folder holds tokenizer and processor files."""
    clip = model_class is CLIPModel

    def make(name):
        seed = common.seed_of(name)
        case = Case(name, "CLIP" if clip else "SigLIP")
        if clip:
            tokenise, vocab = clip_tokenizer(case.model)
            end = vocab["<|endoftext|>"]
            text = {**TEXT, "vocab_size": len(vocab), "max_position_embeddings": 16, "eos_token_id": end,
                    "bos_token_id": end - 1, "pad_token_id": end}
            config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=22)
        else:
            tokenise, count = siglip_tokenizer(case.model)
            text = {**TEXT, "vocab_size": count + 20, "max_position_embeddings": 12, "hidden_size": 36}
            config = SiglipConfig(text_config=text, vision_config=VISION)
        model = fill(model_class(config), seed)
        saved_config(case.model, config, model_class.__name__, LEFT_OUT, {})
        write_safetensors(case.model, weights_of(model))
        written = json.loads(processor.to_json_string())
        write_json(case.model / "preprocessor_config.json", written)
        words = tokenise(CAPTIONS, config.text_config.max_position_embeddings)
        picture = photo(seed, 41, 57)
        pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        run = run_of(model, {"input_ids": words, "pixel_values": pixels})
        expected = run(model)
        expected["input_ids"] = words
        expected["pixel_values"] = pixels
        inputs = {"image": torch.from_numpy(picture.astype(numpy.int64))}
        case.write(model_class.__name__, "forward", inputs, expected, {"texts": CAPTIONS}, note=note)

    return make


def text_inputs(cfg, seed):
    tokens = ids(seed, (3, cfg.max_position_embeddings), cfg.vocab_size - 2)
    if type(cfg).__name__ == "CLIPTextConfig":
        tokens = ended(tokens, (9, 4, 11), cfg.eos_token_id)
    return {"input_ids": tokens}


def picture_inputs(cfg, seed):
    return {"pixel_values": pictures(seed, 2, cfg.image_size)}


def clip_text(**changes):
    return lambda: CLIPConfig(text_config={**TEXT, "eos_token_id": 82, "projection_dim": 19, **changes}).text_config


def clip_vision(**changes):
    return lambda: CLIPConfig(vision_config={**VISION, "projection_dim": 19, **changes}).vision_config


def siglip_text(**changes):
    return lambda: SiglipConfig(text_config={**TEXT, **changes}).text_config


def siglip_vision(**changes):
    return lambda: SiglipConfig(vision_config={**VISION, **changes}).vision_config


HOLES = torch.tensor([[1] * 9, [1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 0, 1]])
LENGTHS = (9, 4, 7, 9)
GELU = {"hidden_act": "gelu"}
SAME = {"hidden_size": 36}

CASES = {
    "clip/quick_gelu_largest_id": whole(
        CLIPModel, "CLIP", {"eos_token_id": 2}, {}, end=82, positions=True, projection_dim=26,
        others=[{"text_config": {**TEXT, "eos_token_id": 2, **GELU}}],
        note="the largest id stands for the text; positions are stored; most keys are left out"),
    "clip/gelu_first_end_masked": whole(
        CLIPModel, "CLIP", {**GELU, "eos_token_id": 3, "layer_norm_eps": 3e-4}, {**GELU, "layer_norm_eps": 2e-3},
        mask=HOLES, lengths=LENGTHS, end=3, projection_dim=17, write=write_bin,
        drop=(), note="the end token is the smallest id; padding on the right and within; pytorch_model.bin"),
    "clip/config_said_twice": whole(
        CLIPModel, "CLIP", {"eos_token_id": 82}, {"patch_size": 10, "image_size": 40}, end=82, old=True, projection_dim=20,
        note="text_config_dict overrides text_config"),
    "clip/positions_interpolated": whole(
        CLIPModel, "CLIP", {"eos_token_id": 82}, {}, end=82, size=(45, 24), projection_dim=20,
        note="pictures of 45 by 24 on positions of 4 by 4 patches"),
    "clip/vision_alone": alone(CLIPVisionModel, "CLIP", clip_vision(), picture_inputs),
    "clip/vision_alone_prefixed": alone(CLIPVisionModel, "CLIP", clip_vision(**GELU), picture_inputs, "vision_model."),
    "clip/vision_projected": alone(CLIPVisionModelWithProjection, "CLIP", clip_vision(), picture_inputs,
                                   "vision_model."),
    "clip/text_alone": alone(CLIPTextModel, "CLIP", clip_text(), text_inputs),
    "clip/text_projected": alone(CLIPTextModelWithProjection, "CLIP", clip_text(), text_inputs, "text_model."),
    "clip/open_clip_bin": open_clip_case(
        "open_clip_pytorch_model.bin", False,
        {"image_size": 33, "layers": 3, "width": 48, "patch_size": 8, "head_width": 16, "mlp_ratio": 2.7},
        {"context_length": 9, "vocab_size": 77, "width": 20, "heads": 5, "layers": 2},
        note="exact gelu, since quick_gelu is not said"),
    "clip/open_clip_quick": open_clip_case(
        "open_clip_model.safetensors", True,
        {"image_size": 28, "layers": 2, "width": 64, "patch_size": 7},
        {"context_length": 8, "vocab_size": 61, "width": 24, "heads": 3, "layers": 3},
        note="heads of 64 and a ratio of 4, since nothing is said"),
    "clip/openai_archive": open_clip_case(
        "tiny.pt", True,
        {"image_size": 24, "layers": 2, "width": 64, "patch_size": 8, "mlp_ratio": 2.0},
        {"context_length": 8, "vocab_size": 61, "width": 64, "heads": 1, "layers": 2}, archive=True,
        note="a TorchScript archive in float16; sizes are told by the tensors"),
    "clip/end_to_end": end_to_end(
        CLIPModel, CLIPImageProcessor(size={"shortest_edge": 31}, crop_size={"height": 29, "width": 29}),
        "image is bytes (height, width, 3); texts are tokenised with vocab.json and merges.txt"),
    "clip/train_step": trained(
        CLIPModel, "CLIP", {"eos_token_id": 82}, HOLES, end=82, projection_dim=20,
        note="the mean of the cross entropies over rows and columns; padding on the right and within"),
    "clip/train_step_open_clip": open_clip_trained(*SMALL_OPEN_CLIP),
    "clip/adapter_attention_and_patches": with_adapters(
        CLIPModel, "CLIP", {"eos_token_id": 82}, right_padding(LENGTHS),
        [lora(["q_proj", "v_proj", "out_proj", "patch_embedding"])], end=82,
        projection_dim=20, note="LoRA on both towers' attention and on the convolution over patches"),
    "clip/adapter_dora": with_adapters(
        CLIPModel, "CLIP", {"eos_token_id": 82}, right_padding(LENGTHS),
        [lora(["k_proj", "fc1", "patch_embedding", "visual_projection"], use_dora=True)],
        end=82, projection_dim=20, note="DoRA, on a convolution too"),
    "clip/adapter_open_clip": open_clip_adapter(
        *SMALL_OPEN_CLIP, [lora(["c_fc", "c_proj"], r=2, lora_bias=True)],
        note="open_clip's names; lora_B has a bias"),
    "siglip/train_step": trained(SiglipModel, "SigLIP", SAME, right_padding((11, 4, 7)),
                                 note="the sum of a text's log sigmoids over all pictures, averaged over texts"),
    "siglip/adapter_embedding": with_adapters(
        SiglipModel, "SigLIP", SAME, right_padding((11, 4, 7)),
        [lora(
            r".*(layers\.\d+\.self_attn\.(q|v)_proj|layers\.1\.mlp\.fc2|token_embedding|text_model\.head)",
            r=4, use_rslora=True)],
        note="rank-stabilised; target_modules is one expression; an embedding and a head among them"),
    "siglip/adapter_two": with_adapters(
        SiglipModel, "SigLIP", SAME, right_padding((11, 4, 7)),
        [lora(["q_proj", "fc1"], r=2), lora(["fc1", "k_proj"], lora_alpha=3)], scales=(0.7, 1.6), safe=False,
        note="two adapters, one module of both; adapter_model.bin"),
    "siglip/whole": whole(SiglipModel, "SigLIP", SAME, {},
                          note="padding is seen; logit_bias has the shape [1]"),
    "siglip/masked_scalars": whole(
        SiglipModel, "SigLIP", {"projection_size": 36, "hidden_act": "gelu", "layer_norm_eps": 1e-4}, {"image_size": 35},
        mask=right_padding((11, 4, 7)), scalars=True, write=write_bin, positions=True, drop=(),
        note="a mask that is given is applied; logit_scale and logit_bias are scalars"),
    "siglip/positions_interpolated": whole(SiglipModel, "SigLIP", SAME, {}, size=(24, 45)),
    "siglip/vision_alone": alone(SiglipVisionModel, "SigLIP", siglip_vision(), picture_inputs),
    "siglip/vision_without_head": alone(SiglipVisionModel, "SigLIP", siglip_vision(vision_use_head=False),
                                        picture_inputs, "vision_model."),
    "siglip/text_alone": alone(SiglipTextModel, "SigLIP", siglip_text(projection_size=25), text_inputs, "text_model."),
    "siglip/end_to_end": end_to_end(
        SiglipModel, SiglipImageProcessor(size={"height": 29, "width": 29}),
        "image is bytes (height, width, 3); texts lose case and punctuation and are filled up with id 1"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
