//! Audio: decoding and writing files, channels, resampling, spectrograms and chroma features.
//!
//! A [`Sound`] is a sampling rate in Hz and a list of samples from -1 to 1 per channel, left before right. A frame is
//! one sample of every channel, so `frames` at `rate` last `frames / rate` seconds. Spectrograms and chroma features
//! have frames of their own, `hop` samples apart.
//!
//! This module requires the feature `audio`.

pub mod chroma;
pub mod read;
pub mod resample;
pub mod sinc;
pub mod spectrum;
pub mod write;

use crate::item::Sound;
use crate::{Error, Result};

/// Maximum number of channels of a file.
pub const MAX_CHANNELS: usize = 32;

/// Maximum sampling rate, in Hz.
pub const MAX_SAMPLE_RATE: u32 = 768_000;

/// Checks that a sampling rate is from 1 to [`MAX_SAMPLE_RATE`].
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the rate.
pub fn check_rate(rate: u32) -> Result<()> {
    match rate {
        1..=MAX_SAMPLE_RATE => Ok(()),
        _ => Err(Error::input(format!("a sampling rate of {rate} Hz, expected 1 to {MAX_SAMPLE_RATE} Hz"))),
    }
}

/// Checks that two sampling rates are valid and differ by at most a factor of 256, so that resampling a small file with
/// a declared rate of 1 Hz does not exhaust memory.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the rates.
fn check_rates(from: u32, to: u32) -> Result<()> {
    check_rate(from)?;
    check_rate(to)?;
    match from.max(to) / from.min(to) {
        0..=256 => Ok(()),
        _ => Err(Error::input(format!(
            "cannot resample from {from} Hz to {to} Hz: the rates must differ by at most a factor of 256"
        ))),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Checks that all samples are finite.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) with the index of the first sample that is not.
pub fn check_finite(samples: &[f32]) -> Result<()> {
    match samples.iter().position(|sample| !sample.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::input(format!("sample {at} is {}, expected finite samples", samples[at]))),
    }
}

/// Checks that `sound` is valid (a valid sampling rate, at least one channel and one frame, channels of equal length,
/// finite samples) and returns its number of frames.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the problem and the channel.
///
/// ```
/// use fauna_shared::{audio, item::Sound};
/// assert_eq!(audio::check(&Sound { rate: 8000, channels: vec![vec![0.0; 80]; 2] })?, 80);
/// let broken = Sound { rate: 8000, channels: vec![vec![0.0, f32::NAN]] };
/// assert!(audio::check(&broken).unwrap_err().to_string().contains("sample 1 is NaN"));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn check(sound: &Sound) -> Result<usize> {
    check_rate(sound.rate)?;
    let Some(first) = sound.channels.first() else {
        return Err(Error::input("audio without channels"));
    };
    if first.is_empty() {
        return Err(Error::input("audio without samples"));
    }
    for (index, channel) in sound.channels.iter().enumerate() {
        if channel.len() != first.len() {
            let (wanted, found) = (first.len(), channel.len());
            return Err(Error::input(format!("channel {index} has {found} samples, channel 0 has {wanted}")));
        }
        check_finite(channel).map_err(|error| error.context(format!("channel {index}")))?;
    }
    Ok(first.len())
}

/// Mixes all channels to mono (their mean): `(channels, samples)` to `(samples)`.
///
/// ```
/// use fauna_shared::{audio, item::Sound};
/// let sound = Sound { rate: 8000, channels: vec![vec![1.0, 0.5], vec![0.0, 0.5]] };
/// assert_eq!(audio::mono(sound)?, [0.5, 0.5]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for audio that [`check`] rejects.
pub fn mono(sound: Sound) -> Result<Vec<f32>> {
    check(&sound)?;
    let mut channels = sound.channels.into_iter();
    let mut mean = channels.next().unwrap_or_default();
    let others = channels.len();
    for channel in channels {
        mean.iter_mut().zip(channel).for_each(|(sum, sample)| *sum += sample);
    }
    if others > 0 {
        let count = (others + 1) as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
    }
    Ok(mean)
}

/// Converts audio to `wanted` channels, 1 or 2, like audiocraft's `convert_audio_channels`: mono is the mean of all
/// channels; stereo repeats a mono channel, or keeps the first two of several.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for another number of channels, and for audio that [`check`] rejects.
///
/// ```
/// use fauna_shared::{audio, item::Sound};
/// let mono = Sound { rate: 8000, channels: vec![vec![0.5; 4]] };
/// assert_eq!(audio::with_channels(mono, 2)?.channels, [[0.5; 4], [0.5; 4]]);
/// let three = Sound { rate: 8000, channels: vec![vec![0.5], vec![0.25], vec![0.0]] };
/// assert_eq!(audio::with_channels(three.clone(), 1)?.channels, [[0.25]]);
/// assert_eq!(audio::with_channels(three, 2)?.channels, [[0.5], [0.25]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn with_channels(mut sound: Sound, wanted: usize) -> Result<Sound> {
    check(&sound)?;
    let found = sound.channels.len();
    match (found, wanted) {
        (_, _) if found == wanted => Ok(sound),
        (1, 2) => {
            sound.channels.push(sound.channels[0].clone());
            Ok(sound)
        }
        (_, 1) => Ok(Sound { rate: sound.rate, channels: vec![mono(sound)?] }),
        (_, 2) => {
            sound.channels.truncate(2);
            Ok(sound)
        }
        _ => Err(Error::input(format!("cannot convert {found} channels to {wanted}, expected 1 or 2"))),
    }
}
