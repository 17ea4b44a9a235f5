//! Output files of images, audio, codes and other results.

use std::path::{Path, PathBuf};

use fauna::{Error, Result};

use crate::cli::output;

/// Output file of images, audio and codes.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Path of the file; `-` is standard output.
    pub path: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
    /// Loudness of the written audio.
    pub loudness: Loudness,
}

/// Loudness normalization of an audio file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Loudness {
    /// Reduce the volume only if the audio would clip.
    #[default]
    Peak,
    /// Normalize to -14 LUFS, the level of streaming services.
    Streaming,
    /// Keep the model's level; samples beyond full scale are clipped.
    Keep,
}

impl Place {
    /// Creates an output file; `force` allows overwriting it.
    pub fn new(path: Option<PathBuf>, force: bool) -> Self {
        Self { path, force, ..Self::default() }
    }

    /// Returns whether the output is standard output.
    pub fn is_stdout(&self) -> bool {
        self.path.as_deref() == Some(Path::new("-"))
    }

    /// Returns one output file for each of `count` prompts, and checks that they may be written.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if no file is given, or one exists and may not be overwritten.
    pub fn numbered(&self, count: usize) -> Result<Vec<Self>> {
        let Some(path) = &self.path else {
            return Err(Error::input("no output file given").hint(
                "use --out FILE.png, --out FILE.wav, --out FILE.safetensors for codes, or --out - for raw samples",
            ));
        };
        if self.is_stdout() {
            return match count {
                1 => Ok(vec![self.clone()]),
                _ => Err(Error::input("cannot write several audio outputs to standard output")
                    .hint("use --out FILE.wav")),
            };
        }
        let paths = paths(path, count);
        paths.iter().try_for_each(|path| output::check_free(path, self.force))?;
        Ok(paths.into_iter().map(|path| Self { path: Some(path), ..self.clone() }).collect())
    }

    /// Returns the path of the file, which must have the extension `ending` of `what`.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if it has another extension or no file is given.
    pub fn file(&self, what: &str, ending: &str) -> Result<&Path> {
        match &self.path {
            Some(path) if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending)) => {
                Ok(path)
            }
            path => Err(Error::input(format!("{what} are written as .{ending}"))
                .at(path.clone().unwrap_or_default())
                .hint(format!("use --out FILE.{ending}"))),
        }
    }
}

/// Returns one path for each of `count` prompts: `path`, or for several numbered ones.
pub fn paths(path: &Path, count: usize) -> Vec<PathBuf> {
    match count {
        1 => vec![path.to_path_buf()],
        _ => (1..=count).map(|number| numbered(path, number)).collect(),
    }
}

/// Inserts a number before the extension: `song.wav` and 2 give `song-2.wav`.
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
