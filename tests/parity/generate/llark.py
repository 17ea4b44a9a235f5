"""Parity cases of Jukebox's codec and prior, and of LLark, which reads what the prior hears.

transformers 5 has no Jukebox. This script runs with 4.46.3 in front of the other pins:

    pip install --target old --no-deps -r requirements-llark.txt
    PYTHONPATH=old python llark.py
"""

import json
import math
import sys

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import JukeboxConfig, JukeboxModel, LlamaConfig, LlamaForCausalLM

from common import (
    Case,
    Retry,
    as_list,
    distance,
    first_good,
    ids,
    left_padding,
    right_padding,
    run_all,
    write_bin,
    write_json,
    write_safetensors,
    write_sharded_bin,
)
from training import write_adapters, write_train_step

SYSTEM = "LLark"
START, END, PATCH, PAD = 52, 53, 51, 50


# ---------------------------------------------------------------- the reference with random weights


def jukebox(seed, vqvae=None, prior=None, priors=1):
    """A tiny model. `vqvae` and `prior` change its configuration, in transformers' names."""
    codec = dict(embed_dim=7, nb_discrete_codes=24, res_conv_depth=2, res_conv_width=4, res_downs_t=[2, 1, 1],
                 res_strides_t=[2, 2, 2], multipliers=[2, 1, 1]) | (vqvae or {})
    top = dict(attention_pattern="raw_column_previous_row_attention", mask=True, is_encoder_decoder=False,
               nb_relevant_lyric_tokens=0, lyric_vocab_size=0, merged_decoder=True, level=0, n_ctx=48, hidden_size=24,
               num_layers=5, n_heads=2, blocks=6, metadata_dims=[9, 13], music_vocab_size=24,
               res_downs_t=codec["res_downs_t"], res_strides_t=codec["res_strides_t"]) | (prior or {})
    hop = math.prod(s**d for s, d in zip(codec["res_strides_t"], codec["res_downs_t"]))
    codec["sample_length"] = top["n_ctx"] * hop
    config = JukeboxConfig(vqvae_config=codec, prior_config_list=[top] * priors, nb_priors=priors, sampling_rate=48, timing_dims=11,
                           min_duration=60, max_duration=600, max_nb_genres=5)
    model = JukeboxModel(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if weight.dim() == 1:
                weight.copy_(0.3 * noise + (1 if "layer_norm" in name and name.endswith("weight") else 0))
            elif weight.dim() == 3:
                weight.copy_(noise / (weight[0].numel() if "upsample" not in name else 2 * weight.shape[0]) ** 0.5)
            elif "_attn_mods" in name:
                weight.copy_(1.3 * noise / weight.shape[0] ** 0.5)
            else:
                weight.copy_(0.7 * noise)
    return model


def set_codebooks(model, seed, audio):
    """Codebooks near what the encoders give, so that many codes are used and none is chosen by a hair."""
    random = torch.Generator().manual_seed(seed + 7)
    for level, encoder in enumerate(model.vqvae.encoders):
        frames = encoder(audio.permute(0, 2, 1))[-1].permute(0, 2, 1).flatten(0, 1)
        book = model.vqvae.bottleneck.level_blocks[level].codebook
        chosen = frames[torch.randint(0, len(frames), (len(book),), generator=random)]
        book.copy_(chosen + 0.2 * frames.std() * torch.randn(book.shape, generator=random))


def refuse_near_ties(model, audio):
    for level, encoder in enumerate(model.vqvae.encoders):
        frames = encoder(audio.permute(0, 2, 1))[-1].permute(0, 2, 1).flatten(0, 1)
        distances = torch.cdist(frames, model.vqvae.bottleneck.level_blocks[level].codebook).square()
        best, second = distances.topk(2, largest=False).values.T
        if (second - best).min() < 1e-5 * distances.mean():
            raise Retry("a code is chosen by a hair")


def wave(seed, *shape):
    """Three tones and noise, `(…, samples)`."""
    random = torch.Generator().manual_seed(seed + 3)
    at = torch.arange(shape[-1]) / 7
    tones = sum(torch.rand((*shape[:-1], 1), generator=random) * torch.sin(at * f) for f in (0.31, 0.9, 2.3))
    return 0.3 * tones + 0.1 * torch.randn(shape, generator=random)


# ---------------------------------------------------------------- the two layouts


def transformers_layout(folder, model, write=write_bin):
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["JukeboxModel"]
    (folder / "config.json").write_text(model.config.to_json_string() + "\n")
    write(folder, {name: weight.clone() for name, weight in model.state_dict().items()})


def openai_name(name):
    """OpenAI's name of one of transformers' tensors, and which file holds it."""
    parts = name.split(".")
    if parts[0] == "vqvae":
        parts = parts[1:]
        if parts[-1] == "codebook":
            return "vqvae", ".".join(parts[:-1] + ["k"])
        head, inside = parts[:4], parts[4:]
        if parts[2] == "out":
            return "vqvae", ".".join(parts)
        conv = {"conv1d_1": "1", "conv1d_2": "3"}
        match inside:
            case ["proj_in", kind]:
                inside = ["0", kind]
            case ["proj_out", kind]:
                inside = ["{downs}", kind]
            case ["downsample_block", i, kind]:
                inside = [str(int(i) // 2), "0", kind]
            case ["downsample_block", i, "resnet_block", j, part, kind]:
                inside = [str(int(i) // 2), "1", "model", j, "model", conv[part], kind]
            case ["upsample_block", i, "resnet_block", j, part, kind]:
                inside = [str(int(i) // 2 + 1), "0", "model", j, "model", conv[part], kind]
            case ["upsample_block", i, kind]:
                inside = [str(int(i) // 2 + 1), "1", kind]
        return "vqvae", ".".join(head + ["model"] + inside)
    parts = parts[2:]
    match parts:
        case ["metadata_embedding", ("bow_genre_emb" | "artist_emb") as table, kind]:
            parts = ["y_emb", table, "emb", kind]
        case ["metadata_embedding", *rest]:
            parts = ["y_emb", *rest]
        case ["prior", "embed_tokens", kind]:
            parts = ["prior", "x_emb", kind]
        case ["prior", "fc_proj_out", kind]:
            parts = ["prior", "x_out", kind]
        case [*head, ("layer_norm_0" | "layer_norm_1") as norm, kind]:
            parts = [*head, norm.replace("layer_norm", "ln"), kind]
        case [*head, kind] if "_attn_mods" in parts:
            parts = [*head, kind[0]]
    return "prior", ".".join(parts)


def round_matrices(model):
    """Of OpenAI's prior the matrices of the layers are stored in half precision."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_attn_mods" in name and weight.dim() == 2:
                weight.copy_(weight.half())


def openai_layout(folder, model, prefix="", legacy=True):
    """`vqvae.pth.tar` and `prior_level_2.pth.tar`, in the container of 2020 or today's."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"vqvae": {}, "prior": {}}
    for name, weight in model.state_dict().items():
        file, official = openai_name(name)
        if "{downs}" in official:
            official = official.format(downs=model.config.vqvae_config.res_downs_t[int(official.split(".")[3])])
        half = official.endswith(".w")
        files[file][prefix + official] = (weight.half() if half else weight).clone()
    names = {"vqvae": "vqvae.pth.tar", "prior": "prior_level_2.pth.tar"}
    for file, weights in files.items():
        if not weights:
            continue
        torch.save({"model": weights, "step": 7, "hps": {"name": "tiny"}}, folder / names[file],
                   _use_new_zipfile_serialization=not legacy)


def openai_hps(model):
    """The shape of both networks in OpenAI's names: what the files themselves do not say."""
    v, m = model.config.vqvae_config, model.config
    hps = {
        "vqvae": {
            "levels": v.levels, "downs_t": v.res_downs_t, "strides_t": v.res_strides_t, "emb_width": v.embed_dim,
            "l_bins": v.nb_discrete_codes, "hvqvae_multipliers": v.multipliers, "width": v.res_conv_width,
            "depth": v.res_conv_depth, "m_conv": float(v.res_convolution_multiplier),
            "dilation_growth_rate": v.res_dilation_growth_rate, "dilation_cycle": v.res_dilation_cycle,
            "vqvae_reverse_decoder_dilation": True,
        },
    }
    for p in m.prior_configs:
        hps["prior"] = {
            "level": v.levels - 1, "n_ctx": p.n_ctx, "prior_width": p.hidden_size, "prior_depth": p.num_layers,
            "heads": p.n_heads, "attn_order": 2, "blocks": p.blocks, "m_attn": p.attention_multiplier,
            "m_mlp": p.mlp_multiplier, "merged_decoder": True, "y_bins": p.metadata_dims, "t_bins": m.timing_dims,
            "max_bow_genre_size": m.max_nb_genres, "sr": m.sampling_rate, "min_duration": float(m.min_duration),
            "max_duration": float(m.max_duration), "n_tokens": 0, "use_tokens": False, "labels": True,
        }
    return hps


# ---------------------------------------------------------------- what the reference answers


@torch.inference_mode()
def encode(model, audio):
    return {f"music_tokens_{level}": codes for level, codes in enumerate(model.vqvae.encode(audio))}


@torch.inference_mode()
def decode(model, codes):
    return {
        f"audio_from_level_{level}": model.vqvae.decode([codes[f"music_tokens_{level}"]], start_level=level,
                                                        end_level=level + 1)
        for level in range(model.vqvae.levels) if f"music_tokens_{level}" in codes
    }


@torch.inference_mode()
def states(model, codes, metadata, layer):
    """The prior's states after `layer` layers."""
    prior, kept = model.priors[0], []
    x_cond, y_cond, _ = prior.get_cond(None, metadata)
    hook = prior.prior.transformer._attn_mods[layer - 1].register_forward_hook(lambda m, i, out: kept.append(out))
    prior.prior(codes, x_cond, y_cond)
    hook.remove()
    return {f"hidden_states_layer_{layer}": kept[0], "x_cond": x_cond, "y_cond": y_cond}


@torch.inference_mode()
def hear(model, audio, depth, per_second):
    """LLark's features: what its Jukebox container computes of mono `audio`."""
    prior, rate = model.config.prior_configs[0], model.config.sampling_rate
    window = int(model.priors[0].sample_length)
    hop = window // prior.n_ctx
    loudest = audio.abs().max()
    heard = audio / loudest if loudest > 0 else audio
    latent = math.floor(prior.n_ctx * len(audio) / window)
    heard = torch.nn.functional.pad(heard, (0, max(0, window - len(audio))))[:window]
    if loudest > 0:
        refuse_near_ties(model, heard[None, :, None])
    codes = model.vqvae.encode(heard[None, :, None])[-1]
    unknown = torch.tensor([[62 * rate // hop * hop, 0, window, 0, 0, -1, -1, -1, -1]])
    activations = states(model, codes, unknown, depth)[f"hidden_states_layer_{depth}"][0, :latent]
    if per_second == 0:
        pooled = activations.mean(0)
    else:
        frame = math.floor(prior.n_ctx / (window / rate) / per_second)
        pooled = torch.nn.functional.avg_pool1d(activations.T[None], frame, frame)[0].T
    return {"music_tokens": codes, "activations": activations, "audio_encodings": pooled}


def reload_jukebox(folder):
    return JukeboxModel.from_pretrained(folder).eval()


def check_moves(model, run, weights):
    """Every tensor that the case speaks of must move the answer."""
    expected = run(model)
    for name, weight in weights(model):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(kept.flip(0) * 2 + 0.5)
        moved = distance(expected, run(model))
        with torch.no_grad():
            weight.copy_(kept)
        if moved < 10:
            raise Retry(f"{name} moves the answer by {moved:.1f} tolerances only")


# ---------------------------------------------------------------- cases of the codec


def encoding(samples, batch=1, layout="transformers", note=None, vqvae=None, **files):
    def attempt(name, seed):
        with torch.inference_mode():
            model = jukebox(seed, vqvae, priors=1 if layout == "transformers" and vqvae is None else 0)
            audio = wave(seed, batch, samples)[..., None]
            set_codebooks(model, seed, audio)
            refuse_near_ties(model, audio)
        expected = encode(model, audio)
        if min(len(codes.unique()) for codes in expected.values()) < 5:
            raise Retry("few codes are used")
        case = Case(name, SYSTEM)
        options = write_jukebox(case, model, layout, files)
        case.write("JukeboxVQVAE", "encode", {"input_audio": audio}, expected, options, note=note)
        if layout == "transformers":
            case.check_repeats(reload_jukebox, lambda model: encode(model, audio))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def decoding(time, batch=1, layout="transformers", levels=(0, 1, 2), note=None, vqvae=None, **files):
    def attempt(name, seed):
        with torch.inference_mode():
            model = jukebox(seed, vqvae, priors=0)
            set_codebooks(model, seed, wave(seed, 1, 800)[..., None])
        size = model.config.vqvae_config.nb_discrete_codes
        factors = [model.vqvae.hop_lengths[-1] // hop for hop in model.vqvae.hop_lengths]
        codes = {f"music_tokens_{level}": ids(seed + level, (batch, time * int(factors[level])), size, low=0)
                 for level in levels}
        expected = decode(model, codes)
        case = Case(name, SYSTEM)
        options = write_jukebox(case, model, layout, files)
        case.write("JukeboxVQVAE", "decode", codes, expected, options, note=note)
        if layout == "transformers":
            case.check_repeats(reload_jukebox, lambda model: decode(model, codes))

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def write_jukebox(case, model, layout, files):
    if layout == "transformers":
        transformers_layout(case.model, model, **files)
        return {}
    openai_layout(case.model, model, **files)
    return {"hps": openai_hps(model)}


# ---------------------------------------------------------------- cases of the prior


def prior_states(layer, metadata, prior=None, unseen=(), note=None):
    def attempt(name, seed):
        model = jukebox(seed, dict(res_conv_width=3, res_conv_depth=1, embed_dim=3), prior)
        labels = torch.tensor(metadata)
        codes = ids(seed, (len(metadata), model.config.prior_configs[0].n_ctx), 24, low=0)
        run = lambda model: states(model, codes, labels, layer)
        layers = [f"_attn_mods.{i}." for i in range(layer)]
        check_moves(model, run, lambda model: [
            (name, weight) for name, weight in model.priors[0].named_parameters()
            if (any(part in name for part in layers) or "_emb" in name or "embed" in name)
            and not any(part in name for part in unseen)])
        case = Case(name, SYSTEM)
        transformers_layout(case.model, model)
        inputs = {"music_tokens": codes, "metadata": labels}
        case.write("JukeboxPrior", "forward", inputs, run(model), {"layer": layer}, note=note)
        case.check_repeats(reload_jukebox, run)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def hearing(samples, depth, per_second, prior=None, vqvae=None, silence=False, note=None, **files):
    def attempt(name, seed):
        with torch.inference_mode():
            model = jukebox(seed, vqvae, prior)
            round_matrices(model)
            window = int(model.priors[0].sample_length)
            audio = torch.zeros(samples) if silence else wave(seed, samples)
            basis = wave(seed + 1, window) if silence else audio / audio.abs().max()
            set_codebooks(model, seed, torch.nn.functional.pad(basis, (0, max(0, window - len(basis))))[None, :window, None])
        expected = hear(model, audio, depth, per_second)
        case = Case(name, SYSTEM)
        openai_layout(case.model, model, **files)
        options = {"hps": openai_hps(model), "prior_depth": depth, "pool_frames_per_second": per_second}
        case.write("JukeboxVQVAE + JukeboxPrior, pooled as LLark does", "encode", {"audio": audio}, expected, options,
                   note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- cases of the language model


class Reader(torch.nn.Module):
    """Llama with a projector in front: LLark's language model."""

    def __init__(self, seed, features=24, **changes):
        super().__init__()
        fields = dict(vocab_size=54, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
                      num_key_value_heads=3, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1,
                      eos_token_id=2, pad_token_id=PAD)
        self.config = LlamaConfig(**{**fields, **changes}, attn_implementation="eager")
        self.language = LlamaForCausalLM(self.config)
        self.projector = torch.nn.Linear(features, self.config.hidden_size)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                noise = torch.randn(weight.shape, generator=random)
                if weight.dim() == 1:
                    weight.copy_(0.3 * noise + ("norm" in name))
                elif "embed" in name:
                    weight.copy_(0.5 * noise)
                else:
                    weight.copy_((2.0 if "lm_head" not in name else 1.5) * noise / weight.shape[1] ** 0.5)
        self.eval()

    def embed(self, rows, clips):
        x = self.language.model.embed_tokens(rows)
        clips = iter(self.projector(clip) for clip in clips)
        for r, row in enumerate(rows):
            for start in torch.where(row == START)[0]:
                clip = next(clips)
                assert row[start + len(clip) + 1] == END
                x[r, start + 1 : start + 1 + len(clip)] = clip
        return x

    @torch.inference_mode()
    def logits(self, rows, clips, mask=None):
        return self.language(inputs_embeds=self.embed(rows, clips), attention_mask=mask,
                             position_ids=torch.arange(rows.shape[1])[None].expand_as(rows)).logits

    @torch.inference_mode()
    def answer(self, rows, clips, options, mask=None):
        """Greedy answers; refuses near-ties and repetition."""
        made = self.language.generate(
            inputs_embeds=self.embed(rows, clips), attention_mask=torch.ones_like(rows) if mask is None else mask,
            max_new_tokens=options["max_new_tokens"], do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=PAD, eos_token_id=options.get("eos_token_id", 2))
        ends = set(as_list(options.get("eos_token_id", 2)))
        for r, row in enumerate(made.sequences.tolist()):
            real = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            if len(set(row[:real])) < min(5, real) or real < 3:
                raise Retry("a row repeats itself")
            for logits in made.logits[:real]:
                best, second = logits[r].topk(2).values
                if best - second < 5e-3:
                    raise Retry("a step is a near-tie")
        return torch.cat([rows, made.sequences], 1)


def reader_layout(folder, reader, write=write_sharded_bin):
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(reader.config.to_json_string(use_diff=False))
    config |= dict(architectures=["WrappedLlamav2ForCausalLM"], model_type="wrapped_llamav2",
                   mm_hidden_size=reader.projector.in_features, use_mm_proj=True, mm_use_audio_start_end=True)
    write_json(folder / "config.json", config)
    weights = {name: weight.clone() for name, weight in reader.language.state_dict().items()}
    weights |= {f"model.mm_projector.{name}": weight.clone() for name, weight in reader.projector.state_dict().items()}
    write(folder, weights)


TOKENS = {"audio_start_token": START, "audio_end_token": END, "audio_patch_token": PATCH}


def row_with(seed, before, frames, after):
    """Words, a clip's place, words."""
    words = ids(seed, (before + after,), 50).tolist()
    place = [] if frames is None else [START] + [PATCH] * frames + [END]
    return words[:before] + place + words[before:]


def rows_of(seed, shapes, mask):
    """Rows of (before, frames, after), padded where `mask` says."""
    rows = torch.full(mask.shape, PAD)
    for r, shape in enumerate(shapes):
        rows[r][mask[r] == 1] = torch.tensor(row_with(seed + r, *shape))
    return rows


def length(shape):
    before, frames, after = shape
    return before + after + (0 if frames is None else frames + 2)


def reading(shapes, clips, frames, features=24, write=write_sharded_bin, note=None, **changes):
    def attempt(name, seed):
        reader = Reader(seed, features, **changes)
        mask = right_padding(tuple(map(length, shapes)))
        rows = rows_of(seed, shapes, mask)
        sounds = 2 * torch.randn((clips, frames, features), generator=torch.Generator().manual_seed(seed + 5))
        run = lambda reader: {"logits": reader.logits(rows, sounds, mask)}
        check_moves(reader, run, lambda reader: reader.named_parameters())
        case = Case(name, SYSTEM)
        reader_layout(case.model, reader, write)
        inputs = {"input_ids": rows, "attention_mask": mask, "audio_encodings": sounds}
        if clips == 1:
            inputs["audio_encodings"] = sounds[0]
        if mask.all():
            inputs.pop("attention_mask")
        case.write("LlamaForCausalLM, wired as LLark", "forward", inputs, run(reader), dict(TOKENS), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def answering(shapes, frames, new, features=24, stop=False, note=None, **changes):
    def attempt(name, seed):
        reader = Reader(seed, features, **changes)
        mask = left_padding(tuple(map(length, shapes)))
        rows = rows_of(seed, shapes, mask)
        sounds = 2 * torch.randn((len(shapes), frames, features), generator=torch.Generator().manual_seed(seed + 5))
        options = dict(TOKENS, max_new_tokens=new)
        if stop:
            first = reader.answer(rows, sounds, options, mask)[:, rows.shape[1]:].tolist()
            good = [token for token in first[0][2:-2] if not all(token in row for row in first)]
            if not good:
                raise Retry("no token ends some rows and not others")
            options["eos_token_id"] = good[0]
        sequences = reader.answer(rows, sounds, options, mask)
        if (sequences[0] == reader.answer(rows, sounds * 0, options, mask)[0]).all():
            raise Retry("the sound does not matter")
        case = Case(name, SYSTEM)
        reader_layout(case.model, reader)
        inputs = {"input_ids": rows, "attention_mask": mask, "audio_encodings": sounds}
        if mask.all():
            inputs.pop("attention_mask")
        case.write("LlamaForCausalLM, wired as LLark", "generate", inputs, {"sequences": sequences}, options, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def pipeline(samples, depth, new, prior=None, vqvae=None, note=None, **files):
    """A sound, an answer."""

    def attempt(name, seed):
        with torch.inference_mode():
            model = jukebox(seed, vqvae, prior)
            round_matrices(model)
            window = int(model.priors[0].sample_length)
            audio = wave(seed, samples)
            basis = torch.nn.functional.pad(audio / audio.abs().max(), (0, max(0, window - samples)))
            set_codebooks(model, seed, basis[None, :window, None])
        heard = hear(model, audio, depth, 1)["audio_encodings"]
        reader = Reader(seed, heard.shape[1])
        prefix, suffix = ids(seed, (4,), 50), ids(seed + 1, (7,), 50)
        rows = torch.cat([prefix, torch.tensor([START] + [PATCH] * len(heard) + [END]), suffix])[None]
        options = dict(TOKENS, hps=openai_hps(model), prior_depth=depth, pool_frames_per_second=1, max_new_tokens=new)
        expected = {"audio_encodings": heard, "input_ids": rows, "logits": reader.logits(rows, [heard]),
                    "sequences": reader.answer(rows, [heard], options)}
        case = Case(name, SYSTEM)
        reader_layout(case.model, reader)
        openai_layout(case.model / "jukebox", model, **files)
        inputs = {"audio": audio, "prefix_ids": prefix, "suffix_ids": suffix}
        case.write("JukeboxVQVAE + JukeboxPrior + LlamaForCausalLM, wired as LLark", "generate", inputs, expected,
                   options, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- training

# The loss of OpenAI's vqvae/vqvae.py with its default weights (its spectral term has the weight 0); bandwidths are the
# variance and the mean norm of spectra of what is trained on, and the windows those of the sizes here.
SPECTRA = {"n_fft": [256, 128, 64], "hop_length": [30, 15, 6], "window_size": [150, 75, 30]}
VQVAE_LOSS = {"multispectral": 1.0, "commit": 0.02, "bandwidth_l2": 0.04, "bandwidth_spec": 12.0,
              **{f"multispec_{key}": value for key, value in SPECTRA.items()}}


def multispectral(made, audio, options):
    """The mean over windows of the norms of what magnitudes differ by, `(batch,)`."""
    norms = []
    for size, hop, window in zip(*(options[f"multispec_{key}"] for key in SPECTRA)):
        shapes = [torch.stft(sound.squeeze(-1), size, hop, win_length=window, return_complex=True,
                             window=torch.hann_window(window, dtype=sound.dtype)).abs() for sound in (made, audio)]
        norms.append((shapes[0] - shapes[1]).flatten(1).norm(dim=1))
    return torch.stack(norms).mean(0)


def vqvae_loss(options):
    """Over all levels, each encoded and decoded by itself: squared errors, spectra, and how far encodings lie from their
    codes, whose gradient the decoder's input takes as it is. The codebooks do not learn by gradients."""
    def loss_of(model, inputs):
        audio, codec = inputs["input_audio"], model.vqvae
        sums = dict.fromkeys(("loss_recons", "loss_multispectral", "loss_commit"), 0)
        for encoder, decoder, block in zip(codec.encoders, codec.decoders, codec.bottleneck.level_blocks):
            _, chosen, commit, _ = block(encoder(audio.permute(0, 2, 1))[-1], update_codebook=False)
            made = decoder([chosen], all_levels=False).permute(0, 2, 1)
            sums["loss_recons"] += (made - audio).square().mean() / options["bandwidth_l2"]
            sums["loss_multispectral"] += multispectral(made, audio, options).mean() / options["bandwidth_spec"]
            sums["loss_commit"] += commit
        loss = sums["loss_recons"] + options["multispectral"] * sums["loss_multispectral"]
        return {"loss": loss + options["commit"] * sums["loss_commit"]} | sums

    return loss_of


def codec_trained(samples, note=None, **vqvae):
    def attempt(name, seed):
        with torch.inference_mode():
            audio = wave(seed, 2, samples)[..., None]
        audio = audio.clone()
        model = jukebox(seed, vqvae, priors=0)
        with torch.no_grad():
            set_codebooks(model, seed, audio)
            refuse_near_ties(model, audio)
        case = Case(name, SYSTEM)
        transformers_layout(case.model, model)
        write_train_step(case, "JukeboxVQVAE, OpenAI's loss", model, vqvae_loss(VQVAE_LOSS), {"input_audio": audio},
                         ["input_audio"], reload_jukebox, VQVAE_LOSS, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def prior_loss(model, inputs):
    """The cross entropy of each code after those before it, in bits."""
    prior = model.priors[0]
    audio, song, _ = prior.get_cond(None, inputs["metadata"])
    return prior.prior(inputs["music_tokens"], audio, song)[0]


def prior_trained(metadata, prior=None, note=None):
    def attempt(name, seed):
        model = jukebox(seed, SMALL, prior)
        model.vqvae.requires_grad_(False)
        labels = torch.tensor(metadata)
        codes = ids(seed, (len(metadata), model.config.prior_configs[0].n_ctx), 24, low=0)
        case = Case(name, SYSTEM)
        transformers_layout(case.model, model)
        write_train_step(case, "JukeboxPrior", model, prior_loss, {"music_tokens": codes, "metadata": labels},
                         ["music_tokens"], reload_jukebox, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def stored_name(name):
    """The name in the file of a reader's parameter."""
    return name.replace("projector.", "model.mm_projector.") if name.startswith("projector.") else (
        name.removeprefix("language."))


def reload_reader(folder):
    weights = load_file(folder / "model.safetensors")
    projector = weights["model.mm_projector.weight"]
    reader = Reader(0, projector.shape[1])
    reader.load_state_dict({name: weights[stored_name(name)] for name in reader.state_dict()})
    return reader.eval()


def read_loss(reader, inputs):
    """The loss of the language model over the words that are labels."""
    rows, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = reader.language(inputs_embeds=reader.embed(rows, inputs["audio_encodings"]), attention_mask=mask,
                             position_ids=torch.arange(rows.shape[1])[None].expand_as(rows)).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())


def reader_inputs(seed, shapes, clips, frames):
    mask = right_padding(tuple(map(length, shapes)))
    sounds = 2 * torch.randn((clips, frames, 24), generator=torch.Generator().manual_seed(seed + 5))
    return {"input_ids": rows_of(seed, shapes, mask), "attention_mask": mask, "audio_encodings": sounds}


def reading_trained(shapes, clips, frames, note=None):
    def attempt(name, seed):
        reader = Reader(seed)
        inputs = reader_inputs(seed, shapes, clips, frames)
        labels = inputs["input_ids"].clone()
        for row, (before, heard, _) in enumerate(shapes):
            # The instruction and the place of the sound are no labels.
            labels[row, : before + (0 if heard is None else heard + 2)] = -100
        inputs["labels"] = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        case = Case(name, SYSTEM)
        reader_layout(case.model, reader, write_safetensors)
        write_train_step(case, "LlamaForCausalLM, wired as LLark", reader, read_loss, inputs, ["labels"], reload_reader,
                         TOKENS, stored_name, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


class Wired(torch.nn.Module):
    """A reader's parts by the names of the file, so that adapters are called by them."""

    def __init__(self, reader):
        super().__init__()
        self.config, self.reader = reader.config, [reader]
        self.model, self.lm_head = reader.language.model, reader.language.lm_head
        self.model.mm_projector = reader.projector

    def logits(self, inputs):
        language, reader = self.reader[0].language, self.reader[0]
        # What PEFT replaced.
        language.lm_head, reader.projector = self.lm_head, self.model.mm_projector
        return {"logits": reader.logits(inputs["input_ids"], inputs["audio_encodings"], inputs["attention_mask"])}


def reading_adapted(shapes, clips, frames, settings, note=None):
    def attempt(name, seed):
        reader = Reader(seed)
        inputs = reader_inputs(seed, shapes, clips, frames)
        case = Case(name, SYSTEM)
        reader_layout(case.model, reader, write_safetensors)
        write_adapters(case, "LlamaForCausalLM, wired as LLark", "forward", Wired(reader), [LoraConfig(**settings)],
                       lambda wired: wired.logits(inputs), inputs, lambda folder: Wired(reload_reader(folder)), seed,
                       dict(TOKENS), note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


SMALL = dict(res_conv_width=3, res_conv_depth=1, embed_dim=3)
SONG = [3600, 0, 768, 0, 0, -1, -1, -1, -1]

CASES = {
    "llark/jukebox_encode": encoding(16 * 21 + 5, batch=2, note="a rest of 5 samples has no code"),
    "llark/jukebox_encode_cycle_and_width": encoding(
        16 * 20, vqvae=dict(res_dilation_cycle=2, res_conv_depth=3, res_convolution_multiplier=2,
                            res_dilation_growth_rate=2, multipliers=[1, 2, 1]), write=write_safetensors),
    "llark/jukebox_encode_openai": encoding(
        72 * 9 + 3, layout="openai", prefix="module.",
        vqvae=dict(res_downs_t=[1, 1, 2], res_strides_t=[2, 4, 3]), note="strides of 2, 4 and 3; names with module."),
    "llark/jukebox_encode_two_levels": encoding(
        8 * 30, layout="openai", legacy=False,
        vqvae=dict(levels=2, res_downs_t=[2, 1], res_strides_t=[2, 2], multipliers=None)),
    "llark/jukebox_decode": decoding(9, batch=2),
    "llark/jukebox_decode_scaled": decoding(7, levels=(1, 2), vqvae=dict(conv_res_scale=True, res_conv_depth=3)),
    "llark/jukebox_decode_openai": decoding(
        8, layout="openai", prefix="module.", note="dilations in decoders run down",
        vqvae=dict(res_conv_depth=3, res_dilation_growth_rate=3)),
    "llark/jukebox_decode_odd_stride": decoding(
        6, layout="openai", legacy=False, vqvae=dict(res_downs_t=[1, 1, 2], res_strides_t=[4, 3, 2])),

    "llark/prior_states": prior_states(
        4, [[3600, 0, 768, 0, 0, -1, -1, -1, -1], [28799, 5000, 768, 12, 8, 3, 5, 1, 2]],
        note="two songs of their own; five genres"),
    "llark/prior_states_odd_blocks": prior_states(
        6, [[2880, 2879, 720, 4, -1, -1, -1, -1, -1]], prior=dict(n_ctx=45, blocks=5, n_heads=3, num_layers=6),
        unseen=["bow_genre"], note="blocks of 9; no genre; the window ends after the song"),
    "llark/prior_states_long_blocks": prior_states(
        3, [SONG], prior=dict(n_ctx=42, blocks=3, attention_multiplier=0.5, mlp_multiplier=2.0, num_layers=3)),
    "llark/prior_states_one_block": prior_states(
        3, [SONG], prior=dict(n_ctx=20, blocks=1, num_layers=3, act_fn="gelu"),
        unseen=["_attn_mods.2.attn.c_attn", "_attn_mods.2.attn.c_proj.weight", "_attn_mods.2.layer_norm_0"], note="no block is before the only one"),

    "llark/hear_short": hearing(401, 4, 1, note="the states of what was silence added are left out"),
    "llark/hear_long": hearing(16 * 48 + 100, 5, 1.4, note="past one window nothing is heard; all layers"),
    "llark/hear_mean": hearing(700, 2, 0, legacy=False, note="0 frames a second: one mean"),
    "llark/hear_silence": hearing(300, 3, 1, silence=True, prefix="module.", note="silence is not divided by zero"),
    "llark/hear_two_levels": hearing(
        333, 1, 2, vqvae=dict(levels=2, res_downs_t=[2, 1], res_strides_t=[2, 2], multipliers=None),
        prior=dict(n_ctx=49, blocks=7)),

    "llark/read": reading([(4, 6, 5)], clips=1, frames=6),
    "llark/read_batch": reading(
        [(3, 5, 6), (7, None, 2), (2, 5, 3)], clips=2, frames=5, num_key_value_heads=1,
        note="padded on the right; the second row has no sound and takes no clip"),
    "llark/read_whole_bin": reading([(0, 3, 1), (1, 3, 0)], clips=2, frames=3, features=10, write=write_bin,
                                    rope_theta=500.0, tie_word_embeddings=False),
    "llark/answer": answering([(3, 4, 5)], frames=4, new=12),
    "llark/answer_batch": answering([(3, 4, 5), (1, 4, 2), (4, 4, 1)], frames=4, new=12, stop=True,
                                    note="padded on the left; one row ends early"),
    "llark/pipeline": pipeline(16 * 33 + 9, 4, 12),
    "llark/pipeline_long": pipeline(16 * 60, 3, 8, prior=dict(n_ctx=45, blocks=5), prefix="module.", legacy=False),

    "llark/train_step": reading_trained([(3, 5, 6), (7, None, 3), (2, 5, 3)], clips=2, frames=5,
                                        note="words after the sound are labels"),
    "llark/train_step_jukebox_prior": prior_trained(
        [[3600, 0, 768, 0, 0, -1, -1, -1, -1], [28799, 5000, 768, 12, 8, 3, 5, 1, 2]],
        prior=dict(num_layers=3, n_ctx=30, blocks=5), note="cross entropy in bits"),
    "llark/train_step_jukebox_vqvae": codec_trained(
        16 * 20, levels=2, res_downs_t=[2, 1], res_strides_t=[2, 2], multipliers=None, res_conv_depth=1,
        note="codebooks as they are; the term of one spectrum, of weight 0, is left out"),
    "llark/adapter_linear": reading_adapted(
        [(3, 5, 6), (7, None, 2), (2, 5, 3)], 2, 5, dict(r=2, lora_alpha=3, target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "mm_projector"])),
    "llark/adapter_projector_saved": reading_adapted(
        [(2, 5, 4), (4, 5, 1)], 2, 5, dict(r=3, lora_alpha=3, use_dora=True, target_modules=["q_proj", "v_proj"],
                                           modules_to_save=["mm_projector", "lm_head"]),
        note="the projector and the head are saved whole"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
