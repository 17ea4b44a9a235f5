"""Parity cases of DALL-E: OpenAI's discrete VAE, either side; DALL-E mini in the port's and the original's layout.

The references are the packages DALL-E 0.1 and min-dalle 0.4.11, whose sizes are cut: the first checks its sizes only on
demand, the second writes some of them into its modules. No package writes the original's flax files of DALL-E mini, so
the port's weights are renamed to them.
"""

import copy
import importlib.util
import math
import re
import sys

import attr
import msgpack
import torch
from safetensors.torch import load_file, save_file

attr.validators.set_disabled(True)

import dall_e
import min_dalle.models.dalle_bart_decoder as decoder_module
from min_dalle.models import DalleBartDecoder, DalleBartEncoder

import common
from common import Case, Retry, check_every_weight_matters, first_good, run_all, write_json
from training import lora, write_adapters, write_train_step

# The port turns gradients off for the whole process.
torch.set_grad_enabled(True)

OPENAI, PORT = "DALL-E 0.1", "min-dalle 0.4.11"

# A choice that a rounding could turn makes a poor case.
MARGIN = 2e-3


def fill(model, seed, gain=1.3):
    """Fills every parameter with values that keep activations near one and no branch near zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            is_norm = re.search(r"norm|ln", name) is not None
            if weight.dim() == 1 and is_norm and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif "embed" in name:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(gain * noise / weight[0].numel() ** 0.5)
    return model.eval()


def halve(model):
    """Rounds every weight to what float16 holds; the model goes on computing in float32."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


def check_choice(scores):
    """Refuses scores, best choice last axis, whose best is nearly tied."""
    best, second = scores.topk(2).values.unbind(-1)
    if (best - second).min() < MARGIN:
        raise Retry("a near-tie")


# ---------------------------------------------------------------- the discrete VAE


def dvae_encoder(seed, n_hid, blocks, vocab):
    return fill(dall_e.Encoder(n_hid=n_hid, n_blk_per_group=blocks, vocab_size=vocab), seed, 2.0)


def dvae_decoder(seed, n_init, n_hid, blocks, vocab):
    return fill(
        dall_e.Decoder(n_init=n_init, n_hid=n_hid, n_blk_per_group=blocks, vocab_size=vocab), seed + 1, 2.0
    )


@torch.no_grad()
def encoded(encoder, pixels):
    logits = encoder(dall_e.map_pixels(pixels))
    return {"logits": logits, "codes": logits.argmax(1)}


@torch.no_grad()
def decoded(decoder, codes):
    one_hot = torch.nn.functional.one_hot(codes, decoder.vocab_size).permute(0, 3, 1, 2).float()
    x_stats = decoder(one_hot)
    pixels = dall_e.unmap_pixels(torch.sigmoid(x_stats[:, :3]))
    return {"x_stats": x_stats, "pixel_values": pixels}


def load_module(name):
    return lambda folder: torch.load(folder / name, weights_only=False).eval()


def encode_case(shape, sides=("encoder", "decoder"), n_hid=8, blocks=2, vocab=40, note=None):
    def make(name):
        def build(seed):
            encoder = dvae_encoder(seed, n_hid, blocks, vocab)
            random = torch.Generator().manual_seed(seed + 2)
            pixels = torch.rand(shape, generator=random)
            pixels[0, :, :4, :4] = 1.0
            answer = encoded(encoder, pixels)
            check_choice(answer["logits"].permute(0, 2, 3, 1))
            check_every_weight_matters(encoder, lambda m: {"logits": encoded(m, pixels)["logits"]})
            return seed, encoder, pixels, answer

        seed, encoder, pixels, answer = first_good(name, build)
        common.REFERENCE = OPENAI
        case = Case(name, "DALL-E")
        case.write("dall_e.Encoder", "encode", {"pixel_values": pixels}, answer, note=note)
        case.model.mkdir(parents=True)
        torch.save(encoder, case.model / "encoder.pkl")
        if "decoder" in sides:
            torch.save(dvae_decoder(seed, 12, n_hid, blocks, vocab), case.model / "decoder.pkl")
        case.check_repeats(load_module("encoder.pkl"), lambda m: encoded(m, pixels))

    return make


def decode_case(shape, sides=("encoder", "decoder"), n_init=12, n_hid=8, blocks=2, vocab=40, note=None):
    def make(name):
        def build(seed):
            decoder = dvae_decoder(seed, n_init, n_hid, blocks, vocab)
            random = torch.Generator().manual_seed(seed + 2)
            codes = torch.randint(0, vocab, shape, generator=random)
            codes[0, 0, 0], codes[0, 0, 1] = 0, vocab - 1
            run = lambda m: {"x_stats": decoded(m, codes)["x_stats"]}
            check_every_weight_matters(decoder, run)
            return seed, decoder, codes

        seed, decoder, codes = first_good(name, build)
        common.REFERENCE = OPENAI
        case = Case(name, "DALL-E")
        case.write("dall_e.Decoder", "decode", {"codes": codes}, decoded(decoder, codes), note=note)
        case.model.mkdir(parents=True)
        torch.save(decoder, case.model / "decoder.pkl")
        if "encoder" in sides:
            torch.save(dvae_encoder(seed, n_hid, blocks, vocab), case.model / "encoder.pkl")
        case.check_repeats(load_module("decoder.pkl"), lambda m: decoded(m, codes))

    return make


# ---------------------------------------------------------------- the VQGAN


def vqgan(seed, mult, codes, width=24, attends=True, eps=1e-5):
    """The port's detokenizer with its sizes cut: levels of 32 times `mult`, the largest pictures first."""
    path = importlib.util.find_spec("min_dalle.models.vqgan_detokenizer").origin
    source = open(path, encoding="utf8").read()
    log2 = [5 + (m > 1) for m in mult]
    top = log2[-1]
    levels = []
    for i, out in enumerate(log2):
        last = i + 1 == len(log2)
        levels.append(f"UpsampleBlock({out if last else log2[i + 1]}, {out}, {attends and last}, {i > 0}),")
    source = re.sub(r"self\.up = nn\.ModuleList\(\[.*?\]\)",
                    "self.up = nn.ModuleList([" + "".join(levels) + "])", source, flags=re.S)
    source = source.replace("range(5)", f"range({len(log2)})")
    source = source.replace("ResnetBlock(9, 9)", f"ResnetBlock({top}, {top})")
    source = source.replace("2 ** 9", f"2 ** {top}").replace("2 ** 7", f"2 ** {log2[0]}")
    source = source.replace("nn.Conv2d(2 ** 8, ", f"nn.Conv2d({width}, ")
    source = source.replace("2 ** 14, 2 ** 8", f"{codes}, {width}")
    # What changes in place, and what leaves float64, has no gradient.
    for old, new in [("h *= ", "h = h * "), ("z *= ", "z = z * "), ("w /= ", "w = w / "), ("x.to(torch.float32)", "x")]:
        source = source.replace(old, new)
    module = {}
    exec(compile(source, path, "exec"), module)
    model = fill(module["VQGanDetokenizer"](), seed, 1.2)
    with torch.no_grad():
        # Most pixels between black and white.
        model.decoder.conv_out.weight.mul_(0.2)
        model.decoder.conv_out.bias.copy_(torch.tensor([0.4, 0.5, 0.6]))
    for part in model.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.eps = eps
    return halve(model)


@torch.no_grad()
def pictures(model, codes):
    """Pictures in 0 to 255 of `(batch, height, width)` codes: the module's own steps, for any grid."""
    z = model.embedding(codes).permute(0, 3, 1, 2).contiguous()
    z = model.decoder(model.post_quant_conv(z)).permute(0, 2, 3, 1)
    return z.clip(0.0, 1.0) * 255


def write_detoker(model, folder):
    torch.save({name: weight.half() for name, weight in model.state_dict().items()}, folder / "detoker.pt")


class Encoder(torch.nn.Module):
    """The encoder of taming-transformers of the port's blocks, which has none: levels of 32 times `mult`."""

    def __init__(self, detokenizer, mult, width):
        super().__init__()
        blocks = type(detokenizer).__init__.__globals__
        log2 = [5] + [5 + (m > 1) for m in mult]
        self.conv_in = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.down = torch.nn.ModuleList()
        for level, out in enumerate(log2[1:]):
            last, part = level + 1 == len(mult), torch.nn.Module()
            part.block = torch.nn.ModuleList(blocks["ResnetBlock"](n, out) for n in (log2[level], out))
            if last:
                part.attn = torch.nn.ModuleList(blocks["AttentionBlock"]() for _ in range(2))
            else:
                part.downsample = torch.nn.Module()
                part.downsample.conv = torch.nn.Conv2d(2**out, 2**out, 3, stride=2)
            self.down.append(part)
        self.mid = blocks["MiddleLayer"]()
        self.norm_out = torch.nn.GroupNorm(32, 2 ** log2[-1])
        self.conv_out = torch.nn.Conv2d(2 ** log2[-1], width, 3, padding=1)

    def forward(self, pixels):
        h = self.conv_in(pixels)
        for part in self.down:
            for i, block in enumerate(part.block):
                h = block(h)
                h = part.attn[i](h) if hasattr(part, "attn") else h
            if hasattr(part, "downsample"):
                h = part.downsample.conv(torch.nn.functional.pad(h, (0, 1, 0, 1)))
        h = self.norm_out(self.mid(h))
        return self.conv_out(h * torch.sigmoid(h))


class Encoding(torch.nn.Module):
    """The encoder, and the map to the codes' dimension."""

    def __init__(self, seed, detokenizer, mult, width, eps):
        super().__init__()
        self.encoder = Encoder(detokenizer, mult, width)
        self.quant_conv = torch.nn.Conv2d(width, width, 1)
        fill(self, seed, 1.2)
        for part in self.modules():
            if isinstance(part, torch.nn.GroupNorm):
                part.eps = eps
        halve(self)

    def forward(self, pixels):
        """Latents, `(batch, height, width, width)`, of `(batch, height, width, 3)` pixels."""
        return self.quant_conv(self.encoder(pixels.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def flax_vqgan(model, folder, mult, codes, width, resolution, encoding=None):
    """The original's layout: names with underscores, kernels (height, width, in, out), a config without a type."""
    tree = {}
    state = {**model.state_dict(), **(encoding.state_dict() if encoding else {})}
    for name, weight in state.items():
        parts = re.sub(r"\.(\d+)\.", r"_\1.", re.sub(r"\.(\d+)\.", r"_\1.", name)).split(".")
        if name == "embedding.weight":
            parts = ["quantize", "embedding", "embedding"]
        elif weight.dim() == 4:
            parts[-1], weight = "kernel", weight.permute(2, 3, 1, 0)
        elif parts[-1] == "weight":
            parts[-1] = "scale"
        put(tree, parts, weight)
    folder.mkdir(parents=True, exist_ok=True)
    write_msgpack(tree, folder / "flax_model.msgpack")
    write_json(folder / "config.json", {
        "ch": 32, "ch_mult": mult, "num_res_blocks": 2, "attn_resolutions": [resolution >> (len(mult) - 1)],
        "resolution": resolution, "z_channels": width, "n_embed": codes, "embed_dim": width, "out_ch": 3,
        "in_channels": 3, "double_z": False, "dropout": 0.0, "resamp_with_conv": True, "give_pre_end": False,
    })


def picture_case(shape, codes=40, mult=(1, 2, 2), flax=False, flat=False, note=None):
    def make(name):
        def build(seed):
            model = vqgan(seed, mult, codes, eps=1e-6 if flax else 1e-5)
            grid = torch.randint(0, codes, shape, generator=torch.Generator().manual_seed(seed + 2))
            run = lambda m: {"images": pictures(m, grid)}
            # One channel a group: a norm takes away what a bias before it adds, and softmax what one on keys adds.
            check_every_weight_matters(model, run, unseen=(".bias",))
            images = pictures(model, grid)
            if ((images > 0) & (images < 255)).float().mean() < 0.6:
                raise Retry("most pixels are clipped")
            return model, grid, images

        model, grid, images = first_good(name, build)
        common.REFERENCE = PORT
        case = Case(name, "DALL-E")
        inputs = {"codes": grid.flatten(1) if flat else grid}
        case.write("VQGanDetokenizer (sizes cut)", "decode", inputs, {"images": images}, atol=2e-2, note=note)
        case.model.mkdir(parents=True)
        if flax:
            flax_vqgan(model, case.model, list(mult), codes, 24, 8)
        else:
            write_detoker(model, case.model)

        def reload(folder):
            again = vqgan(0, mult, codes, eps=1e-6 if flax else 1e-5)
            stored = model.state_dict() if flax else torch.load(folder / "detoker.pt", weights_only=True)
            again.load_state_dict({k: v.float() for k, v in stored.items()})
            return again

        case.check_repeats(reload, lambda m: {"images": pictures(m, grid)})

    return make


def distances_of(latents, embeddings):
    """The squared distances of latents, `(…, width)`, from all embeddings, `(codes, width)`."""
    return (latents[..., None, :] - embeddings).pow(2).sum(-1)


def autoencoder(seed, mult, codes):
    """The detokenizer and the encoder as one module."""
    model = vqgan(seed, mult, codes, eps=1e-6)
    encoding = Encoding(seed + 7, model, mult, 24, 1e-6)
    model.encoder, model.quant_conv = encoding.encoder, encoding.quant_conv
    return model.requires_grad_(True)


def quantized_loss(model, inputs, temperature, entropy, commitment=0.25):
    """The loss of van den Oord et al. 2017 with the entropy loss of MaskGIT's VQGAN (Chang et al. 2022), and its parts."""
    pixels, embeddings = inputs["pixel_values"], model.embedding.weight
    latents = model.quant_conv(model.encoder(pixels.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    distances = distances_of(latents, embeddings)
    check_choice(-distances.detach())
    chosen = embeddings[distances.argmin(-1)]
    passed_on = latents + (chosen - latents).detach()
    made = model.decoder(model.post_quant_conv(passed_on.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    share = (-distances.flatten(0, -2) / temperature).softmax(-1)
    spread = lambda p: -(p * (p + 1e-5).log()).sum(-1)
    squared = torch.nn.functional.mse_loss
    parts = {
        "loss_reconstruction": squared(made, pixels), "loss_codebook": squared(chosen, latents.detach()),
        "loss_commitment": squared(latents, chosen.detach()),
        "loss_entropy": spread(share).mean() - spread(share.mean(0)),
    }
    loss = parts["loss_reconstruction"] + parts["loss_codebook"] + commitment * parts["loss_commitment"]
    return {"loss": loss + entropy * parts["loss_entropy"], **parts}


def vqgan_train(shape, codes=11, mult=(2, 2), temperature=8.0, entropy=0.1, note=None):
    def make(name):
        def attempt(seed):
            model = autoencoder(seed, mult, codes)
            pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 2))
            case = Case(name, "DALL-E")
            case.model.mkdir(parents=True)
            save_file({k: v.detach().half() for k, v in model.state_dict().items()}, case.model / "model.safetensors")
            write_json(case.model / "config.json", {
                "model_type": "vqgan", "architectures": ["VQModel"], "ch": 32, "ch_mult": list(mult), "num_res_blocks": 2,
                "attn_resolutions": [shape[1] >> (len(mult) - 1)], "resolution": shape[1], "z_channels": 24,
                "n_embed": codes, "embed_dim": 24, "out_ch": 3,
            })

            def reload(folder):
                again = autoencoder(1, mult, codes)
                again.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
                return again

            common.REFERENCE = PORT
            options = {"reconstruction": "l2", "entropy": entropy, "entropy_temperature": temperature}
            write_train_step(case, "VQGanDetokenizer (sizes cut), and its blocks as an encoder", model,
                             lambda network, batch: quantized_loss(network, batch, temperature, entropy),
                             {"pixel_values": pixels}, ("pixel_values",), reload, options=options,
                             unseen=(".k.bias",), note=note)

        first_good(name, attempt)

    return make


def encoding_case(shape, codes=40, mult=(1, 2), note=None):
    """Pictures to codes, by the encoder of the original's layout."""
    def make(name):
        def build(seed):
            model = vqgan(seed, mult, codes, eps=1e-6)
            encoding = Encoding(seed + 7, model, mult, 24, 1e-6)
            encoding.requires_grad_(False)
            pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 2))
            check_every_weight_matters(encoding, lambda m: {"latents": m(pixels)}, unseen=(".bias",))
            latents = encoding(pixels).contiguous()
            distances = distances_of(latents, model.embedding.weight.detach())
            check_choice(-distances)
            return model, encoding, pixels, {"latents": latents, "codes": distances.argmin(-1)}

        model, encoding, pixels, answer = first_good(name, build)
        common.REFERENCE = PORT
        case = Case(name, "DALL-E")
        case.write("its blocks in the order of taming-transformers' Encoder", "encode", {"pixel_values": pixels}, answer,
                   note=note)
        flax_vqgan(model, case.model, list(mult), codes, 24, 16, encoding)

        def reload(_):
            again = Encoding(1, model, mult, 24, 1e-6).requires_grad_(False)
            again.load_state_dict(encoding.state_dict())
            return again

        case.check_repeats(reload, lambda m: {"latents": m(pixels).contiguous()})

    return make


# ---------------------------------------------------------------- DALL-E mini

SIZES = dict(d_model=36, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3, decoder_attention_heads=3,
             encoder_ffn_dim=50, decoder_ffn_dim=62, encoder_vocab_size=53, image_vocab_size=47, image_length=16,
             max_text_length=9)

# Norms that a dense layer follows have no scale in the releases.
UNSCALED = ("pre_self_attn_layer_norm.weight", "pre_encoder_attn_layer_norm.weight", "glu.ln0.weight",
            "glu.ln1.weight", "final_ln.weight")


class Bart(torch.nn.Module):
    """Both halves of the port."""

    def __init__(self, seed, sizes, scaled):
        super().__init__()
        s = self.sizes = sizes
        decoder_module.IMAGE_TOKEN_COUNT = s["image_length"]
        self.encoder = DalleBartEncoder(
            layer_count=s["encoder_layers"], embed_count=s["d_model"],
            attention_head_count=s["encoder_attention_heads"], text_vocab_count=s["encoder_vocab_size"],
            text_token_count=s["max_text_length"], glu_embed_count=s["encoder_ffn_dim"], device="cpu")
        self.decoder = DalleBartDecoder(
            image_vocab_count=s["image_vocab_size"], embed_count=s["d_model"],
            attention_head_count=s["decoder_attention_heads"], glu_embed_count=s["decoder_ffn_dim"],
            layer_count=s["decoder_layers"], device="cpu")
        fill(self, seed)
        if not scaled:
            with torch.no_grad():
                for name, weight in self.named_parameters():
                    if name.endswith(UNSCALED):
                        weight.fill_(1.0)
        halve(self)

    def read(self, ids):
        """States of texts; the port reads two at a time."""
        pad = torch.cat([ids, ids[:1]])[: 2 * ((len(ids) + 1) // 2)]
        return torch.cat([self.encoder(pad[i:i + 2]) for i in range(0, len(pad), 2)])[: len(ids)]

    def logits(self, states, mask, codes):
        """Scores after each of `codes`, `(1, time)`, for each text."""
        s, rows, time = self.sizes, len(states), codes.shape[1]
        if rows % 2:
            return self.logits(states.repeat(2, 1, 1), mask.repeat(2, 1, 1, 1), codes)[:1]
        keep = torch.zeros(s["decoder_layers"], 2 * rows, s["image_length"], s["d_model"])
        logits, _ = self.decoder(mask, states, keep, codes.repeat(rows // 2, 1), torch.arange(time))
        return logits


@torch.no_grad()
def forward(model, ids, codes):
    states = model.read(ids)
    mask = ids.not_equal(1)[:, None, None, :]
    rows = [model.logits(states[i:i + 1], mask[i:i + 1], codes[i:i + 1]) for i in range(len(ids))]
    return {"encoder_last_hidden_state": states, "logits": torch.cat(rows)}


@torch.no_grad()
def generate(model, ids, uncond, start, scale, codes):
    """The likeliest code at each step, guided; `codes` of them may be chosen."""
    rows = []
    for one, nothing in zip(ids, uncond):
        both = torch.stack([nothing, one])
        states, mask = model.read(both), both.not_equal(1)[:, None, None, :]
        row = torch.tensor([[start]])
        for _ in range(model.sizes["image_length"]):
            logits = model.logits(states, mask, row)[:, -1, :codes]
            guided = logits[0] * (1 - scale) + logits[1] * scale
            check_choice(guided)
            row = torch.cat([row, guided.argmax()[None, None]], 1)
        if len(set(row[0].tolist())) < 5:
            raise Retry("a row repeats itself")
        rows.append(row[0, 1:])
    return {"sequences": torch.stack(rows)}


def texts(seed, sizes, lengths):
    """Rows that begin with 0, end with 2 and are filled up with 1."""
    random = torch.Generator().manual_seed(seed + 3)
    ids = torch.ones(len(lengths), sizes["max_text_length"], dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(4, sizes["encoder_vocab_size"], (length,), generator=random)
        row[0], row[length - 1] = 0, 2
    return ids


def config_of(sizes, start):
    return {
        **sizes, "model_type": "dallebart", "decoder_start_token_id": start, "bos_token_id": start,
        "eos_token_id": start, "pad_token_id": start, "activation_function": "gelu", "ln_type": "layernorm",
        "ln_positions": "normformer", "use_glu": True, "use_bias": False, "force_ln_scale": False,
        "use_final_ln_encoder": True, "use_final_ln_decoder": True, "use_absolute_position_embeddings": True,
        "scale_embedding": False, "normalize_text": True, "tie_word_embeddings": False, "is_encoder_decoder": True,
    }


def write_port(model, folder, scaled, config=True, start=None, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for half in ("encoder", "decoder"):
        state = getattr(model, half).state_dict().items()
        weights = {name: weight.half() for name, weight in state if scaled or not name.endswith(UNSCALED)}
        torch.save(weights, folder / f"{half}{suffix}.pt")
    if config:
        write_json(folder / "config.json", config_of(model.sizes, start or model.sizes["image_vocab_size"]))


PARTS = {
    "glu.ln0": "GLU_0.LayerNorm_0", "glu.ln1": "GLU_0.LayerNorm_1", "glu.fc0": "GLU_0.Dense_0",
    "glu.fc1": "GLU_0.Dense_1", "glu.fc2": "GLU_0.Dense_2", "pre_self_attn_layer_norm": "LayerNorm_0",
    "self_attn_layer_norm": "LayerNorm_1", "pre_encoder_attn_layer_norm": "LayerNorm_2",
    "encoder_attn_layer_norm": "LayerNorm_3", "self_attn": "FlaxBartAttention_0",
    "encoder_attn": "FlaxBartAttention_1",
}


def put(tree, path, leaf):
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = leaf.contiguous()


def write_msgpack(tree, path, dtype=torch.float16, pieces=()):
    """As flax writes it: arrays are extensions of type 1, those named in `pieces` come in three parts."""
    def array(leaf):
        leaf = leaf.to(dtype).contiguous()
        raw = leaf.view(torch.uint8).numpy().tobytes() if leaf.dim() else leaf.numpy().tobytes()
        inside = msgpack.packb((tuple(leaf.shape), str(dtype).split(".")[1], raw), use_bin_type=True)
        return msgpack.ExtType(1, inside)

    def packed(node, name=""):
        if isinstance(node, dict):
            return {key: packed(value, f"{name}.{key}") for key, value in node.items()}
        if not name.endswith(tuple(pieces)) or not pieces:
            return array(node)
        step = -(-node.numel() // 3)
        parts = node.reshape(-1).split(step)
        return {
            "__msgpack_chunked_array__": True,
            "shape": {str(i): size for i, size in enumerate(node.shape)},
            "chunks": {str(i): array(part) for i, part in enumerate(parts)},
        }

    path.write_bytes(msgpack.packb(packed(tree)))


def write_flax(model, folder, scan, dtype=torch.float16, pieces=()):
    """The original's layout: layers in one stack if `scan`, kernels (in, out), scales only where no map follows."""
    tree, stacks = {}, {}
    for half in ("encoder", "decoder"):
        for name, weight in getattr(model, half).state_dict().items():
            if name.endswith(UNSCALED):
                continue
            if name == "lm_head.weight":
                put(tree, ["lm_head", "kernel"], weight.t())
                continue
            layer = re.match(r"layers\.(\d+)\.(.*?)(?:\.(\w_proj|out_proj))?\.(weight|bias)$", name)
            if layer is None:
                leaf = {"weight": "embedding" if "embed_" in name else "scale", "bias": "bias"}
                path, last = name.rsplit(".", 1)
                put(tree, ["model", half, *path.split("."), leaf[last]], weight)
                continue
            number, part, projection, last = layer.groups()
            inner = PARTS[part].split(".") + ([projection] if projection else [])
            last = "bias" if last == "bias" else ("kernel" if weight.dim() == 2 else "scale")
            weight = weight.t() if weight.dim() == 2 else weight
            kind = f"FlaxBart{half.capitalize()}Layer"
            if scan:
                stacks.setdefault((half, kind + "s", *inner, last), []).append(weight)
            else:
                put(tree, ["model", half, "layers", f"{kind}_{number}", *inner, last], weight)
    for (half, *path), weights in stacks.items():
        put(tree, ["model", half, "layers", *path], torch.stack(weights))
    folder.mkdir(parents=True, exist_ok=True)
    write_msgpack(tree, folder / "flax_model.msgpack", dtype, pieces)
    config = config_of(model.sizes, model.sizes["image_vocab_size"])
    write_json(folder / "config.json", {**config, "use_scan": scan})


def forward_case(layout, lengths=(9, 5), time=7, scaled=False, note=None, options=None, **changes):
    sizes = {**SIZES, **changes}

    def make(name):
        def build(seed):
            model = Bart(seed, sizes, scaled).eval()
            ids = texts(seed, sizes, lengths)
            codes = torch.randint(0, sizes["image_vocab_size"] + 1, (len(lengths), time),
                                  generator=torch.Generator().manual_seed(seed + 4))
            codes[:, 0] = sizes["image_vocab_size"]
            check_every_weight_matters(model, lambda m: forward(m, ids, codes))
            return model, ids, codes

        model, ids, codes = first_good(name, build)
        common.REFERENCE = PORT
        case = Case(name, "DALL-E")
        inputs = {"input_ids": ids, "decoder_input_ids": codes}
        case.write("DalleBartEncoder + DalleBartDecoder", "forward", inputs, forward(model, ids, codes),
                   options=options, note=note)
        layout(model, case.model, scaled)

        def reload(folder):
            again = Bart(1, sizes, scaled)
            if (folder / "flax_model.msgpack").exists():
                again.load_state_dict(model.state_dict())
                return again.eval()
            suffix = "_mini" if (folder / "encoder_mini.pt").exists() else ""
            for half in ("encoder", "decoder"):
                stored = torch.load(folder / f"{half}{suffix}.pt", weights_only=True)
                info = getattr(again, half).load_state_dict({k: v.float() for k, v in stored.items()}, strict=False)
                if info.unexpected_keys or any(not key.endswith(UNSCALED) for key in info.missing_keys):
                    raise RuntimeError(info)
            return again.eval()

        case.check_repeats(reload, lambda m: forward(m, ids, codes))

    return make


def generate_case(lengths=(8, 4), scale=3.0, codes=40, flax=False, start=None, note=None, **changes):
    sizes, mult = {**SIZES, **changes}, (1, 1, 1)

    def make(name):
        def build(seed):
            model = Bart(seed, sizes, False).eval()
            painter = vqgan(seed + 5, mult, codes, eps=1e-6 if flax else 1e-5)
            ids = texts(seed, sizes, lengths)
            uncond = texts(seed, sizes, [2] * len(lengths))
            begin = sizes["image_vocab_size"] if start is None else start
            answer = generate(model, ids, uncond, begin, scale, codes)
            side = int(sizes["image_length"] ** 0.5)
            answer["images"] = pictures(painter, answer["sequences"].reshape(-1, side, side))
            return model, painter, ids, uncond, begin, answer

        model, painter, ids, uncond, begin, answer = first_good(name, build)
        common.REFERENCE = PORT
        case = Case(name, "DALL-E")
        inputs = {"input_ids": ids, "input_ids_uncond": uncond}
        case.write("DalleBartEncoder + DalleBartDecoder + VQGanDetokenizer (sizes cut)", "generate", inputs, answer,
                   options={"condition_scale": scale, "do_sample": False}, atol=2e-2, note=note)
        if flax:
            write_flax(model, case.model, True)
            folder = case.model / "vqgan_imagenet_f16_16384"
            flax_vqgan(painter, folder, list(mult), codes, 24, 16)
        else:
            write_port(model, case.model, False, start=start)
            write_detoker(painter, case.model)
        case.check_repeats(lambda folder: model, lambda m: generate(m, ids, uncond, begin, scale, codes))

    return make


# ---------------------------------------------------------------- training


def convolve(self, x):
    """What the package's convolution does on a CPU; its own would turn float64 to float32."""
    return torch.nn.functional.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class Dvae(torch.nn.Module):
    """Both sides, which the release keeps in two files."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def elbo(network, inputs, temperature, kl_weight):
    """The negative evidence lower bound of the discrete VAE (Ramesh et al. 2021, section 2.1 and appendices A.2 and A.3).

    The package has no training code. Codes are relaxed by gumbel softmax, the noise is an input `(batch, vocabulary,
    height / 8, width / 8)`. Pixels are squeezed into (0.1, 0.9); their density is the logit-Laplace distribution, whose
    mean and log scale the decoder gives in its first and last three channels. The prior is uniform. Both terms are sums
    over all places, divided by the number of pixels and channels.
    """
    eps = dall_e.utils.logit_laplace_eps
    x = (1 - 2 * eps) * inputs["pixel_values"] + eps
    logits = network.encoder.blocks(x)
    codes = torch.softmax((logits + inputs["gumbel_noise"]) / temperature, 1)
    mean, log_scale = network.decoder.blocks(codes).chunk(2, 1)
    density = -(torch.logit(x) - mean).abs() * torch.exp(-log_scale) - log_scale - torch.log(2 * x * (1 - x))
    chosen = torch.log_softmax(logits, 1)
    divergence = (chosen.exp() * (chosen + math.log(logits.shape[1]))).sum()
    reconstruction, divergence = -density.mean(), divergence / x.numel()
    return {"loss": reconstruction + kl_weight * divergence, "loss_reconstruction": reconstruction,
            "loss_divergence": divergence}


def dvae_train(shape, temperature, kl_weight, n_init=12, n_hid=8, blocks=1, vocab=33, note=None):
    def make(name):
        def attempt(seed):
            model = Dvae(dvae_encoder(seed, n_hid, blocks, vocab), dvae_decoder(seed, n_init, n_hid, blocks, vocab))
            with torch.no_grad():
                # Scales around one: the exponential of what a random decoder says is far from what a trained one does.
                model.decoder.blocks.output.conv.w.mul_(0.3)
            random = torch.Generator().manual_seed(seed + 2)
            grid = (shape[0], vocab, shape[2] // 8, shape[3] // 8)
            uniform = torch.rand(grid, generator=random).clamp(1e-6, 1 - 1e-6)
            inputs = {"pixel_values": torch.rand(shape, generator=random), "gumbel_noise": -(-uniform.log()).log()}
            case = Case(name, "DALL-E")
            case.model.mkdir(parents=True)
            for side in ("encoder", "decoder"):
                torch.save(getattr(model, side).requires_grad_(False), case.model / f"{side}.pkl")

            def reload(folder):
                again = Dvae(load_module("encoder.pkl")(folder), load_module("decoder.pkl")(folder))
                return again.requires_grad_(True)

            common.REFERENCE = OPENAI
            dall_e.utils.Conv2d.forward = convolve
            write_train_step(case, "Encoder + Decoder, trained by the evidence lower bound of Ramesh et al. 2021",
                             model.requires_grad_(True),
                             lambda network, batch: elbo(network, batch, temperature, kl_weight), inputs,
                             ("gumbel_noise",), reload,
                             options={"temperature": temperature, "kl_weight": kl_weight}, note=note)

        first_good(name, attempt)

    return make


def draws_of(seed, sizes, rows):
    """Codes of whole pictures, and the same shifted right behind the code that begins one."""
    codes = torch.randint(0, sizes["image_vocab_size"], (rows, sizes["image_length"]),
                          generator=torch.Generator().manual_seed(seed + 4))
    begin = torch.full((rows, 1), sizes["image_vocab_size"])
    return codes, torch.cat([begin, codes[:, :-1]], 1)


def cross_entropy(model, inputs):
    """The loss of dalle-mini's `tools/train/train.py`: over all codes of all pictures, averaged, none left out.

    The scores are of one code more than the pictures have, which begins them.
    """
    ids, codes = inputs["input_ids"], inputs["decoder_input_ids"]
    states, mask = model.read(ids), ids.not_equal(1)[:, None, None, :]
    logits = torch.cat([model.logits(states[i:i + 1], mask[i:i + 1], codes[i:i + 1]) for i in range(len(ids))])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())


def reload_port(sizes, scaled):
    def reload(folder):
        again = Bart(1, sizes, scaled)
        for half in ("encoder", "decoder"):
            stored = torch.load(folder / f"{half}.pt", weights_only=True)
            getattr(again, half).load_state_dict({k: v.float() for k, v in stored.items()}, strict=False)
        return freeze_unscaled(again, scaled).eval()

    return reload


def freeze_unscaled(model, scaled):
    """A norm without a scale has none to train."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(scaled or not name.endswith(UNSCALED))
    return model


def mini_train(lengths=(9, 5), scaled=False, note=None, **changes):
    sizes = {**SIZES, "decoder_layers": 2, **changes}

    def make(name):
        def attempt(seed):
            model = freeze_unscaled(Bart(seed, sizes, scaled), scaled).eval()
            labels, codes = draws_of(seed, sizes, len(lengths))
            ids = texts(seed, sizes, lengths)
            inputs = {"input_ids": ids, "attention_mask": ids.not_equal(1).long(), "decoder_input_ids": codes,
                      "labels": labels}
            case = Case(name, "DALL-E")
            write_port(model, case.model, scaled)
            common.REFERENCE = PORT
            write_train_step(case, "DalleBartEncoder + DalleBartDecoder", model, cross_entropy, inputs,
                             ("labels", "decoder_input_ids"), reload_port(sizes, scaled), note=note)

        first_good(name, attempt)

    return make


def mini_adapter(configs, lengths=(9, 5), scales=None, safe=True, unseen=(), note=None, **changes):
    sizes = {**SIZES, "decoder_layers": 2, **changes}

    def make(name):
        def attempt(seed):
            model = Bart(seed, sizes, False).eval()
            _, codes = draws_of(seed, sizes, len(lengths))
            ids = texts(seed, sizes, lengths)
            case = Case(name, "DALL-E")
            write_port(model, case.model, False)
            common.REFERENCE = PORT
            write_adapters(case, "DalleBartEncoder + DalleBartDecoder", "forward", model, copy.deepcopy(configs),
                           lambda network: forward(network, ids, codes), {"input_ids": ids, "decoder_input_ids": codes},
                           reload_port(sizes, False), seed, scales=scales, safe=safe, unseen=unseen, note=note)

        first_good(name, attempt)

    return make


def port(**options):
    return lambda model, folder, scaled: write_port(model, folder, scaled, **options)


def mini_beside_mega(model, folder, scaled):
    """The port's repository: mini's files have names of their own, one config lies beside both."""
    write_port(model, folder, scaled, config=False, suffix="_mini")
    other = Bart(3, {**SIZES, "d_model": 24}, scaled)
    write_port(other, folder, scaled)


def flax(scan, **options):
    return lambda model, folder, scaled: write_flax(model, folder, scan, **options)


CASES = {
    "dalle/dvae_encode": encode_case((2, 3, 16, 24)),
    "dalle/dvae_encode_alone": encode_case(
        (1, 3, 24, 8), sides=("encoder",), n_hid=12, blocks=1, vocab=33, note="encoder.pkl alone"),
    "dalle/dvae_decode": decode_case((2, 3, 2)),
    "dalle/dvae_decode_alone": decode_case(
        (1, 1, 4), sides=("decoder",), n_init=16, n_hid=12, blocks=3, vocab=33,
        note="decoder.pkl alone; the gain of a block is no power of two"),
    "dalle/mini_forward": forward_case(port(), note="float16 files without scales of norms before maps"),
    "dalle/mini_forward_no_config": forward_case(
        port(config=False), d_model=128, encoder_attention_heads=2, decoder_attention_heads=2, encoder_layers=1,
        decoder_layers=1, note="sizes follow from the tensors, heads of 64"),
    "dalle/mini_forward_scaled": forward_case(port(), scaled=True, note="norms before maps with scales"),
    "dalle/mini_forward_one_text": forward_case(port(), lengths=(2,), time=16, encoder_layers=3, decoder_layers=1),
    "dalle/mini_forward_beside_mega": forward_case(
        mini_beside_mega, options={"weights": "mini"}, d_model=64, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_layers=1, decoder_layers=2, note="mini's files beside mega's; one config, that of mega"),
    "dalle/mini_forward_flax": forward_case(
        flax(True, pieces=("lm_head.kernel",)), note="layers in one stack; one array in pieces"),
    "dalle/mini_forward_flax_layers": forward_case(
        flax(False, dtype=torch.float32), note="layers of their own, float32"),
    "dalle/train_step_dvae": dvae_train(
        (2, 3, 16, 24), temperature=0.7, kl_weight=6.6,
        note="gumbel softmax with its noise as an input, logit-Laplace, a uniform prior"),
    "dalle/train_step_vqgan": vqgan_train(
        (2, 8, 8, 3), note="straight-through codes, commitment and entropy; no adversarial and no perceptual term"),
    "dalle/train_step_mini": mini_train(
        note="labels are all codes of a picture; norms before maps have no scales to train"),
    "dalle/train_step_mini_scaled": mini_train(scaled=True, lengths=(4, 9), encoder_layers=1, decoder_layers=1),
    "dalle/adapter_mini_embedding": mini_adapter(
        [lora(["embed_tokens", "q_proj", "v_proj", "lm_head"], r=4)], note="embeddings of both halves among them"),
    "dalle/adapter_mini_biases": mini_adapter(
        [lora(["fc0", "fc2", "out_proj"], bias="all")], encoder_layers=1, note="the biases of every norm are the adapter's"),
    "dalle/mini_generate": generate_case(note="codes past the picture half's are never chosen"),
    "dalle/mini_generate_bos": generate_case(start=39, lengths=(6, 9, 3), scale=1.0, encoder_layers=1,
                                             note="a picture begins with an ordinary code; no guidance"),
    "dalle/mini_generate_flax": generate_case(
        flax=True, scale=10.0, note="the picture half from a release of its own, with its own eps"),
    "dalle/vqgan_decode": picture_case((2, 4, 4), mult=(1, 2), note="detoker.pt alone"),
    "dalle/vqgan_decode_flat": picture_case((3, 3, 3), mult=(1, 1, 1), flat=True, note="codes in one row"),
    "dalle/vqgan_encode": encoding_case((2, 8, 8, 3), mult=(1, 1), note="the original's layout, with its encoder"),
    "dalle/vqgan_decode_flax": picture_case((2, 3, 3), mult=(1, 2), flax=True, note="the original's layout"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
