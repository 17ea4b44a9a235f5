//! The stops of the tour.

use fauna::builtin;

/// A stop of the tour.
#[derive(Debug)]
pub struct Stop {
    /// Its name, for `--only`.
    pub name: &'static str,
    pub title: &'static str,
    /// What happens, in a sentence or two.
    pub about: &'static str,
    /// The built-in models that it shows.
    pub models: &'static [&'static str],
    /// A checkpoint in the cache that it needs as well.
    pub checkpoint: Option<&'static str>,
    /// Files that the commands read: name and content.
    pub files: &'static [(&'static str, &'static [u8])],
    pub steps: &'static [Step],
    /// A command with a release of full size.
    pub release: &'static str,
}

/// A command of a stop.
#[derive(Debug)]
pub struct Step {
    /// The command and its arguments, without `fauna`.
    pub line: &'static [&'static str],
    /// Whether the page shows its output.
    pub shows_output: bool,
    /// The files that it writes: what they are, their names, and captions.
    pub writes: &'static [(Kind, &'static str, &'static str)],
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PNG or GIF.
    Picture,
    /// PNG of few pixels, which the page enlarges.
    Small,
    /// WAV.
    Sound,
    /// Anything else, which the page does not show.
    Data,
}

impl Step {
    /// The command as one types it.
    pub fn command(&self) -> String {
        let quoted = self.line.iter().map(|word| {
            match word.contains([' ', '"', '\'', '(', ')', '*', '<', '>', '$', '#']) {
                true => format!("'{}'", word.replace('\'', "'\\''")),
                false => word.to_string(),
            }
        });
        format!("fauna {}", quoted.collect::<Vec<_>>().join(" "))
    }

    /// The names of the files that it writes.
    pub fn files(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.writes.iter().map(|(_, name, _)| *name)
    }
}

/// The stops whose models are in this build.
pub fn all() -> Vec<&'static Stop> {
    let has_models = |stop: &&Stop| stop.models.iter().all(|name| builtin::find(name).is_some());
    STOPS.iter().filter(has_models).collect()
}

const STOPS: &[Stop] = &[Stop {
    name: "search",
    title: "Search by meaning",
    about: "MiniLM embeds sentences as vectors; near ones mean nearly the same. The queries share few words with the \
                sentences that they find.",
    models: &["minilm"],
    checkpoint: None,
    files: &[
        ("sentences.txt", include_bytes!("../../../../assets/tour/sentences.txt")),
        ("fourteen.txt", include_bytes!("../../../../assets/tour/fourteen.txt")),
    ],
    steps: &[
        Step {
            line: &["search", "minilm", "sentences.txt", "something to help a child sleep", "--top", "3"],
            shows_output: true,
            writes: &[],
        },
        Step {
            line: &["search", "minilm", "sentences.txt", "bad news for investors", "--top", "3"],
            shows_output: true,
            writes: &[],
        },
        Step {
            line: &["compare", "minilm", "--input", "fourteen.txt", "--png", "similarity.png"],
            shows_output: false,
            writes: &[(Kind::Picture, "similarity.png", "Cosine similarity of fourteen sentences")],
        },
    ],
    release: "fauna search Qwen/Qwen2.5-0.5B sentences.txt \"bad news for investors\"",
}];
