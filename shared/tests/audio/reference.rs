//! What the references compute, from `reference.safetensors`.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
use fauna_shared::audio::resample::resample;
use fauna_shared::audio::sinc::Sinc;
use fauna_shared::audio::spectrum::{
    Log, Measure, Mel, MelConfig, MelScale, Spectrum, SpectrumConfig, mel_filter_bank,
};
use fauna_shared::item::Sound;

use crate::fixture;

/// The tensors whose names start with `prefix`, by what follows it, and the sound they were made of.
fn reference(prefix: &str) -> (BTreeMap<String, Tensor>, Vec<f32>) {
    let tensors = candle_core::safetensors::load(fixture("reference.safetensors"), &Device::Cpu).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor)))
        .collect();
    let sound = tensors.remove("sound").map_or(Vec::new(), |sound| sound.to_vec1().unwrap());
    (tensors, sound)
}

/// The largest distance between `found` and `wanted`, against the largest value wanted.
fn distance(found: &[Vec<f32>], wanted: &Tensor) -> f32 {
    let wanted = wanted.to_vec2::<f32>().unwrap();
    assert_eq!((found.len(), found[0].len()), (wanted.len(), wanted[0].len()), "another shape");
    let largest = wanted.iter().flatten().fold(0f32, |largest, value| largest.max(value.abs()));
    let apart =
        found.iter().flatten().zip(wanted.iter().flatten()).map(|(found, wanted)| (found - wanted).abs());
    apart.fold(0f32, f32::max) / largest
}

fn numbers(name: &str) -> Vec<usize> {
    name.split('.').map(|part| part.parse().unwrap()).collect()
}

#[test]
fn spectra_are_those_of_torchaudio() {
    let (tensors, sound) = reference("spectrum.");
    assert_eq!(tensors.len(), 8);
    for (name, wanted) in &tensors {
        let [n_fft, hop, power, normalized] = numbers(name)[..] else { panic!("{name}") };
        let measure = if power == 1 { Measure::Magnitude } else { Measure::Power };
        let config = SpectrumConfig { n_fft, hop, measure, normalized: normalized == 1 };
        let found = Spectrum::new(config).unwrap().forward(&sound).unwrap();
        let apart = distance(&found, wanted);
        assert!(apart < 1e-6, "{name}: {apart:e}");
    }
}

#[test]
fn mel_bands_are_those_of_torchaudio_and_transformers() {
    let (tensors, sound) = reference("mel.");
    let spectrum = SpectrumConfig { n_fft: 256, hop: 100, measure: Measure::Power, normalized: false };
    let config = |name: &str| MelConfig {
        bands: 20,
        lowest: 30.0,
        highest: 5000.0,
        scale: if name.contains("htk") { MelScale::Htk } else { MelScale::Slaney },
        by_width: name.ends_with("slaney"),
    };
    for name in ["htk.none", "htk.slaney", "slaney.none", "slaney.slaney"] {
        let bank = mel_filter_bank(&config(name), 129, 11_025).unwrap();
        let apart = distance(&bank.0, &tensors[&format!("bank.{name}")]);
        assert!(apart < 1e-6, "bank {name}: {apart:e}");
        let mel = Mel::new(spectrum, &config(name), 11_025).unwrap();
        let apart = distance(&mel.forward(&sound).unwrap(), &tensors[name]);
        assert!(apart < 1e-5, "{name}: {apart:e}");
    }
    let mel = Mel::new(spectrum, &config("slaney.slaney"), 11_025).unwrap();
    let apart = distance(&mel.log(&sound, 1e-10, Log::Ten).unwrap(), &tensors["log10"]);
    assert!(apart < 1e-6, "log10: {apart:e}");
}

#[test]
fn chroma_is_that_of_musicgens_extractor() {
    let (tensors, _) = reference("chroma.");
    let sounds: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".sound")).collect();
    assert_eq!(sounds.len(), 10);
    for name in sounds {
        let rate = name.split('.').nth(1).unwrap().parse().unwrap();
        let usual =
            ChromaConfig { sampling_rate: 8000, n_fft: 2048, hop_length: 512, ..ChromaConfig::default() };
        let config = match name.split_once('.').unwrap().0 {
            "cut" => ChromaConfig { chunk_length: 1, ..usual },
            "quarter" => ChromaConfig { num_chroma: 24, n_fft: 1201, ..usual },
            "odd" => ChromaConfig { num_chroma: 7, n_fft: 1000, ..usual },
            _ => usual,
        };
        let chroma = Chroma::new(&config).unwrap();
        let sound = &tensors[&format!("{name}.sound")];
        let found = chroma.features(sound, rate).unwrap().to_vec3::<f32>().unwrap();
        let wanted = tensors[&format!("{name}.classes")].to_vec3::<f32>().unwrap();
        assert_eq!(found, wanted, "{name}");
        if let Some(soft) = tensors.get(&format!("{name}.soft")) {
            let apart = distance(&chroma.soft(&sound.to_vec1().unwrap()).unwrap(), soft);
            assert!(apart < 1e-5, "{name}: {apart:e}");
        }
    }
}

#[test]
fn the_exact_resampler_is_torchaudios() {
    let (tensors, sound) = reference("resample.");
    for (name, wanted) in &tensors {
        let (sinc, rates) = match name.split_once('.').unwrap() {
            ("torchaudio", rates) => (Sinc::TORCHAUDIO, rates),
            (_, rates) => (Sinc::JULIUS, rates),
        };
        let [from, to] = numbers(rates)[..] else { panic!("{name}") };
        let found = sinc.resample(&sound, from as u32, to as u32).unwrap();
        let apart = distance(&[found], &wanted.unsqueeze(0).unwrap());
        assert!(apart < 1e-6, "{name}: {apart:e}");
    }
}

#[test]
fn the_fast_resampler_is_torchaudios_longest_within_the_band() {
    let (tensors, _) = reference("rates.");
    for name in ["44100.32000", "32000.44100"] {
        let [from, to] = numbers(name)[..] else { panic!("{name}") };
        let channel = tensors[&format!("{name}.sound")].to_vec1().unwrap();
        let sound = Sound { rate: from as u32, channels: vec![channel] };
        let found = resample(sound, to as u32).unwrap().channels.remove(0);
        let wanted = tensors[name].to_vec1::<f32>().unwrap();
        assert_eq!(found.len(), wanted.len());
        let apart =
            found.iter().zip(&wanted).map(|(found, wanted)| (found - wanted).abs()).fold(0f32, f32::max);
        assert!(apart < 1e-5, "{name}: {apart:e}");
    }
}
