//! Colour quantization.

use std::collections::HashMap;

use crate::item::Image;

/// Number of colours of a palette; the remaining one of a GIF's 256 is transparent.
const COLOURS: usize = 255;

/// Number of bits per channel by which colours are distinguished if there are too many.
const BITS: u32 = 6;

type Rgb = [u8; 3];

/// A palette, and the palette index of each colour.
pub(super) struct Palette {
    colours: Vec<Rgb>,
    /// Palette index by the colour itself if `exact`, else by its upper bits.
    places: HashMap<Rgb, u8>,
    exact: bool,
}

/// A box of colours of the median cut, with the number of pixels of each.
struct Group {
    colours: Vec<(Rgb, u64)>,
}

impl Palette {
    /// Creates the palette of all `frames`.
    pub(super) fn of(frames: &[Image]) -> Self {
        let pixels = || frames.iter().flat_map(|frame| frame.rgb.chunks_exact(3));
        let mut counts: HashMap<Rgb, u64> = HashMap::new();
        for pixel in pixels() {
            *counts.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
            if counts.len() > COLOURS {
                break;
            }
        }
        let exact = counts.len() <= COLOURS;
        if exact {
            let mut colours: Vec<Rgb> = counts.into_keys().collect();
            colours.sort_unstable();
            let places = colours.iter().zip(0..).map(|(colour, place)| (*colour, place)).collect();
            return Self { colours, places, exact };
        }
        // Colours with the same upper bits are represented by their mean.
        let mut sums: HashMap<Rgb, ([u64; 3], u64)> = HashMap::new();
        for pixel in pixels() {
            let (sum, count) = sums.entry(cell([pixel[0], pixel[1], pixel[2]])).or_default();
            sum.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += u64::from(*level));
            *count += 1;
        }
        let mean = |(cell, (sum, count)): (&Rgb, &([u64; 3], u64))| {
            (*cell, (sum.map(|sum| ((sum + count / 2) / count) as u8), *count))
        };
        let mut cells: Vec<(Rgb, (Rgb, u64))> = sums.iter().map(mean).collect();
        cells.sort_unstable();
        let colours = halved(cells.iter().map(|(_, colour)| *colour).collect());
        let places = cells.iter().map(|(cell, (colour, _))| (*cell, nearest(&colours, *colour))).collect();
        Self { colours, places, exact }
    }

    /// Returns the colour table, `(colours, 3)`, including the transparent entry.
    pub(super) fn table(&self) -> Vec<u8> {
        let mut table = self.colours.concat();
        table.extend([0; 3]);
        table
    }

    /// Returns the index of the transparent entry.
    pub(super) fn transparent(&self) -> u8 {
        self.colours.len() as u8
    }

    /// Returns the palette index of each pixel of one of the frames.
    pub(super) fn indices(&self, frame: &Image) -> Vec<u8> {
        let place = |pixel: &[u8]| {
            let colour = [pixel[0], pixel[1], pixel[2]];
            let key = if self.exact { colour } else { cell(colour) };
            self.places.get(&key).copied().unwrap_or_else(|| nearest(&self.colours, colour))
        };
        frame.rgb.chunks_exact(3).map(place).collect()
    }
}

/// Returns the upper bits of a colour.
fn cell(colour: Rgb) -> Rgb {
    colour.map(|level| level >> (8 - BITS))
}

fn nearest(colours: &[Rgb], wanted: Rgb) -> u8 {
    let far = |colour: &Rgb| -> u32 {
        colour.iter().zip(wanted).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
    };
    let best = colours.iter().enumerate().min_by_key(|(_, colour)| far(colour));
    best.map_or(0, |(place, _)| place as u8)
}

/// Reduces `colours` to at most [`COLOURS`]: the box with the largest error is split until there are enough boxes, each
/// represented by its mean.
fn halved(colours: Vec<(Rgb, u64)>) -> Vec<Rgb> {
    let mut groups = vec![Group { colours }];
    while groups.len() < COLOURS {
        let worst = (0..groups.len()).max_by(|a, b| groups[*a].error().0.total_cmp(&groups[*b].error().0));
        let Some(worst) = worst.filter(|worst| groups[*worst].colours.len() > 1) else { break };
        let (low, high) = groups.swap_remove(worst).split();
        groups.extend([low, high]);
    }
    groups.iter().map(Group::mean).collect()
}

impl Group {
    fn total(&self) -> u64 {
        self.colours.iter().map(|(_, count)| count).sum()
    }

    fn mean_of(&self, channel: usize) -> f64 {
        let sum: f64 = self.colours.iter().map(|(c, count)| f64::from(c[channel]) * *count as f64).sum();
        sum / self.total().max(1) as f64
    }

    fn mean(&self) -> Rgb {
        std::array::from_fn(|channel| self.mean_of(channel).round() as u8)
    }

    /// Returns the largest squared error of a channel, and that channel. Colours are weighted by the square root of
    /// their number of pixels, so that small bright areas are kept.
    fn error(&self) -> (f64, usize) {
        let spread = |channel: usize| {
            let mean = self.mean_of(channel);
            let weight = |count: &u64| (*count as f64).sqrt();
            self.colours.iter().map(|(c, n)| (f64::from(c[channel]) - mean).powi(2) * weight(n)).sum::<f64>()
        };
        let spreads = [0, 1, 2].map(|channel| (spread(channel), channel));
        spreads.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0))
    }

    /// Splits the box at the mean of the channel with the largest error.
    fn split(mut self) -> (Self, Self) {
        let channel = self.error().1;
        self.colours.sort_unstable_by_key(|(colour, _)| (colour[channel], *colour));
        let mean = self.mean_of(channel);
        let middle = self.colours.partition_point(|(colour, _)| f64::from(colour[channel]) <= mean);
        let high = self.colours.split_off(middle.clamp(1, self.colours.len() - 1));
        (self, Self { colours: high })
    }
}
