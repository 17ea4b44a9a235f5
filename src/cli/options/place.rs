//! Where pictures, sounds, codes and other results go.

use std::path::{Path, PathBuf};

use fauna::{Error, Result};

use crate::cli::output;

/// Where pictures, sounds and codes go.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The file; `-` is standard output.
    pub path: Option<PathBuf>,
    /// Whether a file that is there is replaced.
    pub force: bool,
    /// How loud a sound is written.
    pub loudness: Loudness,
}

/// How loud a written sound is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Loudness {
    /// As the model made it; turned down if it would clip.
    #[default]
    Peak,
    /// -14 LUFS, as streaming services play it.
    Streaming,
    /// As the model made it; what is beyond full scale is cut.
    Keep,
}

impl Place {
    /// A file, and whether it may be replaced.
    pub fn new(path: Option<PathBuf>, force: bool) -> Self {
        Self { path, force, ..Self::default() }
    }

    /// Whether samples go to standard output.
    pub fn is_stdout(&self) -> bool {
        self.path.as_deref() == Some(Path::new("-"))
    }

    /// One place for each of `count` prompts; nothing is there yet.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if no file is named, or one is there and may not be replaced.
    pub fn numbered(&self, count: usize) -> Result<Vec<Self>> {
        let Some(path) = &self.path else {
            return Err(Error::input("no file is named for what the model makes").hint(
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
