//! Pictures of mel spectrograms: time from left to right, frequency upwards on the mel scale, darker for more energy.

use std::borrow::Cow;
use std::path::Path;

use fauna::sound::spectrum::{Log, Measure, Mel, MelConfig, MelScale, SpectrumConfig};
use fauna::{Error, ErrorKind, Result, Sound, sound};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plot::{mark_words, round_marks};
use super::{font, png};

/// `Software` text of the PNG file, by which later runs recognize it.
const MAKER: &str = "fauna spectrogram";

// Lengths in pixels.
const WIDTH: i32 = 1200;
const HEIGHT: i32 = 460;
const LEFT: i32 = 84;
const RIGHT: i32 = 24;
const TOP: i32 = 52;
const BELOW: i32 = 56;
const BODY: i32 = 16;

/// Number of mel bands.
const BANDS: usize = 128;
/// Range of the colours, in decibels below the loudest point.
const RANGE: f32 = 70.0;
/// Maximum number of frames that are computed: a longer sound has a longer hop.
const MOST_FRAMES: usize = 4000;
/// Frequencies that are marked, in Hz.
const MARKS: [f64; 9] = [0.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16_000.0, 32_000.0];

const INK: RGBColor = RGBColor(38, 38, 46);
const PALE: RGBColor = RGBColor(110, 110, 122);

/// Checks that a spectrogram may be written at `path`: no file is there, or an earlier spectrogram.
///
/// # Errors
/// [`Input`](ErrorKind::Input) otherwise.
pub fn check_free(path: &Path, force: bool) -> Result<()> {
    png::check_free(path, force, MAKER)
}

/// Writes the mel spectrogram of `sound`, its channels mixed, as a PNG of `title` at `path`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) for a sound without samples, or if a file exists that is not a spectrogram of this program
/// and `force` is off.
pub fn write(path: &Path, force: bool, title: &str, sound: Sound) -> Result<()> {
    png::write(path, force, MAKER, &draw(title, sound)?, [WIDTH as usize, HEIGHT as usize])
}

/// Decibels of each frame and band, relative to the loudest point.
fn decibels(samples: &[f32], rate: u32) -> Result<Vec<Vec<f32>>> {
    // About 64 ms, for a resolution of 16 Hz.
    let n_fft = (rate as usize * 64 / 1000).next_power_of_two().max(256);
    let mut samples = Cow::Borrowed(samples);
    if samples.len() < n_fft {
        samples.to_mut().resize(n_fft, 0.0);
    }
    let hop = (n_fft / 8).max(samples.len().div_ceil(MOST_FRAMES));
    let spectrum = SpectrumConfig { n_fft, hop, measure: Measure::Power, normalized: true };
    let bands = MelConfig {
        bands: BANDS,
        lowest: 0.0,
        highest: f64::from(rate) / 2.0,
        scale: MelScale::Slaney,
        by_width: true,
    };
    let mut frames = Mel::new(spectrum, &bands, rate)?.log(&samples, 1e-12, Log::Ten)?;
    let loudest = frames.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max);
    frames.iter_mut().flatten().for_each(|value| *value = 10.0 * (*value - loudest));
    Ok(frames)
}

/// Draws the pixels.
fn draw(title: &str, sound: Sound) -> Result<Vec<u8>> {
    font::ready()?;
    let rate = sound.rate;
    let samples = sound::mono(sound)?;
    if samples.len() < 2 {
        return Err(Error::input("the sound has no samples to draw a spectrogram of"));
    }
    let frames = decibels(&samples, rate)?;
    let seconds = samples.len() as f64 / f64::from(rate);
    let mut pixels = vec![255; (WIDTH * HEIGHT * 3) as usize];
    fill(&mut pixels, &frames);
    mark(&mut pixels, title, seconds, f64::from(rate) / 2.0)
        .map_err(|e| Error::new(ErrorKind::Compute, format!("cannot draw: {e}")))?;
    Ok(pixels)
}

/// Fills the area of the axes with the colours of the nearest frames and bands.
fn fill(pixels: &mut [u8], frames: &[Vec<f32>]) {
    let (wide, high) = ((WIDTH - LEFT - RIGHT) as usize, (HEIGHT - TOP - BELOW) as usize);
    for y in 0..high {
        let band = (high - 1 - y) * BANDS / high;
        for x in 0..wide {
            let frame = x * frames.len() / wide;
            let at = 3 * ((TOP as usize + y) * WIDTH as usize + LEFT as usize + x);
            let level = 1.0 + frames[frame][band] / RANGE;
            pixels[at..at + 3].copy_from_slice(&colour(level));
        }
    }
}

/// The colour of a level from 0 (almost white) to 1 (almost black).
fn colour(level: f32) -> [u8; 3] {
    const STOPS: [[f32; 3]; 5] = [
        [250.0, 250.0, 252.0],
        [196.0, 214.0, 232.0],
        [92.0, 138.0, 196.0],
        [104.0, 44.0, 128.0],
        [28.0, 8.0, 40.0],
    ];
    let place = level.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let below = (place as usize).min(STOPS.len() - 2);
    let share = place - below as f32;
    std::array::from_fn(|i| (STOPS[below][i] + (STOPS[below + 1][i] - STOPS[below][i]) * share) as u8)
}

fn mark(
    pixels: &mut [u8],
    title: &str,
    seconds: f64,
    highest: f64,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = BitMapBackend::with_buffer(pixels, (WIDTH as u32, HEIGHT as u32)).into_drawing_area();
    let style = |size: i32, colour: RGBColor, horizontal: HPos| {
        ("sans-serif", size).into_font().color(&colour).pos(Pos::new(horizontal, VPos::Center))
    };
    area.draw(&Text::new(
        font::fitting(title, 22, WIDTH - LEFT - RIGHT),
        (LEFT, 26),
        style(22, INK, HPos::Left),
    ))?;
    let bottom = HEIGHT - BELOW;
    let thin = PALE.stroke_width(1);
    for hz in MARKS.into_iter().filter(|hz| *hz <= highest) {
        let share = MelScale::Slaney.mel(hz) / MelScale::Slaney.mel(highest);
        let y = bottom - (share * f64::from(bottom - TOP)) as i32;
        area.draw(&PathElement::new([(LEFT - 6, y), (LEFT, y)], thin))?;
        area.draw(&Text::new(format!("{hz:.0} Hz"), (LEFT - 12, y), style(BODY, PALE, HPos::Right)))?;
    }
    let (marks, decimals) = round_marks(0.0, seconds, 10);
    for mark in marks {
        let x = LEFT + (mark / seconds * f64::from(WIDTH - LEFT - RIGHT)) as i32;
        area.draw(&PathElement::new([(x, bottom), (x, bottom + 6)], thin))?;
        let words = format!("{} s", mark_words(mark, decimals, seconds));
        area.draw(&Text::new(words, (x, bottom + 22), style(BODY, PALE, HPos::Center)))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone of `hz` at 16 kHz.
    fn tone(hz: f64, samples: usize) -> Sound {
        let wave = (0..samples).map(|i| (i as f64 / 16_000.0 * hz * std::f64::consts::TAU).sin() as f32);
        Sound { rate: 16_000, channels: vec![wave.collect()] }
    }

    #[test]
    fn a_tone_is_loudest_in_its_band() {
        let frames = decibels(&tone(1000.0, 16_000).channels[0], 16_000).unwrap();
        let middle = &frames[frames.len() / 2];
        let loudest = (0..BANDS).max_by(|a, b| middle[*a].total_cmp(&middle[*b])).unwrap();
        let share = MelScale::Slaney.mel(1000.0) / MelScale::Slaney.mel(8000.0);
        assert!((loudest as f64 / BANDS as f64 - share).abs() < 0.03, "band {loudest}");
        assert!(middle[loudest] > middle[loudest / 3] + 40.0);
    }

    #[test]
    fn short_and_long_sounds_are_drawn_and_an_empty_one_is_refused() {
        for samples in [2, 500, 200_000] {
            assert!(
                draw("a tone", tone(440.0, samples)).unwrap().iter().any(|value| *value < 200),
                "{samples}"
            );
        }
        assert!(draw("nothing", tone(440.0, 0)).is_err());
    }
}
