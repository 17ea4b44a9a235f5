"""Parity cases of the models that answer about pictures in the place of Med-PaLM M: MedGemma (Gemma 3 with its eyes)
and LLaVA-Med, in every layout of their releases."""

import copy
import json
import sys

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from common import (
    Case,
    check_every_weight_matters,
    distance,
    first_good,
    forward,
    generate,
    ids,
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
    write_sharded_safetensors,
)
from training import lora, model_loss, write_adapters, write_train_step

SYSTEM = "Med-PaLM M"
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def pixels(seed, count, side):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed + 7))


# ---------------------------------------------------------------- Gemma 3

IMAGE = 64  # beyond the vocabulary, as in Gemma 3's text-only releases' table; other cases put it inside


def gemma(text=None, vision=None, **changes):
    """Pictures of 5 by 5 patches, pooled to 2 by 2 tokens; the last row and column of patches is left out."""
    text_fields = dict(
        vocab_size=61, hidden_size=24, intermediate_size=44, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=14, max_position_embeddings=64, sliding_window=5,
        layer_types=[LOCAL, GLOBAL, LOCAL, GLOBAL],
        rope_parameters={GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
                         LOCAL: {"rope_type": "default", "rope_theta": 70.0}},
    )
    vision_fields = dict(hidden_size=18, intermediate_size=26, num_hidden_layers=2, num_attention_heads=3,
                         image_size=20, patch_size=4, vision_use_head=False)
    cfg = Gemma3Config(
        text_config=Gemma3TextConfig(**{**text_fields, **(text or {})}).to_dict(),
        vision_config=SiglipVisionConfig(**{**vision_fields, **(vision or {})}).to_dict(),
        **{**dict(mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=58, eoi_token_index=59), **changes},
    )
    return cfg


def rows(seed, cfg, layout):
    """Token rows by a picture of them: a dot is padding, an i a part of a picture, a w a word."""
    made = ids(seed, (len(layout), len(layout[0])), 55)
    for r, row in enumerate(layout):
        for t, kind in enumerate(row):
            made[r, t] = {".": 0, "i": cfg.image_token_id, "w": made[r, t]}[kind]
    return made


def inputs_of(seed, cfg, layout, types=True, side=20):
    made = {"input_ids": rows(seed, cfg, layout)}
    if any("." in row for row in layout):
        made["attention_mask"] = torch.tensor([[int(kind != ".") for kind in row] for row in layout])
    places = sum(row.count("i") for row in layout)
    if places:
        made["pixel_values"] = pixels(seed, places // cfg.mm_tokens_per_image, side)
        if types:
            made["token_type_ids"] = (made["input_ids"] == cfg.image_token_id).long()
    return made


def released(name):
    """As Google's releases name the tensors."""
    for now, then in [("model.language_model.", "language_model.model."),
                      ("model.vision_tower.", "vision_tower.vision_model."),
                      ("model.multi_modal_projector.", "multi_modal_projector.")]:
        if name.startswith(now):
            return then + name[len(now):]
    return name


def saved_by_5(name):
    """As transformers 5 saves them."""
    for now, then in [("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower."),
                      ("model.multi_modal_projector.", "multi_modal_projector.")]:
        if name.startswith(now):
            return then + name[len(now):]
    return name


def save_gemma(case, model, write, names, dtype, terse, extra=None):
    case.model.mkdir(parents=True, exist_ok=True)
    cfg = model.config
    if terse:
        # Google's files hold what differs from the classes' defaults.
        fields = json.loads(cfg.to_json_string(use_diff=True))
        fields["text_config"] = json.loads(cfg.text_config.to_json_string(use_diff=True))
        fields["vision_config"] = json.loads(cfg.vision_config.to_json_string(use_diff=True))
        write_json(case.model / "config.json",
                   fields | {"architectures": ["Gemma3ForConditionalGeneration"]} | (extra or {}))
    else:
        write_config(case.model, cfg, ["Gemma3ForConditionalGeneration"], **(extra or {}))
    weights = {names(name): weight for name, weight in weights_of(model, dtype).items()}
    write(case.model, weights)


def look(layout, types=True, names=released, write=write_safetensors, dtype=torch.float32, terse=False, extra=None,
         keep=None, others=(), note=None, side=20, **changes):
    """One forward pass. `others`: input tensors without which the answer must differ."""

    def attempt(name, seed):
        cfg = gemma(**changes)
        model = randomise(Gemma3ForConditionalGeneration(cfg), seed)
        with torch.no_grad():
            # Stored as it multiplies: its inputs run along the first axis.
            weight = model.model.multi_modal_projector.mm_input_projection_weight
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 5))
                         / weight.shape[0] ** 0.5)
        round_weights(model, dtype)
        inputs = inputs_of(seed, cfg, layout, types, side)
        fields = ["logits"] + (["image_hidden_states"] if "pixel_values" in inputs else [])

        def run(network, given=inputs):
            out = forward(network, given, ["logits"], keep)
            if "pixel_values" in given:
                with torch.inference_mode():
                    out["image_hidden_states"] = network(**given).image_hidden_states.contiguous().clone()
            return out

        # Nobody sees what the last row and column of patches hold, and keys share what their biases add.
        unseen = ("k_proj.bias",) if "pixel_values" in inputs else ()
        if "pixel_values" in inputs:
            check_every_weight_matters(model, run, unseen=unseen + ("position_embedding.weight",))
        for other in others:
            less = {key: value for key, value in inputs.items() if key != other}
            if distance({"logits": run(model)["logits"]}, {"logits": run(model, less)["logits"]}) < 10:
                raise RuntimeError(f"{name}: {other} does not matter")
        case = Case(name, SYSTEM)
        save_gemma(case, model, write, names, dtype, terse, extra)
        options = {"logits_to_keep": keep} if keep else {}
        options |= {} if dtype == torch.float32 else {"dtype": "float32"}
        case.write("Gemma3ForConditionalGeneration", "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload_as(Gemma3ForConditionalGeneration), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def labels_of(inputs, cfg, start=3):
    """The words to learn: -100 on padding, on pictures, and on the first `start` words of the prompt."""
    labels = inputs["input_ids"].clone()
    shown = inputs.get("attention_mask", torch.ones_like(labels))
    labels[(shown == 0) | (labels == cfg.image_token_id) | (shown.cumsum(1) <= start)] = -100
    return labels


def small_gemma(seed, layout, **changes):
    """Two layers, one of either kind, and a batch."""
    text = dict(num_hidden_layers=2, layer_types=[LOCAL, GLOBAL]) | changes.pop("text", {})
    cfg = gemma(text, **changes)
    model = randomise(Gemma3ForConditionalGeneration(cfg), seed)
    with torch.no_grad():
        weight = model.model.multi_modal_projector.mm_input_projection_weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 5)) / weight.shape[0] ** 0.5)
    return model, inputs_of(seed, cfg, layout)


def learn(layout, note=None, **changes):
    """One training step on pictures and text, by the loss that the class computes."""

    def attempt(name, seed):
        model, inputs = small_gemma(seed, layout, **changes)
        inputs["labels"] = labels_of(inputs, model.config)
        case = Case(name, SYSTEM)
        save_gemma(case, model, write_safetensors, released, torch.float32, False)
        write_train_step(case, "Gemma3ForConditionalGeneration", model, model_loss, inputs, ("labels",),
                         reload_as(Gemma3ForConditionalGeneration), name_of=released, unseen=("k_proj.bias",), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def adjust(layout, configs, note=None, **changes):
    """One forward pass with adapters."""

    def attempt(name, seed):
        model, inputs = small_gemma(seed, layout, **changes)
        case = Case(name, SYSTEM)
        save_gemma(case, model, write_safetensors, released, torch.float32, False)
        write_adapters(case, "Gemma3ForConditionalGeneration", "forward", model, copy.deepcopy(configs),
                       lambda network: forward(network, inputs, ["logits"]), inputs,
                       reload_as(Gemma3ForConditionalGeneration), seed, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def answer(layout, new_tokens=11, **changes):
    """Greedy generation about pictures."""

    def attempt(name, seed):
        cfg = gemma(**changes, tie_word_embeddings=False)
        model = randomise(Gemma3ForConditionalGeneration(cfg), seed, gain=2.5)
        inputs = inputs_of(seed, cfg, layout)
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": [1, 2]}
        run = lambda network: generate(network, inputs, options)
        expected = run(model)
        case = Case(name, SYSTEM)
        save_gemma(case, model, write_safetensors, released, torch.float32, False)
        case.write("Gemma3ForConditionalGeneration", "generate", inputs, expected, options | {"do_sample": False})
        case.check_repeats(reload_as(Gemma3ForConditionalGeneration), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


WORDS = """<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> user model describe this picture . the a heart lungs are
clear and normal of size no sign fluid left right chest shows is with small shadow in upper lower lobe seen there an old
rib bone under skin spot dark round border even uneven maybe""".split()
TURN = ("{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n{{ message.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")


def words_of(folder, cfg):
    """A tokenizer of whole words, with Gemma's special tokens, a template and a processor file."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    marks = {"<start_of_image>": cfg.boi_token_index, "<end_of_image>": cfg.eoi_token_index,
             "<image_soft_token>": cfg.image_token_id}
    vocabulary |= {f"w{i}": i for i in range(len(WORDS), cfg.text_config.vocab_size) if i not in marks.values()} | marks
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [word for word in vocabulary if word.startswith("<")]
    inner.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
                              "image_token": "<image_soft_token>"})
    side = cfg.vision_config.image_size
    processor = Gemma3Processor(Gemma3ImageProcessor(size={"height": side, "width": side}), tokenizer,
                                image_seq_length=cfg.mm_tokens_per_image)
    tokenizer.chat_template = TURN
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "Gemma3ImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3})
    return processor


def whole_way(new_tokens=9):
    """From a picture and words to words: what processor, template and network make of them together."""

    def attempt(name, seed):
        cfg = gemma(image_token_index=60, tie_word_embeddings=False, text=dict(max_position_embeddings=64))
        model = randomise(Gemma3ForConditionalGeneration(cfg), seed, gain=2.5)
        with torch.no_grad():
            # Only words are said.
            model.lm_head.weight[len(WORDS):] = 0
            model.lm_head.weight[:6] = 0
        case = Case(name, SYSTEM)
        save_gemma(case, model, write_safetensors, released, torch.float32, False)
        processor = words_of(case.model, cfg)
        # The middle of the picture is darker; 30 wide and 24 high, so that it is squashed.
        picture = torch.full((24, 30, 3), 200, dtype=torch.uint8)
        picture[8:16, 10:20] = torch.tensor([150, 40, 30], dtype=torch.uint8)
        text = "<bos><start_of_turn>user\n<start_of_image>describe this picture .<end_of_turn>\n<start_of_turn>model\n"
        made = processor(text=text, images=Image.fromarray(picture.numpy()), return_tensors="pt",
                         add_special_tokens=False)
        inputs = {key: made[key] for key in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")}
        options = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": [1, 5]}
        run = lambda network: generate(network, inputs, options)
        case.write("Gemma3Processor and Gemma3ForConditionalGeneration", "generate", inputs, run(model),
                   options | {"do_sample": False},
                   note="with tokenizer, template and processor file: a test of models/vision goes the whole way")
        case.check_repeats(reload_as(Gemma3ForConditionalGeneration), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- LLaVA


def llava(text=None, vision=None, **changes):
    text_fields = dict(
        vocab_size=67, hidden_size=24, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=None, max_position_embeddings=64, rms_norm_eps=1e-5, sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 2000.0},
    )
    text_fields |= text or {}
    kind = text_fields.pop("kind", MistralConfig)
    if kind is LlamaConfig:
        text_fields.pop("sliding_window")
    vision_fields = dict(hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2,
                         image_size=18, patch_size=6, projection_dim=12)
    return LlavaConfig(text_config=kind(**text_fields), vision_config=CLIPVisionConfig(**{**vision_fields, **(vision or {})}),
                       **{**dict(image_token_index=66, image_seq_length=9), **changes})


def original(name):
    """As LLaVA's code names the tensors."""
    for now, then in [("model.language_model.", "model."), ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
                      ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
                      ("model.multi_modal_projector.linear_2.", "model.mm_projector.2.")]:
        if name.startswith(now):
            return then + name[len(now):].removeprefix("vision_model.")
    return name


def by_transformers_4(name):
    """As releases in transformers' layout name them."""
    for now, then in [("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower.vision_model."),
                      ("model.multi_modal_projector.", "multi_modal_projector."), ("lm_head.", "language_model.lm_head.")]:
        if name.startswith(now):
            return then + name[len(now):].removeprefix("vision_model.")
    return name


def as_the_original(folder, model):
    """`config.json` as LLaVA-Med's, and the tower's own in a folder of its name."""
    text, vision = model.config.text_config, model.config.vision_config
    fields = {key: getattr(text, key) for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "rms_norm_eps", "sliding_window", "max_position_embeddings")}
    fields |= dict(
        architectures=["LlavaMistralForCausalLM"], model_type="llava_mistral", tie_word_embeddings=False,
        rope_theta=text.rope_parameters["rope_theta"], bos_token_id=1, eos_token_id=2, mm_vision_tower="vision_tower",
        mm_hidden_size=vision.hidden_size, mm_projector_type="mlp2x_gelu", mm_use_im_start_end=False,
        mm_vision_select_layer=model.config.vision_feature_layer, mm_vision_select_feature="patch",
        mm_use_im_patch_token=False, image_aspect_ratio="pad", use_mm_proj=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", fields)
    write_config(folder / "vision_tower", vision)


def unseen_by_llava(model):
    """The last blocks of the tower are not read, and neither is its last norm; keys share what their biases add."""
    layers = model.config.vision_config.num_hidden_layers
    read = model.config.vision_feature_layer
    deepest = max(layer if layer >= 0 else layers + 1 + layer for layer in (read if isinstance(read, list) else [read]))
    names = [name for name, _ in model.named_parameters()]
    return ("post_layernorm.weight", "post_layernorm.bias", "k_proj.bias",
            *(name for name in names if any(f"encoder.layers.{i}." in name for i in range(deepest, layers))))


def llava_inputs(seed, cfg, layout):
    """Rows by a picture of them, an i for every patch."""
    made = {"input_ids": rows(seed, cfg, layout)}
    if any("." in row for row in layout):
        made["attention_mask"] = torch.tensor([[int(kind != ".") for kind in row] for row in layout])
    count = sum(row.count("i") for row in layout) // cfg.image_seq_length
    if count:
        made["pixel_values"] = pixels(seed, count, 18)
    return made


def as_one_id(inputs, cfg):
    """The same rows with one -200 for each picture, and pictures under the original's name."""
    n = cfg.image_seq_length
    out = []
    for row in inputs["input_ids"].tolist():
        short, t = [], 0
        while t < len(row):
            image = row[t] == cfg.image_token_id
            short.append(-200 if image else row[t])
            t += n if image else 1
        out.append(short)
    return {"input_ids": torch.tensor(out), "images": inputs["pixel_values"]}


def see(layout, layout_of="transformers", names=by_transformers_4, write=write_safetensors, dtype=torch.float32,
        new_tokens=0, note=None, keep=None, **changes):
    """One forward pass, or generation, in transformers' layout or the original's."""

    def attempt(name, seed):
        cfg = llava(**changes)
        model = randomise(LlavaForConditionalGeneration(cfg), seed, gain=2.5 if new_tokens else 1.3)
        round_weights(model, dtype)
        inputs = llava_inputs(seed, cfg, layout)
        if new_tokens:
            asked = {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": 2}
            run = lambda network: generate(network, inputs, asked)
            options = asked | {"do_sample": False}
        else:
            options = {"logits_to_keep": keep} if keep else {}
            run = lambda network: forward(network, inputs, ["logits"], keep)
            check_every_weight_matters(model, run, unseen_by_llava(model))
        expected = run(model)
        case = Case(name, SYSTEM)
        if layout_of == "original":
            as_the_original(case.model, model)
            given = as_one_id(inputs, cfg)
            if "sequences" in expected:
                expected["sequences"] = torch.cat(
                    [given["input_ids"], expected["sequences"][:, inputs["input_ids"].shape[1]:]], 1)
        else:
            write_config(case.model, cfg, ["LlavaForConditionalGeneration"])
            given = inputs
        weights = {names(key): weight for key, weight in weights_of(model, dtype).items()}
        write(case.model, weights)
        options |= {} if dtype == torch.float32 else {"dtype": "float32"}
        call = "generate" if new_tokens else "forward"
        case.write("LlavaForConditionalGeneration", call, given, expected, options, note=note)
        if layout_of == "original":
            print(f"{name:44} in the original's layout, which transformers does not open")
        else:
            case.check_repeats(reload_as(LlavaForConditionalGeneration), run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def small_llava(seed, layout, **changes):
    """Two layers on each side, of which the tower's last is not read, and a batch."""
    text = dict(num_hidden_layers=2) | changes.pop("text", {})
    cfg = llava(text, dict(num_hidden_layers=2), **changes)
    return randomise(LlavaForConditionalGeneration(cfg), seed), llava_inputs(seed, cfg, layout)


def save_llava(case, model):
    write_config(case.model, model.config, ["LlavaForConditionalGeneration"])
    write_safetensors(case.model, {by_transformers_4(key): value for key, value in weights_of(model).items()})


def teach(layout, note=None, **changes):
    """One training step of LLaVA, by the loss that the class computes."""

    def attempt(name, seed):
        model, inputs = small_llava(seed, layout, **changes)
        inputs["labels"] = labels_of(inputs, model.config, 1)
        case = Case(name, SYSTEM)
        save_llava(case, model)
        write_train_step(case, "LlavaForConditionalGeneration", model, model_loss, inputs, ("labels",),
                         reload_as(LlavaForConditionalGeneration), name_of=by_transformers_4, unseen=("k_proj.bias",),
                         note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def as_tokens(batch, cfg):
    """The rows with a token for every patch where the original has one -200 for a picture; patches have no labels."""
    n, out = cfg.image_seq_length, {"input_ids": [], "labels": []}
    for row, said in zip(batch["input_ids"].tolist(), batch["labels"].tolist()):
        pairs = [(token, label) for token, label in zip(row, said)
                 for _ in range(n if token == -200 else 1)]
        out["input_ids"].append([cfg.image_token_id if token == -200 else token for token, _ in pairs])
        out["labels"].append([-100 if token == -200 else label for token, label in pairs])
    return {name: torch.tensor(rows) for name, rows in out.items()} | {"pixel_values": batch["images"]}


def teach_original(layout, note=None, **changes):
    """One training step in the original's layout, whose labels have one place for a picture."""

    def attempt(name, seed):
        model, inputs = small_llava(seed, layout, **changes)
        given = as_one_id(inputs, model.config)
        given["labels"] = given["input_ids"].masked_fill(given["input_ids"] == -200, -100)
        given["labels"][:, :1] = -100
        case = Case(name, SYSTEM)
        as_the_original(case.model, model)
        write_safetensors(case.model, {original(key): value for key, value in weights_of(model).items()})
        # transformers does not open this layout.
        write_train_step(case, "LlavaForConditionalGeneration", model,
                         lambda network, batch: network(**as_tokens(batch, network.config)).loss, given, ("labels",),
                         lambda folder: model, name_of=original, unseen=("k_proj.bias",), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def tune(layout, configs, scales=None, safe=True, note=None, **changes):
    """One forward pass of LLaVA with adapters."""

    def attempt(name, seed):
        model, inputs = small_llava(seed, layout, **changes)
        case = Case(name, SYSTEM)
        save_llava(case, model)
        write_adapters(case, "LlavaForConditionalGeneration", "forward", model, copy.deepcopy(configs),
                       lambda network: forward(network, inputs, ["logits"]), inputs,
                       reload_as(LlavaForConditionalGeneration), seed, scales=scales, safe=safe, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


TWO = ["wwiiiiwwwwww", "wiiiiwwiiiiw"]
CASES = {
    "medgemma/forward_both_ways": look(TWO, others=["token_type_ids"], note="as Google's releases"),
    "medgemma/forward_saved_by_transformers_5": look(TWO, names=saved_by_5, write=write_sharded_safetensors),
    "medgemma/forward_in_memory_names": look(TWO, names=lambda name: name),
    "medgemma/forward_without_types": look(TWO, types=False, note="no token_type_ids: plainly causal"),
    "medgemma/forward_narrow_window": look(
        ["wwiiiiwwwwww", "wiiiiwwiiiiw"], text=dict(sliding_window=2),
        note="a window smaller than a picture: it holds inside pictures too"),
    "medgemma/forward_pictures_side_by_side": look(
        ["wiiiiiiiiwww"], note="two pictures without a word between them are one block, as in the reference"),
    "medgemma/forward_left_padded": look(["....wiiiiwww", "wiiiiwwiiiiw"], keep=8),
    "medgemma/forward_right_padded": look(["wiiiiwww..", "wwwiiiiwww"], text=dict(sliding_window=5)),
    "medgemma/forward_image_token_inside": look(
        TWO, image_token_index=60, dtype=torch.bfloat16, note="the image token is a row of the table"),
    "medgemma/forward_defaults_left_out": look(
        ["wiiiiw"], terse=True, side=16,
        text=dict(head_dim=256, num_key_value_heads=4, num_attention_heads=8, query_pre_attn_scalar=256,
                  num_hidden_layers=1, layer_types=None, sliding_window=4096, hidden_size=16,
                  intermediate_size=20, rope_parameters=None),
        vision=dict(image_size=16, patch_size=4, num_attention_heads=3, hidden_size=12, num_hidden_layers=1),
        note="keys that equal the classes' defaults are not in the file"),
    "medgemma/forward_text_alone": look(["wwwwwwwww"], others=(), note="no picture"),
    "medgemma/forward_soft_cap_ignored": look(
        ["wiiiiw"], text=dict(final_logit_softcapping=1.0),
        note="the whole model's scores are plain, whatever its text model alone would do"),
    "medgemma/generate_whole_way": whole_way(),
    "medgemma/generate": answer(["...wiiiiww", "wiiiiiiiiw"]),
    "medgemma/train_step": learn(
        ["wiiiiwwwww..", "wiiiiwwiiiiw"],
        note="tied; -100 on padding, pictures and prompts; the mean over the words of both rows"),
    "medgemma/adapter_all_linear_and_tables": adjust(
        TWO, [lora("all-linear", r=4, lora_alpha=4, modules_to_save=["lm_head", "embed_tokens"])],
        note="as Google's recipe: every linear layer of both sides, head and table, tied before, saved apart"),
    "medgemma/adapter_patterns": adjust(
        TWO, [lora(["q_proj", "o_proj", "down_proj", "patch_embedding"],
                   rank_pattern={"layers.1.self_attn.q_proj": 5, "patch_embedding": 2},
                   alpha_pattern={"language_model.layers.0.self_attn.o_proj": 11, "down_proj": 1})],
        note="ranks and scales of their own, by the end of a name"),
    "llava/train_step": teach(
        ["wwiiiiiiiiiww.", "iiiiiiiiiwwwww"], note="-100 on padding, pictures and prompts; the tower's last layer is not read"),
    "llava/train_step_original": teach_original(
        ["wwiiiiiiiiiww", "wiiiiiiiiiwww"], note="each -200 stands for the 9 patches of a picture, and so does its label"),
    "llava/adapter_projector": tune(
        ["wwiiiiiiiiiww"], [lora(
            r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)", r=2, lora_alpha=4,
            modules_to_save=["multi_modal_projector"])], safe=False,
        note="the language model's layers, and a projector of its own; adapter_model.bin"),
    "llava/adapter_two": tune(
        ["wwiiiiiiiiiww"], [
            lora(["q_proj", "v_proj"], exclude_modules=r".*vision_tower.*"),
            lora(["v_proj", "linear_2"], r=2, use_rslora=True, exclude_modules=r".*vision_tower.*")],
        scales=(1.3, 0.6), note="two adapters, the second rank-stabilised; the tower is left out"),
    "llava/forward_transformers": see(["wwiiiiiiiiiww", "iiiiiiiiiwwww"]),
    "llava/forward_in_memory_names_bf16": see(["wwiiiiiiiiiww"], names=lambda name: name, dtype=torch.bfloat16,
                                              write=write_sharded_safetensors),
    "llava/forward_full_two_layers": see(
        ["wwiiiiiiiiiiww"], vision_feature_layer=[-3, 2], vision_feature_select_strategy="full", image_seq_length=10,
        projector_hidden_act="silu", multimodal_projector_bias=False,
        note="the class token is read too, and the states of two layers side by side"),
    "llava/forward_llama": see(["wwiiiiiiiiiww"], text=dict(kind=LlamaConfig), vision_feature_layer=-1),
    "llava/forward_qwen2": see(
        ["wwiiiiiiiiiww", "iiiiiiiiiww.."], text=dict(
            kind=Qwen2Config, head_dim=6, use_sliding_window=True, sliding_window=4, max_window_layers=2,
            layer_types=[GLOBAL, GLOBAL, LOCAL]),
        note="another language model: biases on q, k and v, a window in its last block"),
    "llava/forward_window_padded": see(["wwiiiiiiiiiww", "iiiiiiiiiww.."], text=dict(sliding_window=4)),
    "llava/forward_original": see(["wwiiiiiiiiiww", "iiiiiiiiiwwww"], layout_of="original", names=original,
                                  note="each -200 stands for the 9 patches of a picture"),
    "llava/forward_original_two_pictures": see(["wiiiiiiiiiwiiiiiiiiiw"], layout_of="original", names=original,
                                               write=write_sharded_safetensors, vision_feature_layer=1),
    "llava/generate_original": see(["wwiiiiiiiiiww"], layout_of="original", names=original, new_tokens=9),
    "llava/generate_transformers": see(["..wiiiiiiiiiww", "wwiiiiiiiiiwww"], new_tokens=9),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
