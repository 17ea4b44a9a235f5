"""Parity cases of Flamingo's open kin: OpenFlamingo's layouts over each language model, IDEFICS' branches.

Needs requirements-flamingo.txt beside requirements.txt.
"""

import copy
import json
import sys
from importlib.metadata import version

import open_clip
import torch
import transformers
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.utils import extend_instance
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from common import (
    Case,
    Retry,
    check_every_weight_matters,
    first_good,
    forward,
    generate,
    ids,
    last_shown,
    left_padding,
    randomise,
    reload_as,
    right_padding,
    round_weights,
    run_all,
    weights_of,
    write_config,
    write_json,
    write_safetensors,
    write_sharded_bin,
)
from training import lora, model_loss, write_adapters, write_train_step

WORDS = """an image of a the two three cats dogs birds red green blue small large sits on under beside with and no
some many grass sea sky house street boy girl man woman horse cow tree flower table chair bread apple cup book ball
boat car train bridge snow rain sun moon star wind lake hill""".split()


def write_tokenizer(folder, count, first, added=()):
    """A tokenizer of whole words: `first` special ones, ordinary ones up to `count`, `added` ones last."""
    vocab = {word: i for i, word in enumerate(first + WORDS[: count - len(first)])}
    assert len(vocab) == count
    tokenizer = Tokenizer(WordLevel(vocab, unk_token=first[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(first)
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))


# ---------------------------------------------------------------- OpenFlamingo

# Rows of the base's table; the tokenizer's length after <|endofchunk|>, <image> and <PAD> were added.
EOC, MEDIA, PAD, LENGTH = 58, 59, 60, 61

LANGUAGES = {
    "mpt": (MptForCausalLM, "transformer.blocks",
            lambda vocab: MptConfig(vocab_size=vocab, d_model=24, n_heads=3, n_layers=4, max_seq_len=48)),
    "neox": (GPTNeoXForCausalLM, "gpt_neox.layers",
             lambda vocab: GPTNeoXConfig(vocab_size=vocab, hidden_size=24, intermediate_size=40, num_hidden_layers=4,
                                         num_attention_heads=2, max_position_embeddings=48,
                                         use_parallel_residual=False,
                                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                                          "partial_rotary_factor": 1.0})),
    "llama": (LlamaForCausalLM, "model.layers",
              lambda vocab: LlamaConfig(vocab_size=vocab, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                                        num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=48)),
}

CLIP_CONFIG = dict(
    embed_dim=12,
    vision_cfg=dict(image_size=12, layers=2, width=8, patch_size=4, head_width=4),
    text_cfg=dict(context_length=8, vocab_size=20, width=8, heads=2, layers=1),
)


def clip(quick):
    model = open_clip.model.CLIP(**CLIP_CONFIG, quick_gelu=quick)
    model.visual.output_tokens = True
    return model


def wire(language, tower, blocks, every):
    """As create_model_and_transforms wires them, without its downloads."""
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(blocks)
    language.resize_token_embeddings(LENGTH)
    width = CLIP_CONFIG["vision_cfg"]["width"]
    model = Flamingo(tower, language, EOC, MEDIA, vis_dim=width, cross_attn_every_n_layers=every)
    model.set_attn_implementation = language.set_attn_implementation
    return model.eval()


def fill(model, seed, gain):
    """Random weights; gates away from zero, either way."""
    randomise(model, seed, gain)
    random = torch.Generator().manual_seed(seed + 7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_gate"):
                sign = 1 if torch.rand(1, generator=random) < 0.5 else -1
                weight.fill_(sign * (0.5 + torch.rand(1, generator=random).item()))
    return model


def texts(seed, lengths, places, left=True):
    """Rows of tokens with `<image>` where `places` says, chunks ended before all but the first."""
    mask = left_padding(lengths) if left else right_padding(lengths)
    rows = ids(seed, mask.shape, EOC) * mask + PAD * (1 - mask)
    for row, at in enumerate(places):
        start = mask.shape[1] - lengths[row] if left else 0
        for number, place in enumerate(at):
            rows[row, start + place] = MEDIA
            if number:
                rows[row, start + place - 1] = EOC
    return {"lang_x": rows, "attention_mask": mask}


def pictures(seed, rows, most, counts):
    """Pictures of each row; zeros where a row has fewer."""
    size = CLIP_CONFIG["vision_cfg"]["image_size"]
    random = torch.Generator().manual_seed(seed + 11)
    pixels = torch.randn(rows, most, 1, 3, size, size, generator=random)
    for row, count in enumerate(counts):
        pixels[row, count:] = 0
    return pixels


def table_names(language):
    return {"mpt": ["transformer.wte.weight"], "neox": ["gpt_neox.embed_in.weight", "embed_out.weight"],
            "llama": ["model.embed_tokens.weight", "lm_head.weight"]}[language]


def trained(model, language, table=True, duplicates=False, whole=False):
    """What the training code saves: what was trained, and the tables."""
    out = {}
    for name, weight in model.state_dict().items():
        # In memory transformers calls the head of GPT-NeoX otherwise than in files.
        name = name.replace("lang_encoder.lm_head", "lang_encoder.embed_out") if language == "neox" else name
        twice = "lang_encoder.gated_cross_attn_layers." in name or "lang_encoder.old_decoder_blocks." in name
        tied = language == "mpt" and "lm_head" in name
        is_table = name.removeprefix("lang_encoder.") in table_names(language)
        is_trained = name.startswith("perceiver.") or ".gated_cross_attn_layer." in name
        if tied or (twice and not duplicates) or (is_table and not table):
            continue
        if is_trained or is_table or twice or whole:
            out[name] = weight.detach().clone()
    return out


def write_language(folder, model, language, vocab):
    """The base's own release: its names, its own table."""
    cls, blocks, make = LANGUAGES[language]
    write_config(folder, make(vocab), [cls.__name__])
    out = {}
    for name, weight in model.state_dict().items():
        name = name.removeprefix("lang_encoder.") if name.startswith("lang_encoder.") else None
        if name is None or "gated_cross_attn_layer" in name or name.startswith("old_decoder_blocks."):
            continue
        name = name.replace(".decoder_layer.", ".")
        name = name.replace("lm_head.", "embed_out.") if language == "neox" else name
        if language == "mpt" and name == "lm_head.weight":
            continue
        if name in table_names(language):
            # Rows of the base's own: beyond those of the whole network there are others, and it has not the added ones.
            random = torch.Generator().manual_seed(5)
            table = torch.randn(vocab, weight.shape[1], generator=random)
            table[: min(vocab, EOC)] = weight[: min(vocab, EOC)]
            if vocab >= LENGTH:
                table[:LENGTH] = weight
            weight = table
        out[name] = weight.detach().contiguous().clone()
    write_safetensors(folder, out)


def write_tower(folder, tower, quick, transformers_names):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous().clone() for name, weight in tower.state_dict().items()}
    if not transformers_names:
        fields = dict(CLIP_CONFIG, quick_gelu=True) if quick else CLIP_CONFIG
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        write_json(folder / "open_clip_config.json",
                   {"model_cfg": fields, "preprocess_cfg": {"mean": mean, "std": std}})
        save_file(weights, folder / "open_clip_model.safetensors")
        return
    c = CLIP_CONFIG["vision_cfg"]
    act = "quick_gelu" if quick else "gelu"
    write_json(folder / "config.json", {
        "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], "hidden_size": c["width"],
        "intermediate_size": 4 * c["width"], "num_hidden_layers": c["layers"], "hidden_act": act,
        "num_attention_heads": c["width"] // c["head_width"], "image_size": c["image_size"],
        "patch_size": c["patch_size"]})
    out = {}
    for name, weight in weights.items():
        if not name.startswith("visual.") or name == "visual.proj":
            continue
        name = name.removeprefix("visual.")
        for theirs, ours in [("class_embedding", "embeddings.class_embedding"),
                             ("positional_embedding", "embeddings.position_embedding.weight"),
                             ("conv1.", "embeddings.patch_embedding."), ("ln_pre.", "pre_layrnorm."),
                             ("ln_post.", "post_layernorm."), ("transformer.resblocks.", "encoder.layers."),
                             (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".attn.", ".self_attn."),
                             (".c_fc.", ".fc1."), (".c_proj.", ".fc2.")]:
            name = name.replace(theirs, ours)
        name = "vision_model." + name
        if "in_proj_" in name:
            for part, rows in zip("qkv", weight.chunk(3)):
                out[name.replace("in_proj_", f"{part}_proj.")] = rows.contiguous().clone()
        else:
            out[name] = weight
    save_file(out, folder / "model.safetensors")


def rebuild(folder, language, every, quick, transformers_names, model):
    """The network once more, from what the folder holds; transformers' names are the same tensors."""
    cls, blocks, _ = LANGUAGES[language]
    base = cls.from_pretrained(folder / "lang_encoder", dtype=torch.float32, attn_implementation="eager")
    tower = clip(quick)
    if transformers_names:
        tower.visual.load_state_dict(model.vision_encoder.state_dict())
    else:
        tower.load_state_dict(load_file(folder / "vision_encoder" / "open_clip_model.safetensors"))
    again = wire(base, tower, blocks, every)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    saved = saved.get("model_state_dict", saved)
    saved = {name.removeprefix("module."): weight for name, weight in saved.items()}
    if language == "neox":
        saved = {name.replace("lang_encoder.embed_out", "lang_encoder.lm_head"): w for name, w in saved.items()}
    unknown = again.load_state_dict(saved, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"{folder}: {unknown}")
    if language == "mpt":
        base.lm_head.weight = base.transformer.wte.weight
    return again.eval()


def open_flamingo_case(language, every, lengths, places, most=2, call="forward", vocab=70, quick=True, wrapped=False,
                       transformers_names=False, note=None, left=True, new_tokens=9, **save):
    counts = [len(at) for at in places]

    def attempt(name, seed):
        cls, blocks, make = LANGUAGES[language]
        tower = clip(quick)
        model = wire(cls(make(vocab)), tower, blocks, every)
        fill(model, seed, 1.5 if call == "forward" else 2.5)
        if language == "mpt":
            model.lang_encoder.lm_head.weight = model.lang_encoder.transformer.wte.weight
        inputs = texts(seed, lengths, places, left) | {"vision_x": pictures(seed, len(places), most, counts)}
        options = {"cross_attn_every_n_layers": every, "media_token_id": MEDIA, "eoc_token_id": EOC,
                   "tokenizer_length": LENGTH, "quick_gelu": quick}
        if call == "forward":
            kept = last_shown(inputs["attention_mask"])
            options |= kept
            run = lambda network: forward(network, inputs, ["logits"], kept.get("logits_to_keep"))
            unseen = ("vision_encoder.proj", "ln_post.weight", "ln_post.bias", "in_proj_bias")
            check_every_weight_matters(model, run, unseen)
            check_pictures_matter(model, run, inputs)
        else:
            options |= {"max_new_tokens": new_tokens, "pad_token_id": PAD, "eos_token_id": EOC}
            run = lambda network: continued(network, inputs, new_tokens)
        expected = run(model)

        case = Case(name, "Flamingo")
        case.model.mkdir(parents=True)
        saved = trained(model, language, **save)
        if wrapped:
            saved = {"epoch": 3, "model_state_dict": {f"module.{key}": weight for key, weight in saved.items()},
                     "optimizer_state_dict": {"step": torch.tensor(1.0)}}
        torch.save(saved, case.model / "checkpoint.pt")
        write_language(case.model / "lang_encoder", model, language, vocab)
        if call == "generate":
            write_tokenizer(case.model / "lang_encoder", EOC, ["<|endoftext|>", "<|padding|>"])
        write_tower(case.model / "vision_encoder", tower, quick, transformers_names)
        case.write(cls.__name__, call, inputs, expected, options, note=note)
        rename_reference(case, cls.__name__)
        case.check_repeats(lambda folder: rebuild(folder, language, every, quick, transformers_names, model), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def rename_reference(case, language):
    path = case.folder / "case.json"
    fields = json.loads(path.read_text())
    fields["reference"] = (f"open-flamingo {version('open-flamingo')} Flamingo, "
                           f"open-clip-torch {version('open-clip-torch')}, "
                           f"transformers {transformers.__version__} {language}")
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def check_pictures_matter(model, run, inputs):
    """Every picture that a token looks at must move the answer."""
    expected = run(model)["logits"]
    key = "vision_x" if "vision_x" in inputs else "pixel_values"
    pixels = inputs[key]
    for row in range(pixels.shape[0]):
        for number in range(pixels.shape[1]):
            if not pixels[row, number].any():
                continue
            kept = pixels[row, number].clone()
            pixels[row, number] = kept.flip(-1) * 2
            moved = (run(model)["logits"] - expected).abs().max()
            pixels[row, number] = kept
            if moved < 1e-2:
                raise Retry(f"picture {number} of row {row} moves the answer by {moved:.4f}")


@torch.inference_mode()
def continued(model, inputs, new_tokens, margin=2e-3):
    """Greedy continuation that equals whole passes, rests on no near-tie and writes no place for a picture."""
    sequences = model.generate(**inputs, max_new_tokens=new_tokens, pad_token_id=PAD, do_sample=False)
    prompt = inputs["lang_x"].shape[1]
    rows, mask = inputs["lang_x"], inputs["attention_mask"]
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(sequences.shape[1] - prompt):
        logits = model(inputs["vision_x"], rows, attention_mask=mask).logits[:, -1]
        best, second = logits.topk(2).values.T
        if (best - second)[~ended].min() < margin:
            raise Retry("a step is a near-tie")
        token = torch.where(ended, PAD, logits.argmax(-1))
        if not torch.equal(token, sequences[:, prompt + step]):
            raise Retry("generation is not what whole passes give")
        ended |= token == EOC
        rows = torch.cat([rows, token[:, None]], 1)
        mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], 1)
    for row in sequences[:, prompt:].tolist():
        if MEDIA in row or len(set(row)) < 4:
            raise Retry("a row repeats itself, or writes a place for a picture")
    return {"sequences": sequences.clone()}


def labels_of(rows, interleaved):
    """The words to learn, as open_flamingo's `train/train_utils.py` picks them.

    Captions (LAION): all but padding and `<image>`. Interleaved documents (MMC4): also neither what stands before the
    first `<image>`, nor what stands between `<|endofchunk|>` and the next `<image>`. The language model shifts them.
    """
    labels = rows.masked_fill(rows == PAD, -100)
    if interleaved:
        for row, tokens in zip(labels, rows.tolist()):
            seen = False
            for t, token in enumerate(tokens):
                seen = seen or token == MEDIA
                if not seen:
                    row[t] = -100
                seen = seen and token != EOC
    return labels.masked_fill(rows == MEDIA, -100)


def small_flamingo(seed, language, every, vocab=70):
    """OpenFlamingo over two layers of a language model, without the second names of its layers."""
    cls, blocks, make = LANGUAGES[language]
    config = make(vocab)
    setattr(config, "n_layers" if language == "mpt" else "num_hidden_layers", 2)
    tower = clip(True)
    model = wire(cls(config), tower, blocks, every)
    fill(model, seed, 1.5)
    if language == "mpt":
        model.lang_encoder.lm_head.weight = model.lang_encoder.transformer.wte.weight
    return single_names(model), tower


def single_names(model):
    """The network keeps the lists that its layers were made from; what runs are the layers."""
    del model.lang_encoder.old_decoder_blocks, model.lang_encoder.gated_cross_attn_layers
    return model


def write_whole(case, model, tower, language, vocab=70):
    """A checkpoint with every weight of the network; the parts beside it give their configs."""
    case.model.mkdir(parents=True)
    torch.save(trained(model, language, whole=True), case.model / "checkpoint.pt")
    write_language(case.model / "lang_encoder", model, language, vocab)
    path = case.model / "lang_encoder" / "config.json"
    layers = model.lang_encoder.config.num_hidden_layers
    write_json(path, json.loads(path.read_text()) | {"n_layers" if language == "mpt" else "num_hidden_layers": layers})
    write_tower(case.model / "vision_encoder", tower, True, False)


def flamingo_options(every):
    return {"cross_attn_every_n_layers": every, "media_token_id": MEDIA, "eoc_token_id": EOC,
            "tokenizer_length": LENGTH, "quick_gelu": True}


def open_flamingo_step(language, every, lengths, places, interleaved, most=2, note=None):
    """One training step; the tower computes without gradients, as in the reference."""

    def attempt(name, seed):
        model, tower = small_flamingo(seed, language, every)
        inputs = texts(seed, lengths, places, left=False)
        inputs |= {"vision_x": pictures(seed, len(places), most, [len(at) for at in places]),
                   "labels": labels_of(inputs["lang_x"], interleaved)}
        case = Case(name, "Flamingo")
        write_whole(case, model, tower, language)
        in_files = lambda name: name.replace("lang_encoder.lm_head", "lang_encoder.embed_out") if (
            language == "neox") else name
        write_train_step(case, LANGUAGES[language][0].__name__, model, model_loss, inputs, ("labels",),
                         lambda folder: single_names(rebuild(folder, language, every, True, False, model)),
                         options=flamingo_options(every), name_of=in_files, note=note)
        rename_reference(case, LANGUAGES[language][0].__name__)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def open_flamingo_adapter(language, every, lengths, places, configs, most=2, scales=None, safe=True, note=None):
    """One forward pass with adapters of PEFT on the modules of the network."""

    def attempt(name, seed):
        model, tower = small_flamingo(seed, language, every)
        inputs = texts(seed, lengths, places, left=False)
        inputs["vision_x"] = pictures(seed, len(places), most, [len(at) for at in places])
        case = Case(name, "Flamingo")
        write_whole(case, model, tower, language)
        write_adapters(case, LANGUAGES[language][0].__name__, "forward", model, copy.deepcopy(configs),
                       lambda network: forward(network, inputs, ["logits"]), inputs,
                       lambda folder: single_names(rebuild(folder, language, every, True, False, model)), seed,
                       options=flamingo_options(every), scales=scales, safe=safe, note=note)
        rename_reference(case, LANGUAGES[language][0].__name__)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- IDEFICS

VOCAB = 57


def idefics_config(**changes):
    fields = dict(
        vocab_size=VOCAB, additional_vocab_size=2, hidden_size=24, intermediate_size=40, num_hidden_layers=4,
        num_attention_heads=3, max_position_embeddings=48, rms_norm_eps=1e-5, cross_layer_interval=2,
        qk_layer_norms=True, use_resampler=True,
        vision_config=dict(embed_dim=16, image_size=12, patch_size=4, intermediate_size=30, num_hidden_layers=2,
                           num_attention_heads=2),
        perceiver_config=dict(use_resampler=True, resampler_n_latents=5, resampler_depth=2, resampler_n_heads=3,
                              resampler_head_dim=6, qk_layer_norms_perceiver=True))
    vision = fields["vision_config"] | changes.pop("vision_config", {})
    perceiver = fields["perceiver_config"] | changes.pop("perceiver_config", {})
    return IdeficsConfig(**{**fields, **changes, "vision_config": vision, "perceiver_config": perceiver})


def idefics_fill(model, seed, gain):
    randomise(model, seed, gain)
    random = torch.Generator().manual_seed(seed + 7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "alpha_" in name:
                noise = torch.randn(weight.shape, generator=random)
                weight.copy_(noise.sign() * 0.5 + 0.3 * noise)
    return model


def idefics_texts(seed, lengths, places, vocab, left=True):
    mask = left_padding(lengths) if left else right_padding(lengths)
    rows = ids(seed, mask.shape, vocab) * mask
    for row, at in enumerate(places):
        start = mask.shape[1] - lengths[row] if left else 0
        for place in at:
            rows[row, start + place] = VOCAB + 1
            rows[row, start + place - 1] = VOCAB
            rows[row, start + place + 1] = VOCAB
    return {"input_ids": rows, "attention_mask": mask}


def latest(rows, most):
    """As the reference's processor: the latest picture, nothing after the end of a text until the next."""
    mask = torch.zeros(*rows.shape, most, dtype=torch.long)
    for r, row in enumerate(rows.tolist()):
        count, over = -1, False
        for t, token in enumerate(row):
            if token == VOCAB + 1:
                count, over = count + 1, False
            if count >= 0 and not over:
                mask[r, t, count] = 1
            over |= token == 2
    return mask


def flat(config):
    """The keys of early revisions: the parts' beside all others."""
    fields = json.loads(config.to_json_string(use_diff=False))
    out = {}
    for key, value in fields.pop("vision_config").items():
        if key in ("embed_dim", "image_size", "patch_size", "intermediate_size", "num_hidden_layers",
                   "num_attention_heads", "hidden_act", "layer_norm_eps"):
            out[f"vision_{key}"] = value
    out |= {key: value for key, value in fields.pop("perceiver_config").items() if key.startswith(("resampler", "qk"))}
    return out | {"cross_layer_activation_function": "swiglu"}


def idefics_case(lengths, places, most=2, call="forward", as_flat=False, dtype=torch.float32, write=write_safetensors,
                 given="pixel_values", end_at=None, table=None, left=True, buffers=False, note=None, bad_words=False,
                 unseen=(), positions=False, **changes):
    counts = [len(at) for at in places]

    def attempt(name, seed):
        config = idefics_config(**changes)
        model = idefics_fill(IdeficsForVisionText2Text(config), seed, 1.5 if call == "forward" else 2.5)
        round_weights(model, dtype)
        inputs = idefics_texts(seed, lengths, places, VOCAB, left)
        if end_at is not None:
            inputs["input_ids"][:, end_at] = 2
        inputs["image_attention_mask"] = latest(inputs["input_ids"], most) if table is None else table
        if positions:
            inputs["position_ids"] = ids(seed + 3, inputs["input_ids"].shape, 40, low=0)
        size = config.vision_config.image_size
        random = torch.Generator().manual_seed(seed + 11)
        pixels = torch.randn(len(places), most, 3, size, size, generator=random)
        for row, count in enumerate(counts):
            pixels[row, count if table is None else most:] = 0
        inputs["pixel_values"] = pixels
        dropped = ["model.vision_model.post_layernorm.weight", "model.vision_model.post_layernorm.bias",
                   "self_attn.k_proj.bias", "k_layer_norm.bias"]
        if given != "pixel_values":
            inputs[given] = made(model, inputs, given)
            del inputs["pixel_values"]
            dropped += ["vision_model"] + (["perceiver_resampler"] if given == "perceiver_embeddings" else [])
        if call == "forward":
            kept = last_shown(inputs["attention_mask"])
            options = dict(kept)
            run = lambda network: forward(network, inputs, ["logits"], kept.get("logits_to_keep"))
            check_every_idefics_weight_matters(model, run, dropped + list(unseen))
            if given == "pixel_values":
                check_pictures_matter(model, run, inputs)
        else:
            options = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": 2}
            if bad_words:
                options["bad_words_ids"] = [[VOCAB], [VOCAB + 1]]
            run = lambda network: generate(network, inputs, options)
        expected = run(model)

        case = Case(name, "Flamingo")
        drop = ["vision_config", "perceiver_config"] if as_flat else []
        write_config(case.model, config, ["IdeficsForVisionText2Text"], drop, **(flat(config) if as_flat else {}))
        weights = weights_of(model, dtype)
        if buffers:
            count = (size // config.vision_config.patch_size) ** 2 + 1
            weights["model.vision_model.embeddings.position_ids"] = torch.arange(count)[None]
            for layer in range(2):
                weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
        write(case.model, weights)
        if call == "generate":
            write_tokenizer(case.model, VOCAB, ["<unk>", "<s>", "</s>"], ["<fake_token_around_image>", "<image>"])
        if dtype != torch.float32:
            options["dtype"] = "float32"
        case.write("IdeficsForVisionText2Text", call, inputs, expected, options, note=note)
        if not as_flat:
            case.check_repeats(reload_as(IdeficsForVisionText2Text), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def check_every_idefics_weight_matters(model, run, unseen):
    parts = [part for part in unseen if not part.endswith(("weight", "bias"))]
    hidden = [name for name, _ in model.named_parameters() if any(part in name for part in parts)]
    check_every_weight_matters(model, run, tuple(unseen) + tuple(hidden))


@torch.inference_mode()
def made(model, inputs, kind):
    """What the vision tower, or the resampler after it, makes of the pictures."""
    pixels = inputs["pixel_values"]
    states = model.model.vision_model(pixels.flatten(0, 1)).last_hidden_state
    if kind == "perceiver_embeddings":
        states = model.model.perceiver_resampler(states)
    return states.view(*pixels.shape[:2], *states.shape[1:]).clone()


def small_idefics(seed, lengths, places, most=2, **changes):
    """Two layers and one of cross-attention with nothing frozen, and a batch."""
    config = idefics_config(num_hidden_layers=2, freeze_text_layers=False, freeze_vision_layers=False,
                            freeze_lm_head=False, **changes)
    model = idefics_fill(IdeficsForVisionText2Text(config), seed, 1.5)
    inputs = idefics_texts(seed, lengths, places, VOCAB, left=False)
    inputs["image_attention_mask"] = latest(inputs["input_ids"], most)
    size = config.vision_config.image_size
    inputs["pixel_values"] = torch.randn(len(places), most, 3, size, size, generator=torch.Generator().manual_seed(seed + 11))
    for row, at in enumerate(places):
        inputs["pixel_values"][row, len(at):] = 0
    return model, inputs


def idefics_loss(network, inputs):
    """The shifted cross entropy over all rows of the head, averaged over the labels that are not -100.

    The class computes it over `vocab_size` rows, which fails where the release has added tokens; earlier releases of
    the class counted all of them, as this does. (In float64 a token that sees no picture is not a number.)
    """
    labels = inputs["labels"]
    logits = network(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def idefics_step(lengths, places, note=None, loss_fn=idefics_loss, **changes):
    def attempt(name, seed):
        model, inputs = small_idefics(seed, lengths, places, **changes)
        rows, mask = inputs["input_ids"], inputs["attention_mask"]
        inputs["labels"] = rows.masked_fill((mask == 0) | (rows == VOCAB + 1), -100)
        case = Case(name, "Flamingo")
        write_config(case.model, model.config, ["IdeficsForVisionText2Text"])
        write_safetensors(case.model, weights_of(model))
        write_train_step(case, "IdeficsForVisionText2Text", model, loss_fn, inputs, ("labels",),
                         reload_as(IdeficsForVisionText2Text), unseen=("k_proj.bias", "k_layer_norm.bias"),
                         double=False, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def idefics_adapter(lengths, places, configs, scales=None, safe=True, note=None, **changes):
    def attempt(name, seed):
        model, inputs = small_idefics(seed, lengths, places, **changes)
        case = Case(name, "Flamingo")
        write_config(case.model, model.config, ["IdeficsForVisionText2Text"])
        write_safetensors(case.model, weights_of(model))
        write_adapters(case, "IdeficsForVisionText2Text", "forward", model, copy.deepcopy(configs),
                       lambda network: forward(network, inputs, ["logits"]), inputs,
                       reload_as(IdeficsForVisionText2Text), seed, scales=scales, safe=safe,
                       unseen=("k_layer_norm.bias",), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


SCATTERED = torch.tensor([[[0, 0, 0]] * 2 + [[1, 0, 1]] * 4 + [[0, 1, 1]] * 3 + [[1, 0, 0]],
                          [[1, 0, 1]] * 5 + [[0, 0, 0]] * 2 + [[1, 1, 1]] * 3])

CASES = {
    "flamingo/open_mpt_every_1": open_flamingo_case(
        "mpt", 1, (11, 14), [[2], [1, 7]],
        note="left padding; a row with one picture, whose second is zeros; the base has more rows than the tokenizer"),
    "flamingo/open_mpt_every_4_grown": open_flamingo_case(
        "mpt", 4, (12, 12), [[0, 6], []], vocab=58, quick=False,
        note="one gated layer; a row without pictures; the base's table lacks the added tokens; GELU"),
    "flamingo/open_mpt_frozen_table": open_flamingo_case(
        "mpt", 2, (9, 12), [[1], [3]], most=1, table=False, left=False,
        note="checkpoint.pt without a table: the base's is cut to tokenizer_length; right padding"),
    "flamingo/open_neox_every_2_wrapped": open_flamingo_case(
        "neox", 2, (10, 14), [[3], [0, 6]], wrapped=True, duplicates=True,
        note="a checkpoint of the training: model_state_dict, module., layers and blocks kept twice; a head of its own"),
    "flamingo/open_neox_transformers_tower": open_flamingo_case(
        "neox", 4, (12, 9), [[2, 8], [1]], most=3, transformers_names=True,
        note="the tower in transformers' layout; a third picture that no token looks at"),
    "flamingo/open_llama_whole": open_flamingo_case(
        "llama", 3, (12, 12), [[1], [4, 9]], whole=True,
        note="over Llama; checkpoint.pt is a whole state dict: the parts beside it give their configs alone"),
    "flamingo/open_mpt_generate": open_flamingo_case(
        "mpt", 2, (10, 13, 6), [[0, 5], [2], []], call="generate", note="left padding"),
    "flamingo/open_neox_generate": open_flamingo_case(
        "neox", 2, (13, 9), [[0, 7], [1]], call="generate", wrapped=True, note="left padding"),
    "flamingo/train_step_open_mpt": open_flamingo_step(
        "mpt", 1, (9, 14), [[2], [1, 7]], interleaved=True,
        note="an interleaved document: nothing before the first <image> counts, nor from <|endofchunk|> to the next"),
    "flamingo/train_step_open_neox": open_flamingo_step(
        "neox", 2, (12, 8), [[1], [3]], interleaved=False, most=1, note="captions; a head of its own"),
    "flamingo/adapter_open_mpt": open_flamingo_adapter(
        "mpt", 1, (9, 14), [[2], [1, 7]],
        [lora(["Wqkv", "to_q", "to_out", "down_proj"], r=2, rank_pattern={"attn.to_q": 1, "Wqkv": 5},
              alpha_pattern={r"perceiver\.layers\.\d+\.0\.to_out": 3, "down_proj": 9})],
        note="resampler, cross-attention and language model; ranks and scales of their own"),
    "flamingo/adapter_open_neox": open_flamingo_adapter(
        "neox", 2, (12, 8), [[1], [3]],
        [lora(["query_key_value", "dense"], r=2, modules_to_save=["ff"])], most=1, safe=False,
        note="the gated layers' feed-forward is the adapter's own; adapter_model.bin"),
    "flamingo/train_step_idefics": idefics_step(
        (12, 16), [[3], [2, 9]], note="added tokens count; nothing is frozen"),
    "flamingo/train_step_idefics_tied": idefics_step(
        (14, 10), [[3, 8], [2]], tie_word_embeddings=True, use_resampler=False, qk_layer_norms=False,
        alpha_type="vector", additional_vocab_size=2),
    "flamingo/adapter_idefics": idefics_adapter(
        (12, 16), [[3], [2, 9]],
        [lora(["q_proj", "v_proj", "up_proj"], use_dora=True, exclude_modules=r".*perceiver_resampler.*",
              modules_to_save=["perceiver_resampler"])],
        note="DoRA on both attentions and the tower; a resampler of its own"),
    "flamingo/idefics_resampler": idefics_case(
        (12, 16), [[3], [2, 9]], note="left padding; norms of queries and keys in both attentions"),
    "flamingo/idefics_vector_gates_tied": idefics_case(
        (14, 10), [[3, 8], [2]], alpha_type="vector", tie_word_embeddings=True, cross_layer_interval=1,
        num_hidden_layers=3, end_at=12, left=False, perceiver_config=dict(qk_layer_norms_perceiver=False),
        note="a gate for each channel; nothing is looked at after the end of a text; right padding"),
    "flamingo/idefics_flat_half_sharded": idefics_case(
        (13, 13), [[4], [1, 6]], as_flat=True, dtype=torch.bfloat16, write=write_sharded_bin, cross_layer_interval=4,
        note="the flat config of early revisions, bfloat16 in shards"),
    "flamingo/idefics_no_resampler_buffers": idefics_case(
        (12, 12), [[2, 7], [5]], use_resampler=False, qk_layer_norms=False, buffers=True,
        vision_config=dict(hidden_act="quick_gelu", layer_norm_eps=1e-3), positions=True,
        note="the tower's states as they are, the class token among them; buffers of older files; position_ids"),
    "flamingo/idefics_scattered_pictures": idefics_case(
        (10, 10), [[], []], most=3, table=SCATTERED, use_resampler=False, additional_vocab_size=0,
        note="tokens that look at several pictures which do not lie side by side; no added tokens"),
    "flamingo/idefics_image_encoder_embeddings": idefics_case(
        (12, 10), [[3], [2]], most=1, given="image_encoder_embeddings"),
    "flamingo/idefics_perceiver_embeddings": idefics_case(
        (12, 10), [[3], [2]], most=1, given="perceiver_embeddings"),
    "flamingo/idefics_generate": idefics_case(
        (12, 8), [[2, 7], [3]], call="generate", bad_words=True, note="left padding; bad_words_ids"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
