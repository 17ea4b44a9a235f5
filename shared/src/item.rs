//! Inputs and outputs of models, of every modality.

use std::ops::Range;

use candle_core::Tensor;
use serde::Serialize;

use crate::{Error, Result, transfer};

/// Named tensors, with the argument and output names of the reference implementation.
pub type Tensors = std::collections::BTreeMap<String, Tensor>;

/// A kind of model input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Modality {
    /// Text.
    Text,
    /// Images.
    Image,
    /// Audio.
    Sound,
    /// Robot actions.
    Action,
    /// Time series.
    Series,
    /// Atomic structures.
    Atoms,
    /// Nucleotide sequences.
    Gene,
    /// Embeddings of a fixed dimension.
    Vector,
    /// Labels with scores.
    Label,
    /// Discrete codes of an audio or image codec.
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

/// One input or output of a model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Item {
    /// A text, or a piece of one while it is generated.
    Text(String),
    /// Reasoning before the answer (chain of thought), piece by piece; not part of the answer.
    Thought(String),
    /// A message to the user about the prompt, for example that it was truncated; not part of the answer.
    Note(String),
    /// A class label, a predicted token or a span, with its score.
    Label(Label),
    /// An image.
    Image(Image),
    /// Audio.
    Sound(Sound),
    /// A robot action: one number per degree of freedom, in the units given in the model card.
    Action(Vec<f64>),
    /// Time series, `(series, steps)`; NaN is a missing value.
    Series(Vec<Vec<f32>>),
    /// An atomic structure.
    Atoms(Atoms),
    /// A nucleotide sequence of A, C, G, T and ambiguity codes.
    Gene(String),
    /// Audio or images encoded by a codec: tensors with the names of the codec's reference implementation.
    Codes(Tensors),
}

impl Item {
    /// Returns the modality of the item.
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

    /// Returns a note that `cut` tokens of a text were truncated; `None` if `cut` is 0.
    pub fn left_out(cut: usize) -> Option<Self> {
        (cut > 0).then(|| Self::Note(format!("{} were left out", beyond(cut))))
    }

    /// Returns the text of a text item.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for any other modality.
    pub fn text(&self) -> Result<&str> {
        match self {
            Self::Text(text) => Ok(text),
            other => {
                Err(Error::input(format!("expected a text, found an input of modality {}", other.modality())))
            }
        }
    }
}

/// Describes `cut` truncated tokens, as the subject of a message.
pub fn beyond(cut: usize) -> String {
    format!("{cut} tokens beyond the maximum sequence length of this model")
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

/// A label with its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Label {
    /// The class, the predicted token or the text of the span.
    pub label: String,
    /// The probability, 0 to 1; the raw output if the model defines no probability (regression, cross-encoder).
    pub score: f32,
    /// Byte range of the span in the input, for labels of spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Range<usize>>,
}

impl Label {
    /// A label with its score, and no span.
    pub fn new(label: impl Into<String>, score: f32) -> Self {
        Self { label: label.into(), score, span: None }
    }

    /// The same with the byte range of its span in the input.
    pub fn with_span(self, span: Range<usize>) -> Self {
        Self { span: Some(span), ..self }
    }
}

/// An RGB image with 8 bits per channel, `(height, width, 3)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * 3` bytes, row by row.
    pub rgb: Vec<u8>,
}

/// Default maximum number of pixels of a decoded image, and the maximum of an image that is created: the value of
/// Pillow's `Image.MAX_IMAGE_PIXELS`. Such an image takes 268 MB, and up to three times that while it is decoded.
pub const MAX_PIXELS: usize = 89_478_485;

/// Handling of the alpha channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// Composite over white, as transformers 5 does before its image processors.
    #[default]
    OverWhite,
    /// Drop the alpha channel, like Pillow's `convert("RGB")`.
    Dropped,
}

/// Options of decoding an image file for a model, which follow the model's reference implementation.
///
/// ```
/// use fauna_shared::item::{Alpha, ImageOptions};
/// assert_eq!(ImageOptions::default(), ImageOptions::transformers());
/// let large = ImageOptions { max_pixels: 400_000_000, ..ImageOptions::pillow() };
/// assert_eq!((large.alpha, large.upright), (Alpha::Dropped, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// Handling of the alpha channel.
    pub alpha: Alpha,
    /// Whether the EXIF orientation is applied.
    pub upright: bool,
    /// Whether the reference implementation converts an image to RGB only after resizing. Here images are always
    /// converted first; a note is added for images for which this makes a difference.
    pub converts_late: bool,
    /// Maximum number of pixels; a file with a larger declared size is rejected before it is decoded.
    pub max_pixels: usize,
}

impl ImageOptions {
    /// The options of transformers 5: `load_image` applies the EXIF orientation, and `convert_to_rgb` composites over
    /// white.
    pub fn transformers() -> Self {
        Self { alpha: Alpha::OverWhite, upright: true, converts_late: false, max_pixels: MAX_PIXELS }
    }

    /// The options of Pillow's `Image.open(…).convert("RGB")`: alpha is dropped, and the EXIF orientation is ignored.
    pub fn pillow() -> Self {
        Self { alpha: Alpha::Dropped, upright: false, converts_late: false, max_pixels: MAX_PIXELS }
    }

    /// The options of the transforms of open_clip and of OpenAI's CLIP and DALL·E: those of
    /// [`pillow`](ImageOptions::pillow), with the conversion after resizing.
    pub fn open_clip() -> Self {
        Self { converts_late: true, ..Self::pillow() }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self::transformers()
    }
}

/// An audio waveform: samples from -1 to 1, one list per channel, all of the same length.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Sampling rate, in Hz.
    pub rate: u32,
    /// The samples, `(channels, samples)`.
    pub channels: Vec<Vec<f32>>,
}

/// An atomic structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Atoms {
    /// Atomic numbers, `(atoms)`.
    pub numbers: Vec<u8>,
    /// Positions in Å, `(atoms, 3)`.
    pub positions: Vec<[f64; 3]>,
    /// Cell vectors in Å, as rows; `None` without a cell.
    pub cell: Option<[[f64; 3]; 3]>,
    /// Periodic boundary conditions along each cell vector.
    pub periodic: [bool; 3],
    /// Total charge in elementary charges, for models that use it.
    pub charge: Option<f64>,
    /// Spin multiplicity, 1 for a singlet, for models that use it.
    pub spin: Option<f64>,
    /// Constraints: the axes along which each atom is fixed, `(atoms, 3)`; empty if no atom is.
    pub held: Vec<[bool; 3]>,
    /// Whether the axes of [`held`](Self::held) are the cell vectors instead of x, y and z.
    pub held_along_cell: bool,
    /// Masses in unified atomic mass units, `(atoms)`; empty for the standard masses of the elements.
    pub masses: Vec<f64>,
}

/// Role of a chat message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// A chat message.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Role of the author.
    pub role: Role,
    /// The content, in order.
    pub items: Vec<Item>,
}

/// A prompt of [`generate`](crate::model::Pipeline::generate).
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Items in order; images and texts may be interleaved.
    Items(Vec<Item>),
    /// Chat messages, formatted by the model's chat template.
    Chat(Vec<Turn>),
    /// Fill-in-the-middle: the model generates the text between prefix and suffix.
    Infill {
        /// The text before the gap.
        prefix: String,
        /// The text after the gap.
        suffix: String,
    },
}

impl Prompt {
    /// Returns the error of a model without fill-in-the-middle.
    pub fn no_infill() -> Error {
        Error::unsupported(
            "this model does not support fill-in-the-middle: its tokenizer has no prefix and suffix tokens",
        )
        .hint("use a prompt; models with fill-in-the-middle: StarCoder, StarCoder2, SantaCoder")
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Items(vec![text.into()])
    }
}

/// Embeddings, one per item.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Embeddings {
    /// The embeddings, `(items, embedding_dim)`, float32 on the CPU.
    pub rows: Tensor,
    /// Number of truncated tokens of each item.
    pub cut: Vec<usize>,
}

impl Embeddings {
    /// Embeddings `rows`, `(items, embedding_dim)` of float32 on the CPU, with the number of truncated tokens of each
    /// item.
    pub fn new(rows: Tensor, cut: Vec<usize>) -> Self {
        Self { rows, cut }
    }

    /// Returns the embeddings as vectors.
    ///
    /// # Errors
    /// [`Compute`](crate::ErrorKind::Compute) if [`rows`](Self::rows) is not a float32 tensor of two axes.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        transfer::rows(&self.rows)
    }

    /// Returns the cosine similarity of each embedding to each of `other`, `(items, other_items)`, from -1 to 1.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fauna_shared::item::Embeddings;
    /// let rows = Tensor::new(&[[1f32, 0.0], [3.0, 4.0]], &Device::Cpu)?;
    /// let made = Embeddings::new(rows, vec![0, 0]);
    /// assert_eq!(made.similarity(&made)?, [[1.0, 0.6], [0.6, 1.0]]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the embeddings have different dimensions.
    pub fn similarity(&self, other: &Embeddings) -> Result<Vec<Vec<f32>>> {
        let (ours, theirs) = (self.rows.dims2()?.1, other.rows.dims2()?.1);
        if ours != theirs {
            return Err(Error::input(format!("cannot compare embeddings of dimension {ours} and {theirs}"))
                .hint("compare embeddings of the same model"));
        }
        let others = other.to_vecs()?;
        let row = |a: &Vec<f32>| others.iter().map(|b| cosine(a, b)).collect();
        Ok(self.to_vecs()?.iter().map(row).collect())
    }

    /// Returns the indices and cosine similarities of the `k` items most similar to each of `queries`, the most similar
    /// first, `(queries, k)`; fewer than `k` if there are fewer items.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the embeddings have different dimensions.
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

/// Returns the cosine similarity of two vectors of the same dimension; 0 if one of them is zero.
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
