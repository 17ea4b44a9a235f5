//! Sound in and out: files to samples, samples to files, channels, rates, spectra and pitch classes.
//!
//! A sound is a [`Sound`]: a rate in Hz and one list of samples in -1 to 1 a channel, left before right. A frame is
//! one sample of every channel, so a sound of `frames` at `rate` lasts `frames / rate` seconds. Spectra and chroma
//! have frames of their own, `hop` samples apart; their docstrings say how many.
//!
//! The room is behind the feature `audio`: a build for text alone compiles none of the crates it stands on.

pub mod chroma;
pub mod read;
pub mod resample;
pub mod sinc;
pub mod spectrum;
pub mod write;

use crate::item::Sound;
use crate::{Error, Result};

/// The most channels a file may have, read or written.
pub const MAX_CHANNELS: usize = 32;

/// The highest rate anything here reads or makes, in Hz: twice the fastest converter on the market.
pub const MAX_SAMPLE_RATE: u32 = 768_000;

/// Refuses a rate of nothing or beyond [`MAX_SAMPLE_RATE`].
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the rate.
pub fn check_rate(rate: u32) -> Result<()> {
    match rate {
        1..=MAX_SAMPLE_RATE => Ok(()),
        _ => Err(Error::input(format!("a rate of {rate} Hz: 1 to {MAX_SAMPLE_RATE} Hz wanted"))),
    }
}

/// Refuses to resample between rates that are not rates, or more than 256-fold: a small file that claims one sample
/// a second must not ask for all memory.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the rates.
fn check_rates(from: u32, to: u32) -> Result<()> {
    check_rate(from)?;
    check_rate(to)?;
    match from.max(to) / from.min(to) {
        0..=256 => Ok(()),
        _ => Err(Error::input(format!("from {from} Hz to {to} Hz: rates at most 256-fold apart wanted"))),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Refuses samples that are not numbers or without end.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that says where the first one is.
pub fn check_finite(samples: &[f32]) -> Result<()> {
    match samples.iter().position(|sample| !sample.is_finite()) {
        None => Ok(()),
        Some(at) => {
            Err(Error::input(format!("sample {at} is {}: every sample must be a number", samples[at])))
        }
    }
}

/// How many frames `sound` has, after a check that a model can use it: a rate, a channel, a frame, lists of one
/// length and numbers throughout.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names what is wrong, and the channel.
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
        return Err(Error::input("a sound without channels"));
    };
    if first.is_empty() {
        return Err(Error::input("a sound without samples"));
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

/// The mean of all channels, or the only one.
///
/// ```
/// use fauna_shared::{audio, item::Sound};
/// let sound = Sound { rate: 8000, channels: vec![vec![1.0, 0.5], vec![0.0, 0.5]] };
/// assert_eq!(audio::mono(sound)?, [0.5, 0.5]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for a sound that [`check`] refuses.
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

/// The same sound with `wanted` channels, one or two, by the rule of audiocraft's `convert_audio_channels`: mono is the
/// mean of all channels, stereo of a mono sound the same left and right, of more channels the first two.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for another number of channels, and for a sound that [`check`] refuses.
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
        _ => Err(Error::input(format!("{wanted} channels asked for of {found}: mono or stereo can be made"))),
    }
}
