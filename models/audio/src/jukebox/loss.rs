//! The losses of the codec and of the prior, with the default weights of OpenAI's code.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio::spectrum::hann;
use fauna_shared::model::Loss;
use fauna_shared::nn::cross_entropy_sum;
use fauna_shared::{Error, Result};
use serde_json::Value;

use super::{Labels, Prior, VqVae};
use crate::spectra::{Stft, magnitude, mean_square, mirrored, norms};

/// Options of the codec's loss.
#[derive(Debug, Clone)]
pub(super) struct CodecOptions {
    /// Weight of the differences of spectrograms.
    multispectral: f64,
    /// Weight of the commitment loss.
    commit: f64,
    /// The variance of the samples of the data set.
    bandwidth_l2: f64,
    /// The mean norm of the spectrograms of the data set.
    bandwidth_spec: f64,
    /// `n_fft`, hop and length of the windows of the spectrograms.
    spectra: [Vec<usize>; 3],
}

impl CodecOptions {
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an unknown option, or one out of range.
    pub(super) fn of(options: &Value) -> Result<Self> {
        let mut left = options.as_object().cloned().unwrap_or_default();
        let mut number = |name: &str, default: Option<f64>| {
            match left.remove(name) {
            None | Some(Value::Null) => default.ok_or_else(|| {
                Error::input(format!("{name} is missing"))
                    .hint("bandwidth_l2 is the variance of the samples, bandwidth_spec the mean norm of the spectra")
            }),
            Some(value) => value
                .as_f64()
                .filter(|value| *value >= 0.0)
                .ok_or_else(|| Error::input(format!("{name} is {value}, expected a number of at least 0"))),
        }
        };
        let (multispectral, commit) = (number("multispectral", Some(1.0))?, number("commit", Some(0.02))?);
        let (bandwidth_l2, bandwidth_spec) = (number("bandwidth_l2", None)?, number("bandwidth_spec", None)?);
        let mut list = |name: &str, default: [usize; 3]| match left.remove(name) {
            None | Some(Value::Null) => Ok(default.to_vec()),
            Some(value) => serde_json::from_value::<Vec<usize>>(value.clone())
                .map_err(|_| Error::input(format!("{name} is {value}, expected a list of lengths"))),
        };
        let spectra = [
            list("multispec_n_fft", [2048, 1024, 512])?,
            list("multispec_hop_length", [240, 120, 50])?,
            list("multispec_window_size", [1200, 600, 240])?,
        ];
        if let Some(name) = left.keys().next() {
            return Err(Error::input(format!("the loss has no option \"{name}\"")));
        }
        let [sizes, hops, windows] = &spectra;
        if sizes.is_empty() || sizes.len() != hops.len() || sizes.len() != windows.len() {
            return Err(Error::input("multispec_n_fft, _hop_length and _window_size are of unlike lengths"));
        }
        Ok(Self { multispectral, commit, bandwidth_l2, bandwidth_spec, spectra })
    }
}

/// The loss of `x`, `(batch, samples, channels)`, over all levels of `codec`: `loss_recons`, `loss_multispectral` and
/// `loss_commit`, which are unweighted parts.
pub(super) fn codec_loss(codec: &VqVae, x: &Tensor, options: &CodecOptions) -> Result<Loss> {
    let mut parts: BTreeMap<&str, Tensor> = BTreeMap::new();
    let mut add = |name: &'static str, term: Tensor| -> Result<()> {
        let sum = match parts.remove(name) {
            Some(sum) => (sum + term)?,
            None => term,
        };
        parts.insert(name, sum);
        Ok(())
    };
    let transforms = transforms(options, x.device())?;
    for level in 0..codec.levels() {
        let (made, commitment) = codec.learn(level, x)?;
        add("loss_recons", (mean_square(&made, x)? / options.bandwidth_l2)?)?;
        add("loss_multispectral", (spectral(&made, x, &transforms)? / options.bandwidth_spec)?)?;
        add("loss_commit", commitment)?;
    }
    let weights = [
        ("loss_recons", 1.0),
        ("loss_multispectral", options.multispectral),
        ("loss_commit", options.commit),
    ];
    let mut value = Tensor::zeros((), DType::F32, x.device())?;
    for (name, weight) in weights {
        value = match parts.get(name) {
            Some(part) => (value + (part * weight)?)?,
            None => value,
        };
    }
    let mut loss = Loss::mean(value, x.dim(0)? as f64);
    loss.parts = parts.into_iter().map(|(name, part)| (name.to_string(), part)).collect();
    Ok(loss)
}

fn transforms(options: &CodecOptions, device: &Device) -> Result<Vec<(usize, Stft)>> {
    let [sizes, hops, windows] = &options.spectra;
    let one = |((size, hop), window): ((&usize, &usize), &usize)| {
        Ok((*size, Stft::new(*size, *hop, &hann(*window), device)?))
    };
    sizes.iter().zip(hops).zip(windows).map(one).collect()
}

/// The mean over spectrograms and sounds of the norm of the difference of magnitudes; channels are mixed to mono.
fn spectral(made: &Tensor, x: &Tensor, transforms: &[(usize, Stft)]) -> Result<Tensor> {
    let batch = x.dim(0)?;
    let mut terms = Vec::new();
    for (size, stft) in transforms {
        let shape = |x: &Tensor| -> Result<Tensor> {
            let mono = x.to_dtype(DType::F32)?.mean(2)?;
            let magnitudes = magnitude(&stft.power(&mirrored(&mono, size / 2, size / 2)?)?)?;
            Ok(magnitudes.reshape((batch, ()))?)
        };
        terms.push(norms(&(shape(made)? - shape(x)?)?)?.mean_all()?);
    }
    Ok(Tensor::stack(&terms, 0)?.mean_all()?)
}

/// The cross entropy of each of `codes` given those before it, in bits.
pub(super) fn prior_loss(prior: &Prior, codes: &[Vec<u32>], labels: &[Labels]) -> Result<Loss> {
    let (mut sum, mut count) = (None, 0);
    for (codes, labels) in codes.iter().zip(labels) {
        let wanted: Vec<i64> = codes.iter().map(|code| i64::from(*code)).collect();
        let wanted = Tensor::new(wanted, &Device::Cpu)?;
        let (term, terms) = cross_entropy_sum(&prior.logits(codes, labels)?, &wanted)?;
        count += terms;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let sum = sum.ok_or_else(|| Error::input("music_tokens are empty"))?;
    Ok(Loss::mean((sum / (count as f64 * std::f64::consts::LN_2))?, count as f64))
}
