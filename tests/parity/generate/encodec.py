"""Parity cases of EnCodec: every padding, norm and window, both weight norms, the original releases' names."""

import sys

import torch
import torchaudio
from peft import LoraConfig
from torch.nn.functional import l1_loss, mse_loss, pad
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import EncodecConfig, EncodecModel

from common import (
    Case,
    Retry,
    check_every_weight_matters,
    check_options_matter,
    first_good,
    read_weights,
    reload_as,
    randomise,
    run_all,
    weights_of,
    write_bin,
    write_config,
    write_safetensors,
)
from training import write_adapters, write_train_step

# The second-best entry of a codebook must be farther than the best by this part of the distance, so that no rounding
# of another program picks it.
MARGIN = 5e-4

SMALL = dict(sampling_rate=600, target_bandwidths=[0.4, 0.8, 1.6], num_filters=3, hidden_size=10, codebook_dim=10,
             codebook_size=16, upsampling_ratios=[3, 2])

# What the official codecs differ in.
AT_24_KHZ = dict()
AT_32_KHZ = dict(use_causal_conv=False, use_conv_shortcut=False, target_bandwidths=[1.6], upsampling_ratios=[5, 3],
                 sampling_rate=1500)
AT_48_KHZ = dict(use_causal_conv=False, norm_type="time_group_norm", normalize=True, audio_channels=2,
                 chunk_length_s=0.1, overlap=0.1, num_filters=4)


def build(seed, changes):
    """A codec whose weights and codebooks are random, the codebooks finer from one to the next."""
    model = randomise(EncodecModel(EncodecConfig(**{**SMALL, **changes})), seed)
    random = torch.Generator().manual_seed(seed + 1)
    for number, layer in enumerate(model.quantizer.layers):
        book = layer.codebook
        book.embed.copy_(torch.randn(book.embed.shape, generator=random) * 0.8**number)
        book.embed_avg.copy_(torch.randn(book.embed.shape, generator=random))
        book.cluster_size.copy_(torch.rand(book.cluster_size.shape, generator=random) + 0.5)
    return model


def sound(model, seed, batch, samples):
    """Noise and a tone, louder at the end, one row softer than the other."""
    random = torch.Generator().manual_seed(seed + 2)
    noise = torch.randn(batch, model.config.audio_channels, samples, generator=random)
    time = torch.arange(samples) / max(samples, 2)
    rows = torch.linspace(1, 0.3, batch)[:, None, None]
    return (0.5 * noise + torch.sin(40 * time) + 0.3 * time) * rows


def mask(batch, samples, channels):
    """The last samples of the later rows are padding."""
    real = samples - samples * torch.arange(batch) // (3 * batch)
    return (torch.arange(samples) < real[:, None]).long()[:, None].expand(batch, channels, samples)


# ---------------------------------------------------------------- the reference's answer


def codes(encoded):
    fields = {"audio_codes": encoded.audio_codes,
              "last_frame_pad_length": torch.tensor([encoded.last_frame_pad_length])}
    if encoded.audio_scales[0] is not None:
        fields["audio_scales"] = torch.stack(encoded.audio_scales)
    return fields


@torch.inference_mode()
def answer(model, call, inputs, options):
    options = {key: value for key, value in options.items() if key != "weights"}
    if call == "encode":
        return codes(model.encode(**inputs, **options))
    if call == "forward":
        made = model(**inputs, **options)
        return {"audio_codes": made.audio_codes, "audio_values": made.audio_values}
    scales = inputs.get("audio_scales", [None] * len(inputs["audio_codes"]))
    return {"audio_values": model.decode(**{**inputs, "audio_scales": scales}, **options).audio_values}


@torch.inference_mode()
def check_margins(model, inputs, bandwidth):
    """Refuses a sound of which some code is nearly another."""
    gaps = []

    def watch(book, states):
        distances = torch.cdist(states.reshape(-1, states.shape[-1]).double(), book.embed.double()) ** 2
        best, second = distances.topk(2, largest=False).values.T
        gaps.append(((second - best) / second).min().item())

    books = [layer.codebook for layer in model.quantizer.layers]
    plain = [book.encode for book in books]
    for book, encode in zip(books, plain):
        book.encode = lambda states, book=book, encode=encode: (watch(book, states), encode(states))[1]
    model.encode(**inputs, bandwidth=bandwidth)
    for book in books:
        del book.encode
    if min(gaps) < MARGIN:
        raise Retry("a code is nearly another")


# ---------------------------------------------------------------- checkpoint folders


def plain(name):
    return name


def weight_g(name):
    """The weight norm of uploads before torch 2."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v")


def original(name):
    """The names of the original releases and of audiocraft."""
    name = weight_g(name).replace(".layers.", ".model.", 1) if not name.startswith("quantizer") else name
    if name.startswith("quantizer"):
        return name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
    if "lstm" in name:
        return name
    path, _, last = name.rpartition(".")
    upsampling = path.startswith("decoder.model.") and path.split(".")[2] in TRANSPOSED and path.count(".") == 3
    conv = "convtr" if upsampling else "conv"
    if path.endswith(".conv"):
        return f"{path.removesuffix('.conv')}.{conv}.{conv}.{last}"
    return f"{path.removesuffix('.norm')}.{conv}.norm.{last}"


# Where the decoder of two ratios has its transposed convolutions.
TRANSPOSED = ("3", "6")


def write_th(file):
    return lambda folder, weights: torch.save(weights, folder / file)


def padding_buffers(model):
    """The paddings that saves of 2023 hold."""
    return {f"{name}.{buffer}": value for name, module in model.named_modules()
            for buffer in ("stride", "kernel_size", "padding_total")
            if isinstance(value := module._buffers.get(buffer), torch.Tensor)}


def reload(rename, file):
    """A loader for `check_repeats`, whatever the tensors are called."""
    if rename is plain:
        return reload_as(EncodecModel)

    def load(folder):
        model = EncodecModel(EncodecConfig.from_pretrained(folder))
        stored = torch.load(folder / file, weights_only=True) if file else read_weights(folder)
        names = model.state_dict()
        model.load_state_dict({name: stored[rename(name)] for name in names})
        assert {rename(name) for name in names} <= set(stored)
        return model.eval()

    return load


# ---------------------------------------------------------------- cases


# A memory of one step remembers nothing.
ONE_STEP = ("weight_hh_l0", "weight_hh_l1")


def coded(call, base, samples=100, batch=2, channels=None, bandwidth=None, masked=None, write=write_safetensors,
          rename=plain, file=None, buffers=False, others=(), unseen=(), note=None, **changes):
    """Sound to codes, or to codes and back."""

    def attempt(name, seed):
        model = build(seed, {**base, **changes})
        inputs = {"input_values": sound(model, seed, batch, samples)}
        if masked:
            real = mask(batch, samples, model.config.audio_channels if masked == "channels" else 1)
            inputs["padding_mask"] = real[:, 0] if masked == "flat" else real
        options = {} if bandwidth is None else {"bandwidth": bandwidth}
        check_margins(model, inputs, bandwidth)
        run = lambda network: answer(network, call, inputs, options)
        for part in [model.encoder] + ([model.decoder] if call == "forward" else []):
            check_every_weight_matters(part, lambda _: run(model), unseen)
        check_options_matter(model, run, others)
        finish(name, model, call, inputs, run, options, write, rename, file, buffers, note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def decoded(base, windows=1, frames=9, batch=2, quantizers=None, cut=0, scaled=True, write=write_safetensors,
            rename=plain, file=None, buffers=False, others=(), unseen=(), note=None, **changes):
    """Codes to sound."""

    def attempt(name, seed):
        model = build(seed, {**base, **changes})
        random = torch.Generator().manual_seed(seed + 3)
        shape = (windows, batch, quantizers or model.config.num_quantizers, frames)
        inputs = {"audio_codes": torch.randint(model.config.codebook_size, shape, generator=random)}
        if model.config.normalize and scaled:
            inputs["audio_scales"] = torch.rand(windows, batch, 1, generator=random) + 0.2
        options = {"last_frame_pad_length": cut} if cut else {}
        run = lambda network: answer(network, "decode", inputs, options)
        check_every_weight_matters(model.decoder, lambda _: run(model), unseen)
        check_options_matter(model, run, others)
        finish(name, model, "decode", inputs, run, options, write, rename, file, buffers, note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


def finish(name, model, call, inputs, run, options, write, rename, file, buffers, note):
    case = Case(name, "EnCodec")
    write_config(case.model, model.config, ["EncodecModel"])
    weights = {rename(key): weight for key, weight in weights_of(model).items()}
    write(case.model, weights | (padding_buffers(model) if buffers else {}))
    if file:
        options = options | {"weights": file}
    case.write("EncodecModel", call, inputs, run(model), options, note=note)
    case.check_repeats(reload(rename, file), run)


# ---------------------------------------------------------------- training

# The terms of the generator's loss (Defossez et al. 2022, High Fidelity Neural Audio Compression, 3.4) that need no
# discriminator, in the reductions of audiocraft: losses/specloss.py and quantization/core_vq.py.
LOSS = {"lambda_time": 0.1, "lambda_mel": 1.0, "lambda_commitment": 0.5,
        "mel_windows": [32, 64, 128, 256, 512, 1024, 2048], "mel_bins": 64, "mel_low": 20.0, "mel_floor": 1e-5}


def mel_spectrogram(samples, window, options, rate):
    """The power in mel bands of frames a quarter window apart, the window normalized, `(batch, channel, band, frame)`.

    Three eighths of a window of mirrored samples lie before and behind, and zeros that fill the last frame.
    """
    hop = window // 4
    samples = pad(samples, ((window - hop) // 2,) * 2, "reflect")
    samples = pad(samples, (0, -(samples.shape[-1] - window) % hop))
    mel = torchaudio.transforms.MelSpectrogram(
        rate, n_fft=window, hop_length=hop, f_min=options["mel_low"], n_mels=options["mel_bins"], normalized=True,
        center=False)
    return mel.to(samples.dtype)(samples)


def mel_loss(made, samples, options, rate):
    """Over all windows the mean of the mean distance of powers and the mean squared distance of their logarithms."""
    terms = []
    for window in options["mel_windows"]:
        powers = [mel_spectrogram(sound, window, options, rate) for sound in (made, samples)]
        logs = [torch.log10(options["mel_floor"] + power) for power in powers]
        terms += [l1_loss(*powers), mse_loss(*logs)]
    return torch.stack(terms).mean()


def quantize(model, states, bandwidth):
    """The sum of the chosen entries, whose gradient goes to `states` as it is; and the mean over codebooks of the mean
    squared distance of what was left to the entry chosen for it, which moves the encoder alone."""
    left, total, distances = states, torch.zeros_like(states), []
    for layer in model.quantizer.layers[: model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)]:
        entry = layer.decode(layer.encode(left)).detach()
        distances.append(mse_loss(left, entry))
        left, total = left - entry, total + entry
    return states + (total - states).detach(), torch.stack(distances).mean()


def reconstruction(options):
    def loss_of(model, inputs):
        samples = inputs["input_values"]
        states, commitment = quantize(model, model.encoder(samples), options["bandwidth"])
        made = model.decoder(states)[..., : samples.shape[-1]]
        time, mel = l1_loss(made, samples), mel_loss(made, samples, options, model.config.sampling_rate)
        loss = (options["lambda_time"] * time + options["lambda_mel"] * mel
                + options["lambda_commitment"] * commitment)
        return {"loss": loss, "loss_time": time, "loss_mel": mel, "loss_commitment": commitment}

    return loss_of


def trained(base, bandwidth, samples=792, note=None, **changes):
    def attempt(name, seed):
        model = build(seed, {**base, "num_filters": 4, **changes})
        inputs = {"input_values": 0.4 * sound(model, seed, 2, samples)}
        check_margins(model, inputs, bandwidth)
        case = Case(name, "EnCodec")
        write_config(case.model, model.config, ["EncodecModel"])
        write_safetensors(case.model, weights_of(model))
        options = LOSS | {"bandwidth": bandwidth}
        write_train_step(case, "EncodecModel, audiocraft's losses without a discriminator", model, reconstruction(options),
                         inputs, ["input_values"], reload_as(EncodecModel), options, note=note)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


# ---------------------------------------------------------------- adapters


def without_weight_norm(model):
    """The convolutions with the weight that the norm gives, which PEFT can adapt: it makes its own of the same class."""
    for module in list(model.modules()):
        if is_parametrized(module):
            remove_parametrizations(module, "weight")
    return model


def with_adapter(base, settings, samples=100, bandwidth=1.6, note=None, **changes):
    """Convolutions adapted, in a pass to codes and back."""

    def attempt(name, seed):
        model = build(seed, {**base, **changes})
        inputs, options = {"input_values": sound(model, seed, 2, samples)}, {"bandwidth": bandwidth}
        case = Case(name, "EnCodec")
        write_config(case.model, model.config, ["EncodecModel"])
        write_safetensors(case.model, weights_of(model))

        write_adapters(case, "EncodecModel", "forward", without_weight_norm(model), [LoraConfig(**settings)],
                       lambda network: answer(network, "forward", inputs, options), inputs,
                       lambda folder: without_weight_norm(reload_as(EncodecModel)(folder)), seed, options, note=note)
        check_margins(model, inputs, bandwidth)

    return lambda name: first_good(name, lambda seed: attempt(name, seed))


CONVOLUTIONS = r"(encoder|decoder)\.layers\.(0|1\.block\.[13]|4\.block\.\d|7)\.conv"

CASES = {
    "encodec/encode_24khz": coded("encode", AT_24_KHZ, bandwidth=0.8, others=[{"use_causal_conv": False}]),
    "encodec/encode_24khz_padding_mask_bin": coded(
        "encode", AT_24_KHZ, samples=97, bandwidth=1.6, masked="channels", write=write_bin, rename=weight_g,
        buffers=True, note="weight_g and weight_v in a .bin, with the paddings of old saves"),
    "encodec/encode_24khz_mask_without_channels": coded("encode", AT_24_KHZ, batch=3, masked="flat"),
    "encodec/encode_32khz": coded("encode", AT_32_KHZ, samples=200, bandwidth=1.6,
                                  others=[{"pad_mode": "constant"}]),
    "encodec/encode_32khz_shorter_than_the_padding": coded(
        "encode", AT_32_KHZ, samples=3, batch=12, target_bandwidths=[3.2],
        unseen=ONE_STEP, note="zeros are added before the mirror and cut off after it"),
    "encodec/encode_24khz_shorter_than_the_padding": coded("encode", AT_24_KHZ, samples=3, batch=12,
                                                              bandwidth=1.6, unseen=ONE_STEP),
    "encodec/encode_48khz_windows": coded("encode", AT_48_KHZ, samples=200, bandwidth=1.6,
                                          others=[{"normalize": False}, {"overlap": 0.2}]),
    "encodec/encode_48khz_mask_of_one_channel": coded("encode", AT_48_KHZ, samples=168, bandwidth=0.8,
                                                      masked="one"),
    "encodec/encode_two_residual_layers": coded(
        "encode", AT_24_KHZ, bandwidth=0.8, num_residual_layers=2, dilation_growth_rate=3, compress=3,
        num_lstm_layers=1, residual_kernel_size=5, kernel_size=5, last_kernel_size=3),
    "encodec/encode_three_residual_layers_identity": coded(
        "encode", AT_32_KHZ, samples=140, num_residual_layers=3, residual_kernel_size=3, num_lstm_layers=3),
    "encodec/encode_replicate": coded("encode", AT_32_KHZ, pad_mode="replicate", samples=70,
                                      others=[{"pad_mode": "reflect"}]),
    "encodec/encode_constant_even_kernels": coded(
        "encode", AT_32_KHZ, pad_mode="constant", samples=70, kernel_size=4, last_kernel_size=6,
        residual_kernel_size=4, others=[{"pad_mode": "reflect"}]),
    "encodec/encode_circular": coded("encode", AT_32_KHZ, pad_mode="circular", samples=150),
    "encodec/encode_normalized_without_windows": coded("encode", AT_24_KHZ, normalize=True, bandwidth=1.6),
    "encodec/encode_original_names": coded(
        "encode", AT_48_KHZ, samples=150, bandwidth=0.8, rename=original, file="encodec_tiny.th",
        write=write_th("encodec_tiny.th"), note="the names of the original .th files, group norms"),
    "encodec/decode_24khz": decoded(AT_24_KHZ, frames=11, others=[{"use_causal_conv": False}]),
    "encodec/decode_24khz_fewer_codebooks": decoded(AT_24_KHZ, frames=8, quantizers=2, write=write_bin,
                                                    rename=weight_g),
    "encodec/decode_24khz_trim_right_ratio": decoded(AT_24_KHZ, trim_right_ratio=0.5, upsampling_ratios=[5, 4],
                                                     others=[{"trim_right_ratio": 1.0}]),
    "encodec/decode_24khz_last_frame_pad_length": decoded(AT_24_KHZ, frames=9, cut=3),
    "encodec/decode_32khz": decoded(AT_32_KHZ, frames=13, others=[{"use_causal_conv": True}]),
    "encodec/decode_32khz_one_frame": decoded(AT_32_KHZ, frames=1, batch=3, unseen=ONE_STEP),
    "encodec/decode_48khz_windows": decoded(AT_48_KHZ, windows=4, frames=10, cut=4,
                                            others=[{"overlap": 0.2}]),
    "encodec/decode_48khz_one_window": decoded(AT_48_KHZ, frames=7),
    "encodec/decode_windows_with_weight_norm": decoded(
        AT_24_KHZ, windows=5, frames=9, cut=2, chunk_length_s=0.08, overlap=0.6, normalize=True,
        note="three windows over most samples"),
    "encodec/decode_original_names": decoded(
        AT_24_KHZ, frames=10, rename=original, file="encodec_tiny.th", write=write_th("encodec_tiny.th"),
        note="the names of the original .th files, weight norms"),
    "encodec/decode_two_residual_layers": decoded(
        AT_32_KHZ, frames=6, num_residual_layers=2, dilation_growth_rate=4, num_lstm_layers=1, kernel_size=3,
        last_kernel_size=5, audio_channels=2),
    "encodec/forward_24khz": coded("forward", AT_24_KHZ, samples=101, bandwidth=1.6),
    "encodec/forward_32khz_padding_mask": coded("forward", AT_32_KHZ, samples=134, masked="channels"),
    "encodec/forward_48khz": coded("forward", AT_48_KHZ, samples=222, bandwidth=0.8, masked="one"),
    "encodec/train_step_24khz": trained(AT_24_KHZ, 1.6),
    "encodec/train_step_48khz": trained(
        AT_48_KHZ, 0.8, note="one segment without windows and loudness; the first codebooks alone"),
    "encodec/adapter_weight_norm": with_adapter(
        AT_24_KHZ, dict(r=2, lora_alpha=3, target_modules=CONVOLUTIONS),
        note="the weights that the norm gives are adapted"),
    "encodec/adapter_group_norm": with_adapter(
        AT_48_KHZ, dict(r=3, lora_alpha=2, use_rslora=True, target_modules=CONVOLUTIONS), samples=150),
}

if __name__ == "__main__":
    run_all(CASES, sys.argv[1:])
