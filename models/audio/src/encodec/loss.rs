//! The loss of a codec without its discriminator.
//!
//! Défossez et al. 2022, section 3.4, with the reductions and default settings of audiocraft.

use candle_core::Tensor;
use fauna_shared::audio::spectrum::hann;
use fauna_shared::{Error, Result};
use serde_json::{Map, Value};

use crate::spectra::{Stft, mean_absolute, mean_square, mel_filters, mirrored, rows};

/// Options of the loss.
#[derive(Debug, Clone)]
pub(super) struct LossOptions {
    /// Weight of the mean absolute difference of samples.
    pub lambda_time: f64,
    /// Weight of the differences of mel spectrograms.
    pub lambda_mel: f64,
    /// Weight of the commitment loss.
    pub lambda_commitment: f64,
    /// Lengths of the windows of the mel spectrograms in samples.
    mel_windows: Vec<usize>,
    mel_bins: usize,
    /// Lowest frequency in Hz.
    mel_low: f64,
    /// Added to powers before their logarithm.
    mel_floor: f64,
    /// Bandwidth in kbit/s.
    pub bandwidth: Option<f64>,
}

impl LossOptions {
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an unknown option, or one out of range.
    pub(super) fn of(options: &Value) -> Result<Self> {
        let mut left = options.as_object().cloned().unwrap_or_default();
        let mut number = |name: &str, default: f64| number(&mut left, name, default);
        let read = Self {
            lambda_time: number("lambda_time", 0.1)?,
            lambda_mel: number("lambda_mel", 1.0)?,
            lambda_commitment: number("lambda_commitment", 0.5)?,
            mel_low: number("mel_low", 20.0)?,
            mel_floor: number("mel_floor", 1e-5)?,
            mel_bins: number("mel_bins", 64.0)? as usize,
            mel_windows: (5..12).map(|power| 1 << power).collect(),
            bandwidth: None,
        };
        let mel_windows = match left.remove("mel_windows") {
            None | Some(Value::Null) => read.mel_windows,
            Some(value) => serde_json::from_value::<Vec<usize>>(value.clone())
                .ok()
                .filter(|windows| windows.iter().all(|window| (4..=1 << 16).contains(window)))
                .ok_or_else(|| {
                    Error::input(format!("mel_windows is {value}, expected lengths of at least 4"))
                })?,
        };
        let bandwidth = super::pipeline::bandwidth(options)?;
        left.remove("bandwidth");
        if let Some(name) = left.keys().next() {
            return Err(Error::input(format!("the loss has no option \"{name}\"")).hint(
                "known: bandwidth, lambda_time, lambda_mel, lambda_commitment, mel_windows, mel_bins, mel_low, mel_floor",
            ));
        }
        if read.mel_bins == 0 || mel_windows.is_empty() {
            return Err(Error::input("mel_bins or mel_windows is empty"));
        }
        Ok(Self { mel_windows, bandwidth, ..read })
    }
}

fn number(options: &mut Map<String, Value>, name: &str, default: f64) -> Result<f64> {
    match options.remove(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|value| *value >= 0.0)
            .ok_or_else(|| Error::input(format!("{name} is {value}, expected a number of at least 0"))),
    }
}

/// Over all windows, the mean of the mean absolute difference of powers in mel bands, and of the mean squared difference
/// of their logarithms. `made` and `sound`: `(batch, samples, channels)` at `rate` Hz.
pub(super) fn mel_loss(made: &Tensor, sound: &Tensor, options: &LossOptions, rate: usize) -> Result<Tensor> {
    let (made, sound) = (rows(made)?, rows(sound)?);
    let mut terms = Vec::new();
    for window in &options.mel_windows {
        let [made, sound] = [mel(&made, *window, options, rate)?, mel(&sound, *window, options, rate)?];
        terms.push(mean_absolute(&made, &sound)?);
        let log = |power: Tensor| Ok::<_, Error>(((power + options.mel_floor)?.log()? / 10f64.ln())?);
        terms.push(mean_square(&log(made)?, &log(sound)?)?);
    }
    Ok(Tensor::stack(&terms, 0)?.mean_all()?)
}

/// The power in mel bands of frames a quarter of a window apart, with a normalised window. Three eighths of a window of
/// mirrored samples lie at either end, and zeros that fill the last frame.
fn mel(x: &Tensor, window: usize, options: &LossOptions, rate: usize) -> Result<Tensor> {
    let hop = window / 4;
    let edge = (window - hop) / 2;
    if x.dim(1)? <= edge {
        let samples = x.dim(1)?;
        return Err(Error::input(format!(
            "{samples} samples for mel spectrograms with a window of {window}"
        ))
        .hint("learn from longer sounds, or set shorter mel_windows"));
    }
    let x = mirrored(x, edge, edge)?;
    let last = (x.dim(1)? - window) % hop;
    let x = x.pad_with_zeros(1, 0, if last == 0 { 0 } else { hop - last })?;
    let shape = hann(window);
    let size = shape.iter().map(|value| value * value).sum::<f64>().sqrt();
    let shape: Vec<f64> = shape.iter().map(|value| value / size).collect();
    let filters = mel_filters(options.mel_bins, options.mel_low, window / 2 + 1, rate, x.device())?;
    Ok(Stft::new(window, hop, &shape, x.device())?.power(&x)?.matmul(&filters)?)
}
