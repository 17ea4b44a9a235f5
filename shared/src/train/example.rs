//! What a model is trained on: examples of all modalities.

use serde_json::Value;

use crate::item::{Atoms, Image, Item, Prompt, Sound, Turn};
use crate::model::History;

/// One example of a data set.
///
/// ```
/// use fauna_shared::train::{Example, Target};
/// let example = Example::labelled("a fine film".into(), Target::Class("positive".to_string()));
/// assert_eq!(example.kind(), "labelled");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Example {
    /// A text for language modelling: every token is learned.
    Text(String),
    /// A prompt and what the model shall answer; the tokens of the answer are learned.
    Completion {
        /// Items in order (texts, images and sounds interleaved), or the turns before the answer.
        prompt: Prompt,
        /// The answer.
        completion: String,
    },
    /// A conversation; the turns of the assistant are learned.
    Chat {
        /// The turns in order, at least one of them of the assistant. A [`Thought`](Item::Thought) is the reasoning of a
        /// turn before its text.
        turns: Vec<Turn>,
        /// The tools that the model may call, as JSON schemas; empty without tools.
        tools: Vec<Value>,
    },
    /// An item and its class, its classes or its number.
    Labelled {
        /// A text, image, sound or nucleotide sequence.
        item: Item,
        /// The second text of a pair, for models that classify pairs.
        second: Option<Item>,
        /// What is learned.
        label: Target,
    },
    /// Items that belong together, for embeddings: two texts, or an image and its caption.
    Pair {
        /// The first item: a query, an image.
        anchor: Item,
        /// What belongs to it.
        positive: Item,
        /// What does not, if the data set has it.
        negative: Option<Item>,
    },
    /// Two items and how similar they are.
    Scored {
        /// The first item.
        first: Item,
        /// The second item.
        second: Item,
        /// The similarity, finite, in the scale of the data set.
        score: f64,
    },
    /// A time series.
    Series {
        /// Name of the series; empty if it is the only one.
        id: String,
        /// Values and covariates at every step, NaN for gaps. Covariates have no future.
        history: History,
    },
    /// A step of an episode of a robot.
    Step(Step),
    /// An atomic structure and what a potential shall predict, each if known, at least one of them.
    Atoms {
        /// The structure.
        atoms: Atoms,
        /// Energy in eV.
        energy: Option<f64>,
        /// Forces in eV/Å, `(atoms, 3)`.
        forces: Option<Vec<[f64; 3]>>,
        /// Stress in eV/Å³, in Voigt order xx, yy, zz, yz, xz, xy, positive under tension.
        stress: Option<[f64; 6]>,
    },
    /// A nucleotide sequence of A, C, G, T, U and ambiguity codes.
    Gene(String),
    /// A sound, for audio codecs and music models.
    Sound {
        /// The sound.
        sound: Sound,
        /// Its description, if the data set has one.
        caption: Option<String>,
    },
    /// An image alone, for image codecs.
    Image(Image),
}

impl Example {
    /// An item with what is learned of it.
    pub fn labelled(item: Item, label: Target) -> Self {
        Self::Labelled { item, second: None, label }
    }

    /// The kind of example, for messages: `text`, `completion`, `chat`, `labelled`, `pair`, `scored`, `series`, `step`,
    /// `atoms`, `gene`, `sound`, `image`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Completion { .. } => "completion",
            Self::Chat { .. } => "chat",
            Self::Labelled { .. } => "labelled",
            Self::Pair { .. } => "pair",
            Self::Scored { .. } => "scored",
            Self::Series { .. } => "series",
            Self::Step(_) => "step",
            Self::Atoms { .. } => "atoms",
            Self::Gene(_) => "gene",
            Self::Sound { .. } => "sound",
            Self::Image(_) => "image",
        }
    }
}

/// What is learned of an item.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// One class.
    Class(String),
    /// Any number of classes.
    Classes(Vec<String>),
    /// A finite number.
    Value(f64),
}

/// A step of an episode of a robot: what is seen, and the actions that follow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Names of the cameras and their images, in order of the names.
    pub images: Vec<(String, Image)>,
    /// Instruction: "pick up the red block".
    pub instruction: String,
    /// Proprioceptive state, in the units of the data set; empty if there is none.
    pub state: Vec<f64>,
    /// The action of this step and those of the next ones, `(horizon, degrees of freedom)`, finite, in the units of the
    /// data set. After the end of the episode its last action is repeated.
    pub actions: Vec<Vec<f64>>,
    /// Number of actions at the end of [`actions`](Self::actions) that are after the end of the episode.
    pub padding: usize,
    /// Index of the episode in the data set.
    pub episode: usize,
    /// Index of the step in the episode.
    pub frame: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_shared_between_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Example>();
    }
}
