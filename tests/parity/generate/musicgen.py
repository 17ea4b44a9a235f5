"""Parity cases of MusicGen: every layout of a release, mono, stereo and melody, forward passes and generation."""

import math
import sys
import types

import torch
from peft import LoraConfig
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyFeatureExtractor,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

from common import (
    Case,
    Retry,
    distance,
    first_good,
    ids,
    is_embedding,
    read_weights,
    reload_as,
    right_padding,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_safetensors,
    write_sharded_bin,
    write_sharded_safetensors,
)
from training import model_loss, write_adapters, write_train_step

TEXT, CODES, SPECIAL = 61, 29, 29
MARGIN = 2e-3


def config(melody=False, stereo=False, text_width=18, width=24, num_chroma=7, gated=False, **decoder):
    """Odd sizes on purpose: three layers, three heads of 8, ratios 3 and 2, codebooks that fill no power of two."""
    text = T5Config(vocab_size=TEXT, d_model=text_width, d_kv=5, d_ff=26, num_layers=2, num_heads=3,
                    relative_attention_num_buckets=10, relative_attention_max_distance=16,
                    feed_forward_proj="gated-gelu" if gated else "relu")
    codec = EncodecConfig(sampling_rate=600, audio_channels=1, target_bandwidths=[2.0], upsampling_ratios=[3, 2],
                          num_filters=2, hidden_size=10, codebook_dim=10, codebook_size=32, kernel_size=7,
                          use_causal_conv=False, norm_type="weight_norm", normalize=False,
                          use_conv_shortcut=False, chunk_length_s=None, overlap=None)
    fields = dict(vocab_size=CODES, hidden_size=width, num_hidden_layers=3, num_attention_heads=3, ffn_dim=40,
                  num_codebooks=8 if stereo else 4, audio_channels=2 if stereo else 1,
                  max_position_embeddings=32, pad_token_id=SPECIAL, bos_token_id=SPECIAL) | decoder
    parts = dict(text_encoder=text.to_dict(), audio_encoder=codec.to_dict())
    if melody:
        return MusicgenMelodyConfig(decoder=MusicgenMelodyDecoderConfig(**fields).to_dict(),
                                    num_chroma=num_chroma, chroma_length=9, **parts)
    return MusicgenConfig(decoder=MusicgenDecoderConfig(**fields).to_dict(), **parts)


def build(cfg, seed):
    """The reference with random weights that keep the activations of all three networks near one."""
    melody = isinstance(cfg, MusicgenMelodyConfig)
    model = (MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration)(cfg)
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in list(model.named_parameters()) + list(model.named_buffers()):
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("embed_positions.weights") or not weight.is_floating_point():
                continue
            if name.endswith("original0") or name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * noise)
            elif "codebook" in name:
                # The buffers of training are there and must not be read.
                weight.copy_(noise if name.endswith("embed") else noise.abs() + 1)
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif "decoder.embed_tokens" in name:
                # Strong enough that the codes, and not the text alone, decide what follows.
                weight.copy_(2.5 * noise)
            elif is_embedding(name):
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(1.3 * noise / weight[0].numel() ** 0.5)
        for layer in model.audio_encoder.quantizer.layers:
            # Only the codes the language model knows may come out of the codec.
            layer.codebook.embed[CODES:] = 1e3
    # What a release says of generation; the cases ask for the likeliest codes.
    model.generation_config.update(bos_token_id=SPECIAL, decoder_start_token_id=SPECIAL, pad_token_id=SPECIAL,
                                   do_sample=True, guidance_scale=3.0, max_length=1500)
    return model.eval()


# ---------------------------------------------------------------- layouts


def old_names(weights):
    """What the uploads of 2023 hold: the older weight norm, a table of positions, copies of the words."""
    def old(name):
        return name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v")

    width = weights["decoder.model.decoder.layer_norm.weight"].shape[0]
    extra = {
        "decoder.model.decoder.embed_positions.weights": torch.full((32, width), 7.0),
        "text_encoder.encoder.embed_tokens.weight": weights["text_encoder.shared.weight"].clone(),
    }
    return {old(name): weight for name, weight in weights.items()} | extra


def write_old_bin(folder, weights):
    write_bin(folder, old_names(weights))


# ---------------------------------------------------------------- the original release

LANGUAGE_MODEL = [
    ("enc_to_dec_proj", "condition_provider.conditioners.description.output_proj"),
    ("audio_enc_to_dec_proj", "condition_provider.conditioners.self_wav.output_proj"),
    ("decoder.model.decoder.embed_tokens", "emb"),
    ("decoder.lm_heads", "linears"),
    ("decoder.model.decoder.layer_norm", "out_norm"),
    ("decoder.model.decoder.layers", "transformer.layers"),
]
LAYER = [
    ("encoder_attn_layer_norm", "norm_cross"),
    ("self_attn_layer_norm", "norm1"),
    ("final_layer_norm", "norm2"),
    ("encoder_attn", "cross_attention"),
    ("fc1", "linear1"),
    ("fc2", "linear2"),
]


def original_name(name):
    """Which of the three parts holds a tensor of the reference, under which name, and which third of it."""
    part, _, rest = name.partition(".")
    if part == "text_encoder":
        return "text", rest, None
    if part == "audio_encoder":
        rest = rest.replace("parametrizations.weight.original0", "weight_g")
        rest = rest.replace("parametrizations.weight.original1", "weight_v")
        rest = rest.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
        # With two ratios the decoder's layers 3 and 6 are the transposed ones.
        transposed = rest.startswith(("decoder.layers.3.", "decoder.layers.6."))
        wrapped = ".convtr.convtr." if transposed else ".conv.conv."
        return "codec", rest.replace(".conv.", wrapped).replace("coder.layers", "coder.model"), None
    for ours, original in LANGUAGE_MODEL:
        if name.startswith(ours + "."):
            name = original + name.removeprefix(ours)
            break
    for ours, original in LAYER:
        name = name.replace(f".{ours}.", f".{original}.")
    for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        if f".{projection}." in name:
            return "lm", name.replace(f"{projection}.weight", "in_proj_weight"), third
    return "lm", name, None


def settings(cfg):
    """What of the training's settings a reader needs, among others of the same names."""
    stereo = cfg.decoder.audio_channels == 2
    return f"""device: cuda
num_heads: 99
sample_rate: {cfg.audio_encoder.sampling_rate}
channels: {cfg.decoder.audio_channels}
interleave_stereo_codebooks:
  use: {str(stereo).lower()}
conditioners:
  description:
    model: t5
    t5:
      name: t5-base
      finetune: false
  self_wav:
    model: chroma_stem
    chroma_stem:
      chroma_length: {getattr(cfg, "chroma_length", 235)}
transformer_lm:
  dim: {cfg.decoder.hidden_size}
  num_heads: {cfg.decoder.num_attention_heads}
  num_layers: {cfg.decoder.num_hidden_layers}
seanet:
  causal: false
"""


def write_original(folder, model):
    """The files of the original release, and T5 in a folder called as its repository."""
    parts, stacked = {"text": {}, "codec": {}, "lm": {}}, {}
    for name, weight in weights_of(model).items():
        part, original, third = original_name(name)
        if third is None:
            parts[part][original] = weight
        else:
            stacked.setdefault(original, [None] * 3)[third] = weight
    parts["lm"] |= {name: torch.cat(thirds) for name, thirds in stacked.items()}
    yaml = settings(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"best_state": parts["lm"], "xp.cfg": yaml, "version": "1.3.0"}, folder / "state_dict.bin")
    torch.save({"best_state": parts["codec"], "xp.cfg": yaml}, folder / "compression_state_dict.bin")
    write_config(folder / "t5-base", model.config.text_encoder, ["T5EncoderModel"])
    write_safetensors(folder / "t5-base", parts["text"])


def reload_original(cfg):
    """A loader for `check_repeats` that undoes the names."""
    def load(folder):
        parts = {
            "lm": torch.load(folder / "state_dict.bin", weights_only=True)["best_state"],
            "codec": torch.load(folder / "compression_state_dict.bin", weights_only=True)["best_state"],
            "text": read_weights(folder / "t5-base"),
        }
        model = build(cfg, 0)
        state = {}
        for name in weights_of(model):
            part, original, third = original_name(name)
            weight = parts[part][original]
            state[name] = weight if third is None else weight.chunk(3)[third]
        missing, strangers = model.load_state_dict(state, strict=False)
        if strangers or set(missing) - {"text_encoder.encoder.embed_tokens.weight"}:
            raise RuntimeError(f"{folder}: {missing} {strangers}")
        return model

    return load


# ---------------------------------------------------------------- answers


@torch.inference_mode()
def forward(model, inputs):
    out = model(**inputs)
    named = {"logits": out.logits.float().contiguous()}
    if isinstance(model, MusicgenMelodyForConditionalGeneration):
        named["encoder_hidden_states"] = out.encoder_hidden_states.float().contiguous()
    else:
        named["encoder_last_hidden_state"] = out.encoder_last_hidden_state.float().contiguous()
    return named


@torch.inference_mode()
def generate(model, inputs, unconditional=False, num_samples=1, **options):
    """The likeliest codes and their sound; refuses an answer that rests on a near-tie."""
    seen = {}
    prepare = getattr(model, "_prepare_audio_encoder_kwargs_for_generation", None)

    def remember(self, *args, **kwargs):
        kwargs = prepare(*args, **kwargs)
        codes = kwargs["decoder_input_ids"]
        seen["prompt_codes"] = codes.reshape(1, -1, self.decoder.num_codebooks, codes.shape[-1]).clone()
        return kwargs

    def forget_delays(codes, mask):
        codes = type(model.decoder).apply_delay_pattern_mask(codes, mask)
        seen["codes"] = codes
        return codes

    model.decoder.apply_delay_pattern_mask = forget_delays
    if prepare:
        model._prepare_audio_encoder_kwargs_for_generation = types.MethodType(remember, model)
    if unconditional:
        inputs = dict(model.get_unconditional_inputs(num_samples=num_samples).__dict__)
    out = model.generate(**inputs, **options, do_sample=False, output_scores=True, return_dict_in_generate=True)
    for scores in out.scores:
        best, second = scores.float().topk(2).values.T
        if (best - second).min() < MARGIN:
            raise Retry("a step is a near-tie")
    codes, books = seen.pop("codes"), model.decoder.num_codebooks
    codes = codes[codes != SPECIAL].reshape(1, -1, books, codes[0][codes[0] != SPECIAL].numel())
    if any(len(set(row.tolist())) < min(4, row.numel() // 2) for row in codes.reshape(-1, codes.shape[-1])):
        raise Retry("a codebook repeats itself")
    return {"audio_codes": codes.clone(), "audio_values": out.sequences.float().contiguous()} | seen


def check_weights_matter(model, run, parts):
    """Changes one parameter of the named parts at a time and asks that the answer moves."""
    expected = run(model)
    for name, weight in model.named_parameters():
        if not name.startswith(parts):
            continue
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(kept.flip(0) * 2 + 0.5)
        moved = distance(expected, run(model))
        with torch.no_grad():
            weight.copy_(kept)
        if moved < 10:
            raise Retry(f"{name} moves the answer by {moved:.1f} tolerances only")


# ---------------------------------------------------------------- cases


def texts(seed, mask=True, lengths=(7, 4)):
    real = right_padding(lengths)
    words = ids(seed, real.shape, TEXT) * real
    return {"input_ids": words, "attention_mask": real} if mask else {"input_ids": words[:1]}


def chroma(seed, rows, frames, bins=7):
    """One-hot rows, as the feature extractor gives them."""
    random = torch.Generator().manual_seed(seed + 5)
    picked = torch.randint(0, bins, (rows, frames), generator=random)
    return torch.nn.functional.one_hot(picked, bins).float()


def sound(seed, rows, channels, samples):
    random = torch.Generator().manual_seed(seed + 9)
    time = torch.arange(samples) / 600
    tone = torch.sin(2 * math.pi * 40 * time)
    return 0.5 * tone + 0.3 * torch.randn(rows, channels, samples, generator=random)


def left_padded(values, padding):
    """The padding of the reference's processor: on the left, one count a row."""
    mask = torch.ones(values.shape[0], values.shape[-1], dtype=torch.long)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return {"input_values": values * mask[:, None], "padding_mask": mask}


def save(case, model, write):
    if write is write_original:
        return write_original(case.model, model)
    architecture = type(model).__name__
    write_config(case.model, model.config, [architecture])
    model.generation_config.save_pretrained(case.model)
    write(case.model, weights_of(model))


def reload(cfg, write):
    if write is write_original:
        return reload_original(cfg)
    melody = isinstance(cfg, MusicgenMelodyConfig)
    return reload_as(MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration)


ALL = ("decoder.", "text_encoder.", "enc_to_dec_proj.", "audio_enc_to_dec_proj.")


def one_pass(cfg, inputs, write=write_safetensors, parts=ALL, note=None):
    """A case of a forward pass; `inputs(seed)` gives its tensors."""
    def make(name):
        def attempt(seed):
            model, tensors = build(cfg, seed), inputs(seed)
            run = lambda model: forward(model, tensors)
            check_weights_matter(model, run, parts)
            return model, tensors, run

        model, tensors, run = first_good(name, attempt)
        case = Case(name, "MusicGen")
        save(case, model, write)
        case.write(type(model).__name__, "forward", tensors, run(model), note=note)
        case.check_repeats(reload(cfg, write), run)

    return make


def music(cfg, inputs, options, write=write_safetensors, note=None):
    """A case of generation."""
    def make(name):
        def attempt(seed):
            model, tensors = build(cfg, seed), inputs(seed)
            answer = generate(model, tensors, **options)
            # What the encoder of the codec picked must not hang on rounding.
            if "input_values" in tensors:
                shaken = tensors | {"input_values": tensors["input_values"] * (1 + 1e-4)}
                if not torch.equal(answer["prompt_codes"], generate(model, shaken, **options)["prompt_codes"]):
                    raise Retry("a code of the prompt is a near-tie")
            return model, tensors, answer

        model, tensors, answer = first_good(name, attempt)
        case = Case(name, "MusicGen")
        save(case, model, write)
        case.write(type(model).__name__, "generate", tensors, answer, options=options, note=note)
        case.check_repeats(reload(cfg, write), lambda model: generate(model, tensors, **options))

    return make


def features(shape, rate=4000, note=None, **changes):
    """A case of the melody's features: the folder holds their settings alone."""
    def run(extractor, audio):
        made = extractor(audio, sampling_rate=rate, return_tensors="pt").input_features
        return {"input_features": made.float().contiguous()}

    def make(name):
        extractor = MusicgenMelodyFeatureExtractor(
            sampling_rate=4000, n_fft=512, hop_length=128, chunk_length=1, **changes)

        def attempt(seed):
            random = torch.Generator().manual_seed(seed)
            time = torch.arange(shape[-1]) / rate
            audio = torch.zeros(shape)
            for voice in range(4):
                hz = 110 * 2 ** (torch.randint(0, 36, shape[:-1], generator=random) / 12)
                since = torch.rand(shape[:-1], generator=random) * time[-1]
                audio += torch.sin(2 * math.pi * hz[..., None] * time) * (time > since[..., None])
            quieter = run(extractor, audio + 1e-4 * torch.randn(shape, generator=random))
            answer = run(extractor, audio)
            if not torch.equal(answer["input_features"], quieter["input_features"]):
                raise Retry("a frame is a near-tie")
            if (answer["input_features"].sum((0, 1)) > 0).sum() < 4:
                raise Retry("hardly a melody")
            return audio, answer

        audio, answer = first_good(name, attempt)
        case = Case(name, "MusicGen")
        case.model.mkdir(parents=True)
        extractor.save_pretrained(case.model)
        case.write("MusicgenMelodyFeatureExtractor", "encode", {"audio": audio}, answer,
                   options={"sampling_rate": rate}, note=note)
        case.check_repeats(MusicgenMelodyFeatureExtractor.from_pretrained,
                           lambda extractor: run(extractor, audio))

    return make


def codes(seed, rows, books, time):
    return {"decoder_input_ids": ids(seed + 3, (rows * books, time), SPECIAL + 1, low=0)}


def guided(new, scale=3.0):
    return {"guidance_scale": scale, "max_new_tokens": new}


def delayed(model, seed, lengths, books):
    """Rows of random codes of these lengths, each codebook one step later than the one before: what the decoder reads,
    `(row * codebook, time)`, and what it must say at the same place, `(row, time, codebook)`.

    The special code stands where a codebook has none yet or no more; there it is no label.
    """
    time = max(lengths) + books
    said = torch.full((len(lengths), time, books), SPECIAL)
    for row, length in enumerate(lengths):
        for book in range(books):
            said[row, book : book + length, book] = ids(seed + 7 * row + book, (length,), CODES, low=0)
    read = torch.cat([torch.full_like(said[:, :1], SPECIAL), said[:, :-1]], 1)
    return {"decoder_input_ids": read.transpose(1, 2).reshape(-1, time), "labels": said}


def trained(cfg, inputs, note=None):
    """A step on the loss of the class: the cross entropy of each codebook over the codes that it has, and their mean."""
    def make(name):
        def attempt(seed):
            model = build(cfg, seed)
            # The codec and its codes are made before training.
            model.audio_encoder.requires_grad_(False)
            case = Case(name, "MusicGen")
            save(case, model, write_safetensors)
            write_train_step(case, type(model).__name__, model, model_loss,
                             inputs(seed) | delayed(model, seed, (6, 4), cfg.decoder.num_codebooks), ["labels"],
                             reload(cfg, write_safetensors), note=note)

        first_good(name, attempt)

    return make


def with_adapters(cfg, configs, inputs, scales=None, unseen=(), safe=True, note=None):
    """A forward pass with adapters."""
    def make(name):
        def attempt(seed):
            model, tensors = build(cfg, seed), inputs(seed)
            case = Case(name, "MusicGen")
            save(case, model, write_safetensors)
            write_adapters(case, type(model).__name__, "forward", model, [LoraConfig(**one) for one in configs],
                           lambda model: forward(model, tensors), tensors, reload(cfg, write_safetensors), seed,
                           scales=scales, safe=safe, unseen=unseen, note=note)

        first_good(name, attempt)

    return make


MONO, STEREO = config(), config(stereo=True)
SMALL, SMALL_MELODY = config(num_hidden_layers=2), config(melody=True, num_hidden_layers=2)
MELODY, STEREO_MELODY = config(melody=True), config(melody=True, stereo=True)

CASES = {
    "musicgen/forward_mono": one_pass(config(gated=True), lambda s: texts(s) | codes(s, 2, 4, 9)),
    "musicgen/forward_no_mask_old_bin": one_pass(
        MONO, lambda s: texts(s, mask=False) | codes(s, 1, 4, 6), write=write_old_bin,
        note="weight_g and weight_v, a stored table of positions, a copy of the words: none of them read but the norms"),
    "musicgen/forward_stereo_sharded": one_pass(
        STEREO, lambda s: texts(s) | codes(s, 2, 8, 5), write=write_sharded_safetensors),
    "musicgen/forward_no_projection": one_pass(
        config(text_width=24), lambda s: texts(s) | codes(s, 2, 4, 5), parts=ALL[:2],
        note="the text is as wide as the decoder, so nothing projects it"),
    "musicgen/forward_past_positions": one_pass(
        config(max_position_embeddings=4, activation_function="relu"),
        lambda s: texts(s) | codes(s, 2, 4, 7), write=write_sharded_bin,
        note="more columns than max_position_embeddings: positions are computed"),
    "musicgen/forward_melody": one_pass(
        MELODY, lambda s: texts(s) | codes(s, 2, 4, 6) | {"input_features": chroma(s, 2, 5)}),
    "musicgen/forward_melody_long": one_pass(
        config(melody=True, num_chroma=24), lambda s: texts(s) | codes(s, 2, 4, 6)
        | {"input_features": chroma(s, 2, 12, bins=24)},
        note="a melody longer than chroma_length is cut; as wide as the decoder, it is not projected"),
    "musicgen/forward_melody_without_melody": one_pass(MELODY, lambda s: texts(s) | codes(s, 2, 4, 6)),
    "musicgen/forward_melody_without_text": one_pass(
        MELODY, lambda s: codes(s, 2, 4, 6) | {"input_features": chroma(s, 2, 5)}, parts=("decoder.",)),
    "musicgen/generate_mono_guided": music(MONO, texts, guided(15)),
    "musicgen/generate_mono_bin": music(MONO, texts, guided(12, 1.0), write=write_old_bin),
    "musicgen/generate_stereo_guided": music(STEREO, texts, guided(11, 2.5)),
    "musicgen/generate_unconditional": music(
        MONO, lambda s: {}, {"unconditional": True, "num_samples": 2, "max_new_tokens": 10}),
    "musicgen/generate_undelayed": music(
        MONO, texts, guided(5), note="too few columns for a ramp at both ends: nothing is delayed"),
    "musicgen/continue_mono_guided": music(
        MONO, lambda s: texts(s) | left_padded(sound(s, 2, 1, 40), (0, 13)), guided(9)),
    "musicgen/continue_stereo_guided": music(
        STEREO, lambda s: texts(s) | left_padded(sound(s, 2, 2, 31), (7, 0)), guided(8)),
    "musicgen/original_mono": music(MONO, texts, guided(10), write=write_original,
                                    note="the original release: no config, q, k and v in one, T5 beside it"),
    "musicgen/original_stereo": one_pass(STEREO, lambda s: texts(s) | codes(s, 2, 8, 5), write=write_original),
    "musicgen/original_melody": music(
        config(melody=True, num_chroma=12), lambda s: texts(s) | {"input_features": chroma(s, 2, 4, bins=12)},
        guided(10), write=write_original),
    "musicgen/melody_guided": music(
        MELODY, lambda s: texts(s) | {"input_features": chroma(s, 2, 4)}, guided(12)),
    "musicgen/melody_unguided_long": music(
        MELODY, lambda s: texts(s) | {"input_features": chroma(s, 2, 11)}, guided(9, 1.0)),
    "musicgen/melody_without_melody": music(MELODY, texts, guided(10)),
    "musicgen/features_mono": features((2, 3000)),
    "musicgen/features_cut": features((1, 5000), note="longer than chunk_length, so cut"),
    "musicgen/features_stereo_resampled": features((2, 2, 2500), rate=6000),
    "musicgen/features_stems_resampled": features(
        (1, 4, 2, 2500), rate=6000, stem_indices=[3, 1], note="as Demucs separates it"),
    "musicgen/melody_stereo_guided": music(
        STEREO_MELODY, lambda s: texts(s) | {"input_features": chroma(s, 2, 3)}, guided(9)),
    "musicgen/train_step": trained(
        SMALL, texts, note="the special code is no label; the text's network is trained along, the codec is not"),
    "musicgen/train_step_melody": trained(SMALL_MELODY, lambda s: texts(s) | {"input_features": chroma(s, 2, 5)}),
    "musicgen/adapter_embeddings_and_heads": with_adapters(
        SMALL, [dict(r=3, lora_alpha=5, target_modules=[
            "enc_to_dec_proj", "decoder.layers.0.self_attn.q_proj", "v_proj", "fc1", "lm_heads.1", "lm_heads.3",
            "embed_tokens.0", "embed_tokens.2"])],
        lambda s: texts(s) | codes(s, 2, 4, 6), note="tables of codes among the adapted"),
    "musicgen/adapter_melody_bin": with_adapters(
        SMALL_MELODY, [dict(r=2, lora_alpha=3, use_dora=True, modules_to_save=["audio_enc_to_dec_proj"],
                            target_modules=r"decoder\.model\.decoder\.layers\.\d\.(self_attn\.\w+|fc2)")],
        lambda s: texts(s) | codes(s, 2, 4, 6) | {"input_features": chroma(s, 2, 5)}, safe=False),
    "musicgen/adapter_text_encoder": with_adapters(
        SMALL, [dict(r=2, lora_alpha=5, modules_to_save=["enc_to_dec_proj"], target_modules=[
            "text_encoder.encoder.block.0.layer.0.SelfAttention.q", "SelfAttention.v", "wi", "wo"])],
        lambda s: texts(s) | codes(s, 2, 4, 6), note="the text encoder's layers"),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
