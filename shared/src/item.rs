//! What goes into a model and comes out of it, whatever the modality.

use std::ops::Range;

use candle_core::Tensor;
use serde::Serialize;

use crate::{Error, Result};

/// Named tensors, by the reference's own argument or output names.
pub type Tensors = std::collections::BTreeMap<String, Tensor>;

/// A kind of data a model reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Words.
    Text,
    /// Pictures.
    Image,
    /// Sound.
    Sound,
    /// Movements of a robot.
    Action,
    /// Numbers over time.
    Series,
    /// Atoms in space.
    Atoms,
    /// Nucleotide sequences.
    Gene,
    /// Vectors of a fixed width: what an encoder makes of its input.
    Vector,
    /// Labels with scores.
    Label,
    /// Codes of a codec: what a sound or a picture is stored as.
    Codes,
}

impl std::fmt::Display for Modality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Sound => "sound",
            Self::Action => "action",
            Self::Series => "series",
            Self::Atoms => "atoms",
            Self::Gene => "gene",
            Self::Vector => "vector",
            Self::Label => "label",
            Self::Codes => "codes",
        })
    }
}

/// One piece of input or output.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Item {
    /// A text, or a piece of one while it is being written.
    Text(String),
    /// What a model says to itself before it answers, piece by piece: no part of the answer.
    Thought(String),
    /// What the user should know of the prompt, such as how much of it was read: no part of the answer.
    Note(String),
    /// A label, a filled-in word or a span, with the model's score.
    Label(Label),
    /// A picture.
    Image(Image),
    /// A sound.
    Sound(Sound),
    /// A movement: one number per degree of freedom, in the units the model's card names.
    Action(Vec<f64>),
    /// Values over time, one row a series: `(series, steps)`; NaN marks a gap.
    Series(Vec<Vec<f32>>),
    /// Atoms in space.
    Atoms(Atoms),
    /// A nucleotide sequence over A, C, G, T and ambiguity codes.
    Gene(String),
    /// A sound or a picture as a codec stores it: tensors by the names the codec's reference gives them.
    Codes(Tensors),
}

impl Item {
    /// Which modality this is.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Text(_) | Self::Thought(_) | Self::Note(_) => Modality::Text,
            Self::Label(_) => Modality::Label,
            Self::Image(_) => Modality::Image,
            Self::Sound(_) => Modality::Sound,
            Self::Action(_) => Modality::Action,
            Self::Series(_) => Modality::Series,
            Self::Atoms(_) => Modality::Atoms,
            Self::Gene(_) => Modality::Gene,
            Self::Codes(_) => Modality::Codes,
        }
    }

    /// The note that `cut` tokens of a text were not read; none if none were.
    pub fn left_out(cut: usize) -> Option<Self> {
        (cut > 0).then(|| Self::Note(format!("{} were left out", beyond(cut))))
    }

    /// The text of a text item.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for any other modality.
    pub fn text(&self) -> Result<&str> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(Error::input(format!("this model reads text, not {}", other.modality()))),
        }
    }
}

/// The words for `cut` tokens that a model does not read.
pub fn beyond(cut: usize) -> String {
    format!("{cut} tokens beyond the longest text this model reads")
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<String> for Item {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A label with the model's score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Label {
    /// The class, the word or the text of the span.
    pub label: String,
    /// The probability, 0 to 1; the number itself where the release makes none of it (a regression, a cross-encoder).
    pub score: f32,
    /// Which bytes of the input it speaks of, where it speaks of a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Range<usize>>,
}

/// A picture: `height` rows of `width` pixels of red, green and blue, 0 to 255.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes, row by row.
    pub rgb: Vec<u8>,
}

/// The most pixels of a picture that are decoded unless more are allowed, and the most that a picture made here may
/// have: where Pillow first warns. They take 268 MB of bytes, and up to three times that while they are decoded.
pub const MAX_PIXELS: usize = 89_478_485;

/// What becomes of pixels that can be seen through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// They lie over white: what a person sees on a page, and what transformers 5 gives its processors.
    #[default]
    OverWhite,
    /// They keep their colours and are seen through no more, as Pillow's `convert("RGB")` has it.
    Dropped,
}

/// How the file of a picture is read for a model: as its reference reads it, before any processor sees it.
///
/// ```
/// use fauna_shared::item::{Alpha, ImageOptions};
/// assert_eq!(ImageOptions::default(), ImageOptions::transformers());
/// let large = ImageOptions { max_pixels: 400_000_000, ..ImageOptions::pillow() };
/// assert_eq!((large.alpha, large.upright), (Alpha::Dropped, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// What becomes of pixels that can be seen through.
    pub alpha: Alpha,
    /// Whether a camera's note of how it was held (EXIF) is followed.
    pub upright: bool,
    /// Whether the reference resizes a picture in its own mode and converts it to RGB only then. Here it is always
    /// converted first, and what that changes is told.
    pub converts_late: bool,
    /// The most pixels that are decoded; a file that declares more is refused before any is.
    pub max_pixels: usize,
}

impl ImageOptions {
    /// As transformers 5: `load_image` turns a picture upright, and `convert_to_rgb` lays it on white.
    pub fn transformers() -> Self {
        Self { alpha: Alpha::OverWhite, upright: true, converts_late: false, max_pixels: MAX_PIXELS }
    }

    /// As Pillow's `Image.open(…).convert("RGB")` and nothing more: alpha is dropped, and a picture that was held
    /// sideways stays so.
    pub fn pillow() -> Self {
        Self { alpha: Alpha::Dropped, upright: false, converts_late: false, max_pixels: MAX_PIXELS }
    }

    /// As the transforms of open_clip and of OpenAI's CLIP and DALL·E: [`pillow`](ImageOptions::pillow)'s conversion, but after
    /// the resizing.
    pub fn open_clip() -> Self {
        Self { converts_late: true, ..Self::pillow() }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self::transformers()
    }
}

/// A sound: samples in -1 to 1, one list a channel, all of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Samples a second, in Hz.
    pub rate: u32,
    /// `(channels, samples)`.
    pub channels: Vec<Vec<f32>>,
}

/// Atoms in space.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Atoms {
    /// Atomic numbers, one an atom.
    pub numbers: Vec<u8>,
    /// Positions in Å, one an atom.
    pub positions: Vec<[f64; 3]>,
    /// Cell vectors in Å, as rows; `None` where there is no cell.
    pub cell: Option<[[f64; 3]; 3]>,
    /// Which cell vectors repeat.
    pub periodic: [bool; 3],
    /// The charge of the whole, in elementary charges, for models that ask.
    pub charge: Option<f64>,
    /// The spin multiplicity of the whole, 1 for a singlet, for models that ask.
    pub spin: Option<f64>,
    /// Along which axes each atom is held in place, one an atom; empty where all may move.
    pub held: Vec<[bool; 3]>,
    /// Whether the axes of [`held`](Self::held) are the cell vectors, not x, y and z.
    pub held_along_cell: bool,
    /// Masses in unified atomic mass units, one an atom, of isotopes; empty where all are those of the elements.
    pub masses: Vec<f64>,
}

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Who sets the scene.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What they say, in order.
    pub items: Vec<Item>,
}

/// What a model continues: items in order, or a conversation whose next turn is the model's.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Items in order; images and texts may be interleaved.
    Items(Vec<Item>),
    /// A conversation, put into words by the model's own template.
    Chat(Vec<Turn>),
    /// A text with a gap: what stands before it and what stands after. The model writes what is between.
    Infill {
        /// All before the gap.
        prefix: String,
        /// All after it.
        suffix: String,
    },
}

impl Prompt {
    /// The error of a model that fills no gaps.
    pub fn no_infill() -> Error {
        Error::unsupported(
            "this model fills no gaps: it knows no tokens for what stands before and after one",
        )
        .hint("give it a prompt to continue; models that fill gaps: StarCoder, StarCoder2, SantaCoder")
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Items(vec![text.into()])
    }
}

/// Vectors, one row an item.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `(items, width)`, float32 on the CPU.
    pub rows: Tensor,
    /// How many tokens of each item did not fit the model and were left out.
    pub cut: Vec<usize>,
}

impl Embeddings {
    /// The rows as vectors.
    ///
    /// # Errors
    /// None, if the rows are what they are said to be.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        Ok(self.rows.to_vec2()?)
    }

    /// The cosine similarity of each row to each row of `other`, `(items, other items)`, in -1 to 1.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fauna_shared::item::Embeddings;
    /// let rows = Tensor::new(&[[1f32, 0.0], [3.0, 4.0]], &Device::Cpu)?;
    /// let made = Embeddings { rows, cut: vec![0, 0] };
    /// assert_eq!(made.similarity(&made)?, [[1.0, 0.6], [0.6, 1.0]]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the vectors of the two have different lengths.
    pub fn similarity(&self, other: &Embeddings) -> Result<Vec<Vec<f32>>> {
        let (ours, theirs) = (self.rows.dims2()?.1, other.rows.dims2()?.1);
        if ours != theirs {
            return Err(Error::input(format!("vectors of {ours} and of {theirs} numbers"))
                .hint("compare vectors of one model"));
        }
        let others = other.to_vecs()?;
        let row = |a: &Vec<f32>| others.iter().map(|b| cosine(a, b)).collect();
        Ok(self.to_vecs()?.iter().map(row).collect())
    }

    /// The `k` rows most similar to each row of `queries`, the most similar first: their indices and cosine similarities,
    /// `(queries, k)`; fewer if there are fewer rows.
    ///
    /// # Errors
    /// As [`similarity`](Self::similarity).
    pub fn top_k(&self, queries: &Embeddings, k: usize) -> Result<Vec<Vec<(usize, f32)>>> {
        let nearest = |similarities: Vec<f32>| {
            let mut found: Vec<(usize, f32)> = similarities.into_iter().enumerate().collect();
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
            found.truncate(k);
            found
        };
        Ok(queries.similarity(self)?.into_iter().map(nearest).collect())
    }
}

/// The cosine of the angle between two vectors of one length; 0 if one of them has no length.
///
/// ```
/// use fauna_shared::item::cosine;
/// assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
/// assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
/// ```
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}
