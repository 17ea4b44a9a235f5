//! Which releases are tested with their published configs, from the fixtures of `tests/releases`.

/// All files of the fixtures: release, file, extent (complete or partial), source.
const SOURCES: &str = include_str!("../tests/releases/SOURCES.tsv");

/// How much of the published config of a release the fixtures hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnConfig {
    /// No published config was found; the release should load like the others of its family.
    Unseen,
    /// Some of the keys, or a copy that another program has re-saved.
    Partial,
    /// The published file.
    Complete,
}

impl OwnConfig {
    /// Returns how much of the config of release `id` the fixtures hold.
    ///
    /// ```
    /// use fauna::releases::OwnConfig;
    /// assert_eq!(OwnConfig::of("openai-community/gpt2"), OwnConfig::Complete);
    /// assert_eq!(OwnConfig::of("nobody/nothing"), OwnConfig::Unseen);
    /// ```
    pub fn of(id: &str) -> Self {
        let files = SOURCES.lines().skip(1).filter_map(|line| {
            let mut fields = line.split('\t');
            let (release, file, extent) = (fields.next()?, fields.next()?, fields.next()?);
            (release == id && file.ends_with("config.json")).then_some((file, extent))
        });
        // Only the model config counts, not the processor's.
        let network = files.filter(|(file, _)| ["config.json", "open_clip_config.json"].contains(file));
        let extents =
            network.map(|(_, extent)| if extent == "complete" { Self::Complete } else { Self::Partial });
        extents.max().unwrap_or(Self::Unseen)
    }

    /// Name of the variant, as `fauna list` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Partial => "partial",
            Self::Complete => "complete",
        }
    }
}
