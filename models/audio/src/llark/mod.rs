//! LLark: questions about music, answered in text.
//!
//! Gardner et al. 2023, "LLark: A Multimodal Instruction-Following Language Model for Music", arXiv 2310.07160,
//! section 3. Jukebox listens, a linear map projects what it heard into the space of words, and Llama 2 reads it
//! between `<audio_start>` and `<audio_end>`. Checked against transformers 4.46.3 `JukeboxPrior` and
//! `LlamaForCausalLM`, wired as LLark's code wires them, parity cases `tests/parity/llark`.
//!
//! # What there is to open
//! LLark's authors published its code and not its weights. What exists can be used all the same:
//! - Jukebox by itself, as a codec and as an encoder of music ([`crate::jukebox`]); its features are what LLark's
//!   projector reads.
//! - A model trained with LLark's code: a folder with `config.json` of `model_type: "wrapped_llamav2"`, the tokenizer,
//!   Llama's weights with `model.mm_projector.*` in any shard, and Jukebox's two files in `jukebox/`.
//! - A projector trained by oneself over an unchanged Llama 2: its folder with `mm_projector/checkpoint-N.bin`
//!   (`model.mm_projector.weight` of `[4096, 4800]`, its bias, `model.embed_tokens.weight` with the added tokens) and
//!   `jukebox/`, opened as `--family llark`.
//!
//! Without `jukebox/` it reads features made elsewhere: the input `audio_encodings` of [`call`], `(frames, 4800)` or
//! `(batch, frames, 4800)`.
//!
//! [`call`]: fauna_shared::model::Pipeline::call

mod pipeline;
mod prompt;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{Decoder, Tokens};
use fauna_shared::item::Modality;
use fauna_shared::model::{CausalLm, Family, Keys, Pretrained, Step, no_hook};
use fauna_shared::nn::{Embedding, Linear};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, ErrorKind, Result};
use fauna_text::causal::placed;
use fauna_text::llama::{self, Llama};
use serde::Deserialize;
use serde_json::{Value, json};

pub use pipeline::LLarkPipeline;

/// The keys of `config.json` that shape the network.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Llama's.
    #[serde(flatten)]
    pub language: llama::Config,
    /// Width of the features: 4800 for Jukebox.
    #[serde(default = "mm_hidden_size")]
    pub mm_hidden_size: usize,
    /// Only true is implemented: features go through the projector.
    #[serde(default = "yes")]
    pub use_mm_proj: bool,
    /// Only true is implemented: features stand between two tokens of their own.
    #[serde(default = "yes")]
    pub mm_use_audio_start_end: bool,
}

fn mm_hidden_size() -> usize {
    4800
}

fn yes() -> bool {
    true
}

/// What a release calls its tensors, in the names of this file.
pub fn rename(name: &str) -> Name {
    llama::rename(name)
}

/// A language model that reads sound.
pub struct LLark {
    language: Llama,
    /// Where the table with the added tokens lies beside an unchanged language model.
    embed_tokens: Option<Embedding>,
    mm_projector: Linear,
    device: Device,
}

/// The three tokens LLark adds to Llama's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioTokens {
    /// `<audio_patch>`: one stands for each frame.
    pub patch: u32,
    /// `<audio_start>`.
    pub start: u32,
    /// `<audio_end>`.
    pub end: u32,
}

impl LLark {
    /// Opens the language model and its projector.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no projector.
    pub fn open(pretrained: &Pretrained) -> Result<(Self, Inventory)> {
        let config: Config = pretrained.config()?;
        if !(config.use_mm_proj && config.mm_use_audio_start_end) {
            return Err(Error::unsupported("use_mm_proj or mm_use_audio_start_end false is not implemented"));
        }
        let (w, width) = (&pretrained.weights, config.language.hidden_size);
        let project = |w: &Weights| w.linear("mm_projector", config.mm_hidden_size, width);
        let (mm_projector, embed_tokens, mut inventory) = match adapter(pretrained)? {
            Some((adapter, count)) => {
                let table = count.map(|count| adapter.embedding("embed_tokens", count, width)).transpose()?;
                let projector = project(&adapter)?;
                (projector, table, Some(adapter.finish()?))
            }
            None if w.has("mm_projector", true) => (project(w)?, None, None),
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "a language model without a projector for sound",
                )
                .at(pretrained.files.root())
                .hint(
                    "LLark's own was never released: put one you trained at mm_projector/checkpoint-N.bin",
                ));
            }
        };
        let language = <Llama as fauna_shared::model::Model>::load(config.language.clone(), w)?;
        let mut whole = w.finish()?;
        if let Some(adapter) = inventory.take() {
            whole.parameters += adapter.parameters;
            whole.tensors.extend(adapter.tensors);
        }
        Ok((Self { language, embed_tokens, mm_projector, device: w.runtime().device().clone() }, whole))
    }

    /// Vocabulary size, the added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.embed_tokens.as_ref().map_or(self.language.vocab_size(), Embedding::count)
    }

    /// The embeddings of `rows` of tokens, all of one length, with `clips` in place of their patches:
    /// `(rows, time, width)`. A row with `<audio_start>` takes the next clip, `(frames, features)`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a row's starts and ends are not as many or more than one, if there are not as
    /// many tokens between them as its clip has frames, or if clips and rows are not as many.
    pub fn embed(&self, rows: &[Vec<u32>], clips: &[Tensor], tokens: AudioTokens) -> Result<Tensor> {
        let x = self.words(rows)?;
        let time = x.dim(1)?;
        let mut next = clips.iter();
        let mut heard = Vec::with_capacity(rows.len());
        for (r, row) in rows.iter().enumerate() {
            let row_x = x.get(r)?;
            let Some(start) = audio_start(row, tokens).map_err(|error| error.context(format!("row {r}")))?
            else {
                heard.push(row_x);
                continue;
            };
            let clip = next.next().ok_or_else(|| {
                Error::input(format!(
                    "row {r} has a place for sound, but there are only {} clips",
                    clips.len()
                ))
            })?;
            let clip = self.mm_projector.forward(&clip.to_dtype(x.dtype())?.to_device(&self.device)?)?;
            let end = start + 1 + clip.dim(0)?;
            if row.get(end) != Some(&tokens.end) {
                let places = row[start + 1..].iter().take_while(|id| **id != tokens.end).count();
                return Err(Error::input(format!(
                    "row {r} has {places} tokens between audio start and end, its clip {} frames",
                    clip.dim(0)?
                )));
            }
            heard.push(Tensor::cat(
                &[row_x.narrow(0, 0, start + 1)?, clip, row_x.narrow(0, end, time - end)?],
                0,
            )?);
        }
        let left = next.len();
        // As the original reads a batch whose every row came with a clip, wanted or not.
        if left > 0 && clips.len() != rows.len() {
            return Err(Error::input(format!("{left} of {} clips have no place in any row", clips.len())));
        }
        Ok(Tensor::stack(&heard, 0)?)
    }

    /// The embeddings of `rows` of tokens, all of one length, as words: `(rows, time, width)`.
    pub fn words(&self, rows: &[Vec<u32>]) -> Result<Tensor> {
        let time = rows.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(rows.concat(), (rows.len(), time), &self.device)?;
        match &self.embed_tokens {
            Some(table) => table.forward(&ids),
            None => self.language.embed(&ids),
        }
    }

    /// The states after the last norm of embeddings, `(batch, time, width)`.
    pub fn hidden(
        &self,
        x: &Tensor,
        positions: &Positions,
        mask: &Mask,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let step = Step { positions, mask, token_type_ids: None };
        self.language.hidden(x, &step, cache, &mut no_hook)
    }

    /// Scores of the next token, `(…, width)` to `(…, vocabulary)`.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the checkpoint has no head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.language
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))
    }

    /// A cache for texts of at most `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.language.num_hidden_layers(), capacity)
    }

    /// The longest text it was trained for, in tokens.
    pub fn max_position_embeddings(&self) -> usize {
        self.language.max_position_embeddings()
    }
}

/// Where `<audio_start>` stands in a row, if it does.
fn audio_start(row: &[u32], tokens: AudioTokens) -> Result<Option<usize>> {
    let count = |token| row.iter().filter(|id| **id == token).count();
    match (count(tokens.start), count(tokens.end)) {
        (0, 0) => Ok(None),
        (1, 1) => Ok(row.iter().position(|id| *id == tokens.start)),
        (starts, ends) if starts == ends => {
            Err(Error::input(format!("{starts} places for sound: one clip a row is all that is implemented")))
        }
        (starts, ends) => Err(Error::input(format!("{starts} audio starts and {ends} audio ends"))),
    }
}

/// The projector that lies beside an unchanged language model, and how many tokens its table has, if it has one.
fn adapter(pretrained: &Pretrained) -> Result<Option<(Weights, Option<usize>)>> {
    if pretrained.weights.is_nothing() || pretrained.options.random_weights.is_some() {
        return Ok(None);
    }
    let step = |name: &String| -> Option<u64> {
        name.strip_prefix("mm_projector/checkpoint-")?.strip_suffix(".bin")?.parse().ok()
    };
    // The latest.
    let Some(name) =
        pretrained.files.names().into_iter().filter(|name| step(name).is_some()).max_by_key(step)
    else {
        return Ok(None);
    };
    let path = pretrained.files.require(&name)?;
    let table = fauna_shared::checkpoint::Checkpoint::open(&path)?;
    let table = table.iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
    let count = table.and_then(|(_, stored)| stored.shape.first().copied());
    Ok(Some((pretrained.part(&[path], rename)?, count)))
}

/// A prompt being answered: the clips it speaks of.
pub(crate) struct Answering<'a> {
    pub llark: &'a LLark,
    pub clips: Vec<Tensor>,
    pub tokens: AudioTokens,
}

impl Decoder for Answering<'_> {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(self.llark.cache(capacity))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        let (positions, mask) = placed(tokens)?;
        let rows: Vec<Vec<u32>> = (0..tokens.rows()).map(|row| tokens.row(row).to_vec()).collect();
        let x = match tokens.past() {
            0 => self.llark.embed(&rows, &self.clips, self.tokens)?,
            // What the model writes is words, even where it writes the token that announces sound.
            _ => self.llark.words(&rows)?,
        };
        let hidden = self.llark.hidden(&x, &positions, &mask, cache)?;
        let last = hidden.narrow(1, tokens.time() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.llark.logits(&last)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// A small config with every branch awake.
pub fn sample() -> Value {
    json!({
        "architectures": ["WrappedLlamav2ForCausalLM"], "model_type": "wrapped_llamav2", "vocab_size": 61,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "mm_hidden_size": 48, "use_mm_proj": true, "mm_use_audio_start_end": true
    })
}

/// LLark: Jukebox's prior, a projector and Llama 2.
pub static FAMILY: Family = Family {
    name: "llark",
    systems: &["LLark"],
    paper: "Gardner et al. 2023, arXiv 2310.07160",
    model_types: &["wrapped_llamav2"],
    architectures: &["WrappedLlamav2ForCausalLM"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Sound, Modality::Text],
    outputs: &[Modality::Text, Modality::Vector],
    // Its weights were never released.
    releases: &[],
    config_of_gguf: Some(fauna_text::llama::config_of_gguf),
    layout: None,
    rename,
    inventory: |pretrained| Ok(LLark::open(pretrained)?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(LLarkPipeline::open(pretrained)?)),
    sample,
};
