//! Which releases' own configs are among the fixtures of `tests/releases`, and so were opened as released.

/// Every file of the fixtures: release, file, complete or partial, where it was read.
const SOURCES: &str = include_str!("../tests/releases/SOURCES.tsv");

/// How much of a release's own config the fixtures hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnConfig {
    /// Nothing was found in public material: the release is expected to open by its family's rules.
    Unseen,
    /// A part of its keys, or a copy that another program saved again.
    Partial,
    /// The file as released.
    Complete,
}

impl OwnConfig {
    /// What the fixtures hold of the release `id`.
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
        // The config that shapes the network counts, not that of a processor.
        let network = files.filter(|(file, _)| ["config.json", "open_clip_config.json"].contains(file));
        let extents =
            network.map(|(_, extent)| if extent == "complete" { Self::Complete } else { Self::Partial });
        extents.max().unwrap_or(Self::Unseen)
    }

    /// In a word, as lists print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Partial => "partial",
            Self::Complete => "complete",
        }
    }
}
