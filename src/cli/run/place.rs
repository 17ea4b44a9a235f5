//! Where pictures, sounds and codes go.

use std::path::{Path, PathBuf};

use fauna::{Error, Result};

use crate::cli::output;

/// Where pictures, sounds and codes go.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Where pictures, sounds and codes go")]
pub struct Place {
    /// The file: FILE.png for pictures, FILE.wav for a sound, which grows as it is made, FILE.safetensors for codes. `-` writes a sound's bare
    /// samples (16 bits, little-endian, channels interleaved) to standard output, for a player. Several prompts make
    /// FILE-1.wav, FILE-2.wav, …
    #[arg(long = "out", value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// Draw a plot into this file: history, forecasts and intervals of series, of many the first; the energy of atoms that
    /// relax or move.
    #[arg(long, value_name = "FILE.png")]
    pub plot: Option<PathBuf>,
    /// Of a sound, how loud it is in the end: peak (as the model made it, turned down if it would clip), loudness
    /// (-14 LUFS, as streaming services play it) or keep (as the model made it, cut beyond full scale). Of a forecast,
    /// intervals that hold so many of a hundred values: 80,90.
    #[arg(long, value_name = "LEVEL", default_value = "peak")]
    pub level: Level,
}

/// What `--level` says of a sound, or of a forecast.
#[derive(Debug, Clone, PartialEq)]
pub enum Level {
    Sound(LevelName),
    Percents(Vec<f64>),
}

impl Default for Level {
    fn default() -> Self {
        Self::Sound(LevelName::default())
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(name) = <LevelName as clap::ValueEnum>::from_str(text, true) {
            return Ok(Self::Sound(name));
        }
        let percents = text.split(',').map(|part| part.trim().parse::<f64>());
        let percents: std::result::Result<Vec<f64>, _> = percents.collect();
        percents
            .map(Self::Percents)
            .map_err(|_| "peak, loudness or keep, or numbers between commas: 80,90".to_string())
    }
}

impl Level {
    /// How loud a sound is to be.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) for the levels of a forecast.
    #[cfg(feature = "audio")]
    pub fn loudness(&self) -> Result<LevelName> {
        match self {
            Self::Sound(name) => Ok(*name),
            Self::Percents(_) => {
                Err(Error::input("numbers after --level are intervals of a forecast, and this is a sound")
                    .hint("--level peak, loudness or keep"))
            }
        }
    }

    /// The intervals of a forecast; none if nothing was said.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) for the level of a sound.
    #[cfg(feature = "science")]
    pub fn percents(&self) -> Result<Vec<f64>> {
        match self {
            Self::Percents(levels) => Ok(levels.clone()),
            Self::Sound(LevelName::Peak) => Ok(Vec::new()),
            Self::Sound(_) => {
                Err(Error::input("this --level is of a sound, and a forecast is made").hint("--level 80,90"))
            }
        }
    }
}

/// How loud a written sound is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LevelName {
    /// As the model made it; turned down if it would clip.
    #[default]
    Peak,
    /// -14 LUFS, as streaming services play it.
    Loudness,
    /// As the model made it; what is beyond full scale is cut.
    Keep,
}

impl Place {
    /// Whether samples go to standard output.
    pub fn is_stdout(&self) -> bool {
        self.path.as_deref() == Some(Path::new("-"))
    }

    /// Whether the file is named as one of codes.
    #[cfg(feature = "vision")]
    pub fn is_codes(&self) -> bool {
        let ending = self.path.as_deref().and_then(Path::extension);
        ending.is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors"))
    }

    /// One place for each of `count` prompts; nothing is there yet.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if no file is named, or one is there and may not be replaced.
    pub fn numbered(&self, count: usize) -> Result<Vec<Self>> {
        let Some(path) = &self.path else {
            return Err(Error::input("this model writes pictures, sounds or codes, and no file is named").hint(
                "name one: --out FILE.png, --out FILE.wav, --out FILE.safetensors for codes, --out - for a player",
            ));
        };
        if self.is_stdout() {
            return match count {
                1 => Ok(vec![self.clone()]),
                _ => Err(Error::input("several sounds at once on standard output")
                    .hint("name a file: --out FILE.wav")),
            };
        }
        let places: Vec<Self> = (1..=count)
            .map(|number| Self {
                path: Some(if count == 1 { path.clone() } else { numbered(path, number) }),
                ..self.clone()
            })
            .collect();
        for path in places.iter().filter_map(|place| place.path.as_deref()) {
            output::check_free(path, self.force)?;
        }
        Ok(places)
    }

    /// The file, which must end in `ending` to hold `what`.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if it ends in another way or there is none.
    pub fn file(&self, what: &str, ending: &str) -> Result<&Path> {
        match &self.path {
            Some(path) if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending)) => {
                Ok(path)
            }
            path => Err(Error::input(format!("{what} are written as .{ending}"))
                .at(path.clone().unwrap_or_default())
                .hint(format!("name such a file: --out FILE.{ending}"))),
        }
    }
}

/// `song.wav`, 2: `song-2.wav`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(ending) => format!("{stem}-{number}.{}", ending.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_prompts_have_numbered_files() {
        let place = Place { path: Some("a.b/song.wav".into()), ..Place::default() };
        let paths = |count| -> Vec<PathBuf> {
            place.numbered(count).unwrap().into_iter().filter_map(|place| place.path).collect()
        };
        assert_eq!(paths(1), [PathBuf::from("a.b/song.wav")]);
        assert_eq!(paths(2), [PathBuf::from("a.b/song-1.wav"), PathBuf::from("a.b/song-2.wav")]);
    }
}
