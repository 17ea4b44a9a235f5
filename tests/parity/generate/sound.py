"""Writes `shared/tests/audio/`: what the sound layer must agree with, and files in every format it reads.

    python tests/parity/generate/sound.py

`reference.safetensors` holds sounds and what torchaudio and transformers make of them; see `shared/tests/audio/main.rs`
for what each tensor is compared with. `tone.*` hold half a second of 440 Hz left and 660 Hz right, at 32 kHz.
"""

import subprocess
from pathlib import Path

import av
import numpy
import soundfile
import torch
import torchaudio
from safetensors.torch import save_file
from transformers import MusicgenMelodyFeatureExtractor, audio_utils

FOLDER = Path(__file__).resolve().parents[3] / "shared/tests/audio"
torch.set_num_threads(1)


def noise(*shape, seed):
    """Samples of -0.8 to 0.8."""
    return 1.6 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.8


def melody(samples, rate, seed):
    """A new chord of three decaying tones every eighth of a second, over quiet noise."""
    random = numpy.random.default_rng(seed)
    time = numpy.arange(samples) / rate
    sound = 0.02 * random.standard_normal(samples)
    for start in numpy.arange(0, samples / rate, 0.125):
        on = numpy.where(time >= start, numpy.exp(-4 * (time - start).clip(0)), 0)
        for note in random.integers(36, 84, 3):
            sound += 0.15 * on * numpy.sin(2 * numpy.pi * 440 * 2 ** ((note - 69) / 12) * time)
    return torch.tensor(sound, dtype=torch.float32)


def spectra(out):
    sound = out["spectrum.sound"] = noise(500, seed=1)
    for n_fft, hop in ((64, 24), (51, 10)):
        for power in (1, 2):
            for normalized in (False, True):
                transform = torchaudio.transforms.Spectrogram(n_fft, hop_length=hop, power=power, normalized=normalized)
                out[f"spectrum.{n_fft}.{hop}.{power}.{int(normalized)}"] = transform(sound).T


def mels(out):
    sound = out["mel.sound"] = noise(2000, seed=2)
    for scale in ("htk", "slaney"):
        for norm in (None, "slaney"):
            bank = audio_utils.mel_filter_bank(129, 20, 30.0, 5000.0, 11025, norm=norm, mel_scale=scale)
            out[f"mel.bank.{scale}.{norm or 'none'}"] = torch.tensor(bank.T, dtype=torch.float32)
            by_torchaudio = torchaudio.transforms.MelSpectrogram(
                11025, n_fft=256, hop_length=100, f_min=30.0, f_max=5000.0, n_mels=20, norm=norm, mel_scale=scale
            )
            out[f"mel.{scale}.{norm or 'none'}"] = by_torchaudio(sound).T
    by_transformers = audio_utils.spectrogram(
        sound.numpy(), audio_utils.window_function(256, "hann"), 256, 100, power=2.0, mel_filters=bank, log_mel="log10"
    )
    out["mel.log10"] = torch.tensor(by_transformers.T, dtype=torch.float32)


def chromas(out):
    def one(name, sound, rate, n_fft=2048, **settings):
        extractor = MusicgenMelodyFeatureExtractor(sampling_rate=8000, n_fft=n_fft, hop_length=512, **settings)
        out[f"chroma.{name}.{rate}.sound"] = sound
        out[f"chroma.{name}.{rate}.classes"] = extractor(sound, sampling_rate=rate, return_tensors="pt").input_features
        if sound.dim() == 1 and rate == 8000 and len(sound) >= n_fft:
            energies = extractor.chroma_filters @ extractor.spectrogram(sound)
            out[f"chroma.{name}.{rate}.soft"] = torch.nn.functional.normalize(energies, p=float("inf"), dim=0, eps=1e-6).T

    one("plain", melody(5001, 8000, 3), 8000)
    one("short", melody(701, 8000, 4), 8000)
    one("even", melody(700, 8000, 5), 8000)
    one("cut", melody(9000, 8000, 6), 8000, chunk_length=1)
    one("batch", torch.stack([melody(3000, 8000, 7), melody(3000, 8000, 8)]), 8000)
    one("stereo", torch.stack([melody(3000, 8000, 9), melody(3000, 8000, 10)])[None], 8000)
    one("faster", melody(3000, 11025, 11)[None], 11025)
    one("quarter", melody(3000, 8000, 12), 8000, num_chroma=24, n_fft=1201)
    one("odd", melody(3000, 8000, 13), 8000, num_chroma=7, n_fft=1000)
    stems = torch.stack([melody(2 * 2300, 8000, seed).reshape(2, 2300) for seed in range(14, 18)])
    one("stems", stems[None], 16000)


def resampled(out):
    sound = out["resample.sound"] = noise(400, seed=21)
    for rates in ((44100, 32000), (16000, 44100), (800, 799), (48000, 24000), (3, 2)):
        for name, settings in (
            ("torchaudio", {}),
            ("julius", {"rolloff": 0.945, "lowpass_filter_width": 24}),
        ):
            # In float64: the reference's own filter in float32 is off by more than ours.
            wide = torchaudio.functional.resample(sound.double(), *rates, **settings)
            out[f"resample.{name}.{rates[0]}.{rates[1]}"] = wide.float()

    # Swelling noise that ends at 0.7 of the lower rate's half, by the reference's longest filter.
    for old, new in ((44100, 32000), (32000, 44100)):
        bins = torch.fft.rfft(noise(1470, seed=22).double())
        bins[int(0.7 * min(old, new) / old * len(bins)) :] = 0
        sound = torch.fft.irfft(bins, 1470) * torch.hann_window(1470)
        out[f"rates.{old}.{new}.sound"] = sound.float()
        wide = torchaudio.functional.resample(sound, old, new, rolloff=0.9475937167399596, lowpass_filter_width=64)
        out[f"rates.{old}.{new}"] = wide.float()


def files():
    rate, frames = 32000, 16000
    time = numpy.arange(frames) / rate
    tone = numpy.stack([0.5 * numpy.sin(2 * numpy.pi * 440 * time), 0.25 * numpy.sin(2 * numpy.pi * 660 * time)])
    for name, subtype in (("flac", "PCM_16"), ("ogg", "VORBIS")):
        soundfile.write(FOLDER / f"tone.{name}", tone.T, rate, format=name, subtype=subtype)
    tone = {"fltp": tone.astype(numpy.float32), "s16p": numpy.round(tone * 32768).astype(numpy.int16)}
    for name, codec, kind, options in (
        ("mp3", "libmp3lame", "fltp", {}),
        ("m4a", "aac", "fltp", {"aac_coder": "fast"}),
        ("alac.m4a", "alac", "s16p", {}),
    ):
        with av.open(FOLDER / f"tone.{name}", "w") as file:
            stream = file.add_stream(codec, rate=rate, options=options)
            stream.layout, stream.format, stream.bit_rate = "stereo", kind, 64000
            stream.codec_context.open()
            size = stream.codec_context.frame_size
            for start in range(0, frames, size):
                chunk = numpy.ascontiguousarray(tone[kind][:, start : start + size])
                frame = av.AudioFrame.from_ndarray(chunk, format=kind, layout="stereo")
                frame.sample_rate, frame.pts = rate, start
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    more("-i", FOLDER / "tone.flac", "-c:a", "adpcm_ima_wav", to="tone.ima.wav")
    more("-i", FOLDER / "tone.flac", "-c:a", "adpcm_ms", to="tone.ms.wav")
    more("-i", FOLDER / "tone.flac", "-c:a", "adpcm_ima_qt", "-f", "aiff", to="tone.ima4.aifc")
    more("-i", FOLDER / "tone.flac", "-t", "0.1", "-c:a", "libopus", "-b:a", "32k", "-ac", "1", to="tone.opus")
    # A variable rate without a header that counts the frames; the first of them are the largest.
    noise_then_tone = "anoisesrc=d=0.25:r=16000:a=0.5:seed=1[a];sine=f=440:r=16000:d=3[b];[a][b]concat=n=2:v=0:a=1"
    more(
        "-f", "lavfi", "-i", noise_then_tone, "-c:a", "libmp3lame", "-q:a", "7",
        "-write_xing", "0", "-id3v2_version", "0", to="vbr.mp3",
    )  # fmt: skip


def more(*arguments, to):
    """What the program ffmpeg makes of `arguments`."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run([*command, "-fflags", "+bitexact", "-flags:a", "+bitexact", str(FOLDER / to)], check=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    out = {}
    for part in (spectra, mels, chromas, resampled):
        part(out)
    files()
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, FOLDER / "reference.safetensors")
