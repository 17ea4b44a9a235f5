"""Parity cases of OpenVLA: every kind of tower, padding, both layouts, actions, the action tokenizer and frames.

The release's own code wants transformers 4.40; on transformers from 4.50 on it ignores the picture. So its wiring stands
here again, over timm's towers and transformers' Llama, under the release's names. Run with timm 0.9.16 on PYTHONPATH, as
`requirements-openvla.txt` says.
"""

import copy
import json
import sys

import common
import numpy as np
import PIL
import timm
import torch
import torchvision
import torchvision.transforms.functional as TVF
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from common import (
    Case,
    Retry,
    check_every_weight_matters,
    first_good,
    ids,
    left_padding,
    right_padding,
    run_all,
    seed_of,
    write_json,
    write_safetensors,
    write_sharded_safetensors,
)
from training import lora, write_adapters, write_train_step

SYSTEM = "RT-2"
REFERENCE = f"OpenVLAForActionPrediction, wired over timm {timm.__version__} and LlamaForCausalLM"
DINO = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP = "vit_so400m_patch14_siglip_224"
CLIP = "vit_large_patch14_clip_336.openai"
PLAIN = "vit_large_patch16_224.augreg_in21k_ft_in1k"
BOUNDARY = 29871


# ---------------------------------------------------------------- the reference


class OpenVLA(nn.Module):
    """The release's wiring, from its `config.json`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        towers = []
        for i, name in enumerate(config["timm_model_ids"]):
            kwargs = config["timm_model_kwargs"][i]
            act = config["timm_override_act_layers"][i]
            towers.append(timm.create_model(name, pretrained=False, num_classes=0, img_size=config["image_sizes"][i],
                                            act_layer=act, **kwargs))
        self.vision_backbone = nn.ModuleDict(dict(zip(["featurizer", "fused_featurizer"], towers)))
        seen = sum(tower.embed_dim for tower in towers)
        text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "torch_dtype")}
        text = LlamaConfig(**text)
        width = text.hidden_size
        shapes = [(seen, width), (width, width)] if len(towers) == 1 else [(seen, 4 * seen), (4 * seen, width),
                                                                         (width, width)]
        self.projector = nn.ModuleDict({f"fc{i + 1}": nn.Linear(*shape) for i, shape in enumerate(shapes)})
        self.language_model = LlamaForCausalLM(text)
        self.language_model.set_attn_implementation("eager")

    def see(self, pixel_values):
        seen = []
        for i, tower in enumerate(self.vision_backbone.values()):
            pictures = pixel_values[:, 3 * i : 3 * i + 3]
            seen.append(tower.get_intermediate_layers(pictures, n={len(tower.blocks) - 2})[0])
        x = torch.cat(seen, dim=2)
        maps = list(self.projector.values())
        for fc in maps[:-1]:
            x = F.gelu(fc(x))
        return maps[-1](x)

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, labels=None):
        """Patches stand behind the first token; the loss does not count them (label -100)."""
        out = {}
        patches = self.see(pixel_values) if pixel_values is not None else None
        if input_ids is not None:
            x, mask = self.language_model.get_input_embeddings()(input_ids), attention_mask
            if patches is not None:
                x = torch.cat([x[:, :1], patches, x[:, 1:]], dim=1)
                if mask is not None:
                    real = torch.ones(patches.shape[:2], dtype=mask.dtype)
                    mask = torch.cat([mask[:, :1], real, mask[:, 1:]], dim=1)
                if labels is not None:
                    unread = torch.full(patches.shape[:2], -100)
                    labels = torch.cat([labels[:, :1], unread, labels[:, 1:]], dim=1)
            answer = self.language_model(inputs_embeds=x, attention_mask=mask, labels=labels)
            out["logits"] = answer.logits
            if labels is not None:
                out["loss"] = answer.loss
        if patches is not None:
            out["projector_features"] = patches
        return out


def bins(config):
    return np.linspace(-1, 1, config["n_action_bins"])


def predict_action(model, inputs, keys, margin=2e-3):
    """`predict_action` of the release: greedy, as many tokens as the action has numbers."""
    config = model.config
    stats = config["norm_stats"] | config.get("dataset_statistics", {})
    sequences = inputs["input_ids"]
    if sequences[0, -1] != BOUNDARY:
        sequences = torch.cat([sequences, torch.tensor([[BOUNDARY]])], dim=1)
    for _ in stats[keys[0] or next(iter(stats))]["action"]["q01"]:
        logits = model(sequences, inputs["pixel_values"])["logits"][0, -1]
        best, second = logits.topk(2).values
        if best - second < margin:
            raise Retry("a near-tie")
        sequences = torch.cat([sequences, logits.argmax()[None, None]], dim=1)
    new = sequences[0, -len(stats[keys[0] or next(iter(stats))]["action"]["q01"]):].numpy()
    edges = bins(config)
    centres = (edges[:-1] + edges[1:]) / 2
    words = config["text_config"]["vocab_size"] - config["pad_to_multiple_of"]
    found = np.clip(words - new - 1, 0, len(centres) - 1)
    normalized = centres[found]
    out = {"sequences": sequences, "bins": torch.tensor(found), "last_logits": logits.clone(),
           "normalized_actions": torch.tensor(normalized, dtype=torch.float32)}
    for key in keys:
        action = stats[key or next(iter(stats))]["action"]
        low, high = np.array(action["q01"]), np.array(action["q99"])
        mask = np.array(action.get("mask", np.ones_like(low, dtype=bool)))
        values = np.where(mask, 0.5 * (normalized + 1) * (high - low) + low, normalized)
        out[f"actions.{key}" if key else "actions"] = torch.tensor(values, dtype=torch.float32)
    return out


def randomise(model, seed):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("gamma"):
                weight.copy_(0.6 + 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif any(part in name for part in ("pos_embed", "_token", "embed_tokens", "latent")):
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(1.3 * noise / (weight.numel() / weight.shape[0]) ** 0.5)
    return model.eval()


# ---------------------------------------------------------------- configurations


def tower(embed_dim, depth, num_heads, **more):
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, **more)


FUSED = dict(
    arch_specifier="no-align+fused-gelu-mlp", vision_backbone_id="dinosiglip-vit-so-224px",
    llm_backbone_id="llama2-7b-pure", use_fused_vision_backbone=True, image_resize_strategy="resize-naive",
    timm_model_ids=[DINO, SIGLIP], timm_override_act_layers=[None, None], image_sizes=[42, 42],
    timm_model_kwargs=[tower(20, 4, 2), tower(18, 3, 3, mlp_ratio=3.7362)],
)
SINGLE = FUSED | dict(
    arch_specifier="no-align+gelu-mlp", vision_backbone_id="siglip-vit-so400m", llm_backbone_id="vicuna-v15-7b",
    use_fused_vision_backbone=False, timm_model_ids=[SIGLIP], timm_override_act_layers=[None], image_sizes=[28],
    timm_model_kwargs=[tower(30, 3, 5, mlp_ratio=3.7362)],
)
TEXT = dict(vocab_size=201, hidden_size=24, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=2e-5, rope_theta=700.0,
            pad_token_id=200, tie_word_embeddings=False)


def stats(seed, dim=7, mask=True):
    random = np.random.default_rng(seed)
    low, span = random.uniform(-0.08, -0.01, dim), random.uniform(0.02, 0.2, dim)
    rounded = lambda values: [round(float(value), 6) for value in values]
    action = dict(mean=rounded(low + span / 2), std=rounded(span / 5), min=rounded(low * 2), max=rounded(low + span * 2),
                  q01=rounded(low), q99=rounded(low + span))
    if mask:
        action["mask"] = [i % 4 != 2 if mask == "some" else i < dim - 1 for i in range(dim)]
    zeros = dict.fromkeys(["mean", "std", "min", "max", "q01", "q99"], [0.0] * dim)
    return dict(action=action, proprio=zeros, num_transitions=71, num_trajectories=3)


def config_of(base, text, **changes):
    return dict(architectures=["OpenVLAForActionPrediction"], model_type="openvla", n_action_bins=64,
                pad_to_multiple_of=7, output_projector_states=False, norm_stats={"tiny": stats(1)},
                text_config=dict(model_type="llama", **text)) | base | changes


# ---------------------------------------------------------------- checkpoints


def released(model, dtype):
    """The tensors under the names of HF's release."""
    named = {}
    for name, weight in model.state_dict().items():
        named[name.replace(".gamma", ".scale_factor")] = weight.detach().to(dtype).contiguous().clone()
    return named


def trained(model, dtype):
    """The file of the training code: three parts, each under its own names, and what the training was doing."""
    parts = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
    fused = len(model.vision_backbone) == 2
    towers = {"featurizer": "dino_featurizer" if fused else "featurizer", "fused_featurizer": "siglip_featurizer"}
    for name, weight in model.state_dict().items():
        weight = weight.detach().to(dtype).contiguous().clone()
        part, rest = name.split(".", 1)
        if part == "vision_backbone":
            which, rest = rest.split(".", 1)
            parts[part][f"{towers[which]}.{rest}"] = weight
        elif part == "projector":
            fc, rest = rest.split(".")
            parts[part][f"projector.{2 * (int(fc[2:]) - 1)}.{rest}"] = weight
        else:
            parts["llm_backbone"][f"llm.{rest}"] = weight
    return {"model": parts, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}


def write_checkpoint(folder, model, layout, dtype):
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(model.config)
    own = config.pop("dataset_statistics", None)
    if own:
        write_json(folder / "dataset_statistics.json", own)
    write_json(folder / "config.json", config)
    if layout == "pt":
        torch.save(trained(model, dtype), folder / "tiny.pt")
    elif layout == "shards":
        write_sharded_safetensors(folder, released(model, dtype))
    else:
        write_safetensors(folder, released(model, dtype))


def reload(folder):
    config = json.loads((folder / "config.json").read_text())
    if (folder / "dataset_statistics.json").exists():
        config["dataset_statistics"] = json.loads((folder / "dataset_statistics.json").read_text())
    for key, value in DEFAULTS.items():
        config.setdefault(key, value)
    model = OpenVLA(config).eval()
    if (folder / "tiny.pt").exists():
        parts = torch.load(folder / "tiny.pt", weights_only=True)["model"]
        weights = {}
        for name, weight in parts["vision_backbone"].items():
            name = name.replace("dino_featurizer", "featurizer").replace("siglip_featurizer", "fused_featurizer")
            weights[f"vision_backbone.{name}"] = weight
        for name, weight in parts["projector"].items():
            number, rest = name.removeprefix("projector.").split(".")
            weights[f"projector.fc{int(number) // 2 + 1}.{rest}"] = weight
        weights |= {name.replace("llm.", "language_model.", 1): w for name, w in parts["llm_backbone"].items()}
    else:
        weights = {}
        for file in folder.glob("*.safetensors"):
            weights |= load_file(file)
        weights = {name.replace(".scale_factor", ".gamma"): weight for name, weight in weights.items()}
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model


# What a case leaves out of its configuration, for the second reading of it.
DEFAULTS = {}


def unseen(model):
    """What nothing depends on: last blocks, last norms, heads that pool."""
    names = []
    for name, _ in model.named_parameters():
        part = name.split(".")
        if part[0] == "vision_backbone":
            last = str(len(model.vision_backbone[part[1]].blocks) - 1)
            if part[2] in ("norm", "fc_norm", "attn_pool") or part[2:4] == ["blocks", last]:
                names.append(name)
    return names


def built(config, seed, dtype, boost=None):
    model = randomise(OpenVLA(config), seed)
    with torch.no_grad():
        if boost:
            model.language_model.lm_head.weight[slice(*boost)] *= 4
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    return model


def pixels(seed, config, rows):
    random = torch.Generator().manual_seed(seed + 2)
    side = config["image_sizes"][0]
    return torch.randn(rows, 3 * len(config["timm_model_ids"]), side, side, generator=random)


# ---------------------------------------------------------------- cases


def forward(base=FUSED, text=TEXT, rows=2, time=9, mask=None, words=True, picture=True, layout="safetensors",
            dtype=torch.float32, keep=None, drop=(), note=None, **changes):
    def make(name):
        def build(seed):
            config = config_of(base, text, **changes)
            model = built(config, seed, dtype)
            inputs = {}
            if words:
                inputs["input_ids"] = ids(seed, (rows, time), text["vocab_size"])
                inputs["input_ids"][:, 0] = 1
            if mask is not None:
                inputs["attention_mask"] = mask
            if picture:
                inputs["pixel_values"] = pixels(seed, config, rows)

            @torch.inference_mode()
            def run(model):
                out = model(**inputs)
                if keep:
                    out["logits"] = out["logits"][:, -keep:]
                return {field: value.float().contiguous().clone() for field, value in out.items()}

            if words and picture:
                check_every_weight_matters(model, run, unseen(model))
            return model, inputs, run

        model, inputs, run = first_good(name, build)
        for key in drop:
            model.config.pop(key)
            DEFAULTS[key] = config_of(base, text, **changes)[key]
        case = Case(name, SYSTEM)
        options = {"output_projector_features": True} if picture else {}
        if keep:
            options["logits_to_keep"] = keep
        if layout == "pt":
            options["weights"] = "tiny.pt"
        write_checkpoint(case.model, model, layout, dtype)
        case.write(REFERENCE, "forward", inputs, run(model), options, note=note)
        case.check_repeats(reload, run)
        for key in drop:
            DEFAULTS.pop(key)

    return make


def episodes(seed, config, lengths, numbers=7):
    """Rows of a prompt, the tokens of an action and the end, padded on the right; labels are the last two (Kim et al.
    2024; `RLDSBatchTransform` and `PaddedCollatorForActionPrediction` of the training code)."""
    text, random = config["text_config"], torch.Generator().manual_seed(seed + 6)
    words = text["vocab_size"] - config["pad_to_multiple_of"]
    mask = right_padding(lengths)
    tokens = torch.full(mask.shape, text["pad_token_id"])
    labels = torch.full(mask.shape, -100)
    for row, said, length in zip(tokens, labels, lengths):
        row[:length] = torch.randint(3, words - config["n_action_bins"], (length,), generator=random)
        row[0], row[length - 1] = 1, 2
        row[length - numbers - 1 : length - 1] = torch.randint(
            words - config["n_action_bins"], words, (numbers,), generator=random)
        said[length - numbers - 1 : length] = row[length - numbers - 1 : length]
    return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels(seed, config, len(lengths)),
            "labels": labels}


SMALL = dict(image_sizes=[28, 28], timm_model_kwargs=[tower(20, 3, 2), tower(18, 3, 3, mlp_ratio=3.7362)])
SHORT = TEXT | dict(num_hidden_layers=2)


def train(base=FUSED, lengths=(14, 11), note=None, **changes):
    """One training step; all parameters are trained."""

    def make(name):
        def attempt(seed):
            config = config_of(base, SHORT, **changes)
            model = built(config, seed, torch.float32)
            case = Case(name, SYSTEM)
            write_checkpoint(case.model, model, "safetensors", torch.float32)
            write_train_step(case, REFERENCE, model, lambda network, batch: network(**batch)["loss"],
                             episodes(seed, config, lengths), ("labels",), reload,
                             name_of=lambda name: name.replace(".gamma", ".scale_factor"), note=note)

        first_good(name, attempt)

    return make


# What peft 0.11, which the training code asks for, makes of "all-linear": the last parts of names, which the
# convolution over patches shares.
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "fc3", "qkv",
              "proj", "q", "kv"]


def fine_tuned(configs, base=FUSED, lengths=(14, 11), scales=None, safe=True, note=None, **changes):
    """One forward pass with adapters of PEFT."""

    def make(name):
        def attempt(seed):
            config = config_of(base, SHORT, **changes)
            model = built(config, seed, torch.float32)
            inputs = episodes(seed, config, lengths)
            del inputs["labels"]

            @torch.inference_mode()
            def run(network):
                return {field: value.clone() for field, value in network(**inputs).items()}

            case = Case(name, SYSTEM)
            write_checkpoint(case.model, model, "safetensors", torch.float32)
            parts = unseen(model)
            parts += [f"{part.rpartition('.')[0]}.lora_{side}.adapter.weight" for part in parts for side in "AB"]
            parts += [f"{part.rpartition('.')[0]}.base_layer.bias" for part in parts]
            write_adapters(case, REFERENCE, "forward", model, copy.deepcopy(configs), run, inputs, reload, seed,
                           options={"output_projector_features": True}, scales=scales, safe=safe, unseen=parts, note=note)

        first_good(name, attempt)

    return make


WIDE = dict(vocab_size=32064, hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=32000)


def act(keys, base=FUSED, boost=(31744, 32000), outside=False, ends=False, own=None, note=None, **changes):
    def make(name):
        def build(seed):
            config = config_of(base, WIDE, n_action_bins=256, pad_to_multiple_of=64, **changes)
            if own:
                config["dataset_statistics"] = own
            model = built(config, seed, torch.bfloat16, boost)
            words = ids(seed, (1, 8), 20_000)
            words[0, 0] = 1
            if ends:
                words[0, -1] = BOUNDARY
            inputs = {"input_ids": words, "pixel_values": pixels(seed, config, 1)}

            @torch.inference_mode()
            def run(model):
                return predict_action(model, inputs, keys)

            found = run(model)
            new = found["sequences"][0, -found["bins"].numel() :]
            if len(new.unique()) < 5 or (((new < 31744) | (new > 31999)).any() != outside):
                raise Retry("too few words, or of the wrong kind")
            return model, inputs, run

        model, inputs, run = first_good(name, build)
        case = Case(name, SYSTEM)
        options = {"method": "predict_action", "do_sample": False, "compute_dtype": "float32"}
        if keys != [None]:
            options["unnorm_keys"] = keys
        write_checkpoint(case.model, model, "safetensors", torch.bfloat16)
        case.write(REFERENCE + ".predict_action", "generate", inputs, run(model), options, note=note)
        case.check_repeats(reload, run)

    return make


def codec(vocab_size, count, low, high, note=None):
    """The release's ActionTokenizer, in numpy."""

    def make(name):
        random = np.random.default_rng(seed_of(name))
        edges = np.linspace(low, high, count)
        centres = (edges[:-1] + edges[1:]) / 2
        # Numbers on edges, beside them, and beyond the ends.
        span = high - low
        actions = np.concatenate([edges[:: max(1, count // 9)], np.nextafter(edges[1:5], -9), random.uniform(
            low - span / 4, high + span / 4, 40), [low, high, low - 9 * span, high + 9 * span]]).astype(np.float32)
        actions = actions[: len(actions) // 4 * 4].reshape(-1, 4)
        token_ids = vocab_size - np.digitize(np.clip(actions.astype(np.float64), low, high), edges)
        decode = lambda tokens: torch.tensor(
            centres[np.clip(vocab_size - tokens - 1, 0, len(centres) - 1)], dtype=torch.float32)
        others = np.arange(vocab_size - count - 5, vocab_size + 5)
        case = Case(name, SYSTEM)
        case.model.mkdir(parents=True)
        write_json(case.model / "action_tokenizer.json",
                   dict(vocab_size=vocab_size, bins=count, min_action=low, max_action=high))
        common.REFERENCE = f"numpy {np.__version__}"
        case.write("ActionTokenizer, stated again with numpy.digitize", "encode",
                   {"actions": torch.tensor(actions), "token_ids": torch.tensor(others)},
                   {"token_ids": torch.tensor(token_ids), "round_trip": decode(token_ids),
                    "decoded_actions": decode(others)}, {"decode": "token_ids"}, atol=1e-6, rtol=0, note=note)

    return make


class PrismaticImageProcessor:
    """The release's processor, over torchvision on Pillow's pictures, from its file."""

    def __init__(self, file):
        self.file = file
        count = len(file["input_sizes"])
        sizes = [size[-1] for size in file["input_sizes"]]
        strategy = file["image_resize_strategy"]
        modes = {"bicubic": 3, "bilinear": 2}
        self.resize = [dict(size=[s, s] if strategy == "resize-naive" else s, interpolation=modes[mode], max_size=None,
                            antialias=True) for s, mode in zip(sizes, file["interpolations"])]
        self.crop = [dict(output_size=[s, s]) for s in sizes]
        self.normal = [dict(mean=file["means"][i], std=file["stds"][i], inplace=False) for i in range(count)]
        self.fill = [int(255 * mean) for mean in file["means"][-1]] if strategy == "letterbox" else None

    def tvf(self):
        return dict(tvf_do_letterbox=self.fill is not None, tvf_letterbox_fill=self.fill, tvf_resize_params=self.resize,
                    tvf_crop_params=self.crop, tvf_normalize_params=self.normal)

    def __call__(self, image):
        if self.fill is not None:
            (w, h), side = image.size, max(image.size)
            pads = (int((side - w) / 2), int((side - h) / 2))
            image = TVF.pad(image, [*pads, *pads], fill=tuple(self.fill), padding_mode="constant")
        planes = []
        for resize, crop, normal in zip(self.resize, self.crop, self.normal):
            mode = {3: TVF.InterpolationMode.BICUBIC, 2: TVF.InterpolationMode.BILINEAR}[resize["interpolation"]]
            seen = TVF.resize(image, **(resize | {"interpolation": mode}))
            seen = TVF.to_tensor(TVF.center_crop(seen, **crop))
            planes.append(TVF.normalize(seen, **normal))
        return torch.vstack(planes)[None]


def frames(strategy, height, width, fused=True, side=28, mode="bicubic", stored=True, note=None):
    def make(name):
        count = 2 if fused else 1
        file = dict(image_processor_type="PrismaticImageProcessor", use_fused_vision_backbone=fused,
                    image_resize_strategy=strategy, input_sizes=[[3, side, side]] * count, interpolations=[mode] * count,
                    means=[[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]][-count:],
                    stds=[[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]][-count:])
        processor = PrismaticImageProcessor(file)
        if stored:
            for normal in processor.normal:
                for key in ("mean", "std"):
                    normal[key] = torch.tensor(normal[key]).bfloat16().float().tolist()
            file |= processor.tvf()
        random = np.random.default_rng(seed_of(name))
        ramp = np.linspace(0, 255, width)[None, :, None] * np.array([1, 0.5, 0.2])
        image = np.where(random.random((height, width, 1)) < 0.5, ramp, random.integers(0, 256, (height, width, 3)))
        image = image.astype(np.uint8)
        case = Case(name, SYSTEM)
        case.model.mkdir(parents=True)
        write_json(case.model / "preprocessor_config.json", file)
        common.REFERENCE = f"torchvision {torchvision.__version__.split('+')[0]}"
        case.write(f"PrismaticImageProcessor, stated again over Pillow {PIL.__version__}", "encode", {"image": torch.tensor(image).long()},
                   {"pixel_values": processor(Image.fromarray(image))}, {"image_resize_strategy": strategy},
                   atol=1e-6, rtol=1e-6, note=note)

    return make


CASES = {
    "openvla/forward_fused": forward(),
    "openvla/forward_fused_right_padded": forward(mask=right_padding((9, 6))),
    "openvla/forward_fused_left_padded": forward(
        mask=left_padding((9, 7)), keep=17, note="the first token of a padded row is hidden, the patches after it are not"),
    "openvla/forward_no_mask_one_row": forward(rows=1, time=2, image_sizes=[28, 28]),
    "openvla/forward_begin_alone": forward(rows=3, time=1, image_sizes=[28, 28], note="a token, then the patches"),
    "openvla/forward_sharded_bf16": forward(
        layout="shards", dtype=torch.bfloat16, image_sizes=[45, 45],
        note="pictures that are no whole number of patches"),
    "openvla/forward_trained_layout": forward(
        layout="pt", note="the training code's file: vision_backbone, projector and llm_backbone apart, gamma for scales"),
    "openvla/forward_trained_layout_single": forward(SINGLE, layout="pt", dtype=torch.float16, mask=right_padding((9, 4))),
    "openvla/forward_single": forward(SINGLE, mask=right_padding((7, 9))),
    "openvla/forward_single_dino": forward(
        SINGLE, vision_backbone_id="dinov2-vit-l", timm_model_ids=[DINO], timm_model_kwargs=[tower(24, 3, 4)]),
    "openvla/forward_single_class_token": forward(
        SINGLE, vision_backbone_id="in1k-vit-l", timm_model_ids=[PLAIN], image_sizes=[48],
        timm_model_kwargs=[tower(20, 3, 5, mlp_ratio=2.3)], note="the class token has a position of its own"),
    "openvla/forward_dino_and_clip": forward(
        vision_backbone_id="dinoclip-vit-l-336px", timm_model_ids=[DINO, CLIP],
        timm_override_act_layers=[None, "quick_gelu"], timm_model_kwargs=[tower(20, 3, 2), tower(24, 4, 3)],
        note="CLIP's tower: a norm before the first block, no bias on patches, another activation"),
    "openvla/forward_derived_keys": forward(
        SINGLE, drop=["timm_model_ids", "use_fused_vision_backbone", "timm_override_act_layers", "n_action_bins"],
        note="what the backbone's name tells is not in the file"),
    "openvla/forward_text_alone": forward(SINGLE, picture=False),
    "openvla/forward_picture_alone": forward(words=False, rows=3),
    "openvla/train_step": train(
        note="the tokens of the action and the end count; right padding; last blocks and pools are not read", **SMALL),
    "openvla/adapter_all_linear": fine_tuned(
        [lora(ALL_LINEAR, r=2, lora_alpha=2, init_lora_weights="gaussian")],
        note="as the training code's fine-tuning: every linear layer but the head, also of blocks that are not read, and the convolution",
        **SMALL),
    "openvla/adapter_biases": fine_tuned(
        [lora(["qkv", "fc2", "q_proj"], bias="all", use_rslora=True)], SINGLE,
        note="every bias is the adapter's, those beside a LoRA under base_layer; rank-stabilised"),
    "openvla/predict_action": act(
        ["bridge", "kuka", "mixed"], norm_stats={"bridge": stats(2), "kuka": stats(3, mask=False), "mixed": stats(4, mask="some")},
        note="29871 is appended to the prompt; kuka says no mask, mixed leaves two numbers as they are"),
    "openvla/predict_action_single": act(
        [None], SINGLE, boost=(31600, 32064), outside=True, ends=True, norm_stats={}, own={"libero": stats(5, dim=6)},
        note="statistics in dataset_statistics.json, no key; six numbers; the prompt ends in 29871; some words are no actions"),
    "openvla/tokenizer": codec(32000, 256, -1.0, 1.0),
    "openvla/tokenizer_other_range": codec(1000, 18, -0.3, 2.0),
    "openvla/frames_naive": frames("resize-naive", 61, 90),
    "openvla/frames_naive_upscaled": frames("resize-naive", 17, 11, side=42),
    "openvla/frames_naive_same": frames("resize-naive", 28, 28),
    "openvla/frames_crop": frames("resize-crop", 57, 88),
    "openvla/frames_crop_tall": frames("resize-crop", 120, 29, stored=False, note="no tvf parameters in the file"),
    "openvla/frames_letterbox": frames("letterbox", 33, 70, note="an odd rest: one row is lacking to a square"),
    "openvla/frames_letterbox_tall": frames("letterbox", 71, 40, stored=False),
    "openvla/frames_single_bilinear": frames("letterbox", 50, 50, fused=False, mode="bilinear"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
