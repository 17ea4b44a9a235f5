//! LLark: question answering about music.
//!
//! Gardner et al. 2023, "LLark: A Multimodal Instruction-Following Language Model for Music", arXiv 2310.07160,
//! section 3. The features of Jukebox's prior are projected to the embeddings of Llama 2, or of another language model of
//! [`fauna_text`], between `<audio_start>` and `<audio_end>`. Checked against transformers 4.46.3 `JukeboxPrior` and
//! `LlamaForCausalLM`, combined as in LLark's code, parity cases `tests/parity/llark`.
//!
//! # Files
//! LLark's authors published its code but not its weights. Supported are:
//! - Jukebox alone, as a codec and for music embeddings ([`crate::jukebox`]): the inputs of LLark's projector.
//! - A model trained with LLark's code: a folder with `config.json` of `model_type: "wrapped_llamav2"`, the tokenizer,
//!   Llama's weights with `model.mm_projector.*` in any shard, and Jukebox's two files in `jukebox/`.
//! - A self-trained projector with an unchanged Llama 2, or another language model: its folder with
//!   `mm_projector/checkpoint-N.bin` (`model.mm_projector.weight` of `[4096, 4800]`, its bias, `model.embed_tokens.weight`
//!   with the added tokens) and `jukebox/`, opened as the family `llark`.
//!
//! Without `jukebox/` it takes precomputed features: the input `audio_encodings` of [`call`], `(frames, 4800)` or
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
use fauna_shared::{Error, ErrorKind, Result, json};
use fauna_text::causal::placed;
use fauna_text::{below_head, llama};
use serde::Deserialize;
use serde_json::{Value, json};

pub use pipeline::LLarkPipeline;

/// The keys of `config.json` that define the network, beside those of its language model, which stand among them.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Dimension of the audio features: 4800 for Jukebox.
    #[serde(default = "mm_hidden_size")]
    pub mm_hidden_size: usize,
    /// Whether there is a projector; only true is implemented.
    #[serde(default = "yes")]
    pub use_mm_proj: bool,
    /// Whether the features are between `<audio_start>` and `<audio_end>`; only true is implemented.
    #[serde(default = "yes")]
    pub mm_use_audio_start_end: bool,
}

fn mm_hidden_size() -> usize {
    4800
}

fn yes() -> bool {
    true
}

/// Maps the tensor names of all releases to those of this family.
pub fn rename(name: &str) -> Name {
    match llama::rename(name) {
        Name::Keep if below_head(name) != name => Name::To(below_head(name).to_string()),
        renamed => renamed,
    }
}

/// A language model with projected audio features.
pub struct LLark {
    language: Box<dyn CausalLm>,
    /// The token embeddings with the added tokens, if they are next to an unchanged language model.
    embed_tokens: Option<Embedding>,
    mm_projector: Linear,
    /// Whether the projector is in a file of its own.
    is_apart: bool,
    device: Device,
}

/// Ids of the tokens added to Llama's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioTokens {
    /// `<audio_patch>`, one per frame.
    pub patch: u32,
    /// `<audio_start>`.
    pub start: u32,
    /// `<audio_end>`.
    pub end: u32,
}

impl LLark {
    /// Loads the language model and the projector.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no projector.
    pub fn open(pretrained: &Pretrained) -> Result<(Self, Inventory)> {
        let config: Config = pretrained.config()?;
        if !(config.use_mm_proj && config.mm_use_audio_start_end) {
            return Err(Error::unsupported("use_mm_proj or mm_use_audio_start_end false is not implemented"));
        }
        let adapter = adapter(pretrained)?;
        let is_apart = adapter.is_some();
        let w = match &adapter {
            Some((_, Some(_))) => &pretrained.weights.without_adapters_at("embed_tokens"),
            _ => &pretrained.weights,
        };
        let language = language(&pretrained.config, w).map_err(|error| match error.kind() {
            ErrorKind::Format | ErrorKind::Unsupported => error.at(pretrained.config_path()),
            _ => error,
        })?;
        let width = language.hidden_size();
        let project = |w: &Weights| w.linear("mm_projector", config.mm_hidden_size, width);
        let (mm_projector, embed_tokens, mut inventory) = match adapter {
            Some((adapter, count)) => {
                let table = count.map(|count| adapter.embedding("embed_tokens", count, width)).transpose()?;
                let projector = project(&adapter)?;
                (projector, table, Some(adapter.finish()?))
            }
            None if w.has("mm_projector", true) => (project(w)?, None, None),
            None => {
                return Err(Error::new(ErrorKind::NotFound, "the language model has no audio projector")
                    .at(pretrained.files.root())
                    .hint("LLark's was not released: put a trained one at mm_projector/checkpoint-N.bin"));
            }
        };
        let mut whole = w.finish()?;
        if let Some(adapter) = inventory.take() {
            whole.parameters += adapter.parameters;
            whole.tensors.extend(adapter.tensors);
        }
        let device = w.runtime().device().clone();
        Ok((Self { language, embed_tokens, mm_projector, is_apart, device }, whole))
    }

    /// Builds language model and projector again from `config` and `w`.
    fn reload(&mut self, config: &Value, w: &Weights) -> Result<()> {
        let keys: Config = json::typed(config.clone())?;
        self.language = language(config, w)?;
        self.mm_projector = w.linear("mm_projector", keys.mm_hidden_size, self.language.hidden_size())?;
        Ok(())
    }

    /// Vocabulary size, the added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.embed_tokens.as_ref().map_or(self.language.vocab_size(), Embedding::count)
    }

    /// Returns the embeddings, `(batch, sequence, hidden_size)`, of sequences of token ids of one length, with the
    /// projected `clips`, `(frames, features)` each, in place of the `<audio_patch>` tokens. Each sequence with
    /// `<audio_start>` has the next clip.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a sequence has unmatched or several `<audio_start>` and `<audio_end>`, if the
    /// number of tokens between them is not the number of frames, or if there are too few or too many clips.
    pub fn embed(&self, rows: &[Vec<u32>], clips: &[Tensor], tokens: AudioTokens) -> Result<Tensor> {
        let x = self.words(rows)?;
        let time = x.dim(1)?;
        let mut next = clips.iter();
        let mut heard = Vec::with_capacity(rows.len());
        for (r, row) in rows.iter().enumerate() {
            let row_x = x.get(r)?;
            let Some(start) =
                audio_start(row, tokens).map_err(|error| error.context(format!("sequence {r}")))?
            else {
                heard.push(row_x);
                continue;
            };
            let clip = next.next().ok_or_else(|| {
                Error::input(format!(
                    "sequence {r} has an <audio_start>, but there are only {} clips",
                    clips.len()
                ))
            })?;
            let clip = self.mm_projector.forward(&clip.to_dtype(x.dtype())?.to_device(&self.device)?)?;
            let end = start + 1 + clip.dim(0)?;
            if row.get(end) != Some(&tokens.end) {
                let places = row[start + 1..].iter().take_while(|id| **id != tokens.end).count();
                return Err(Error::input(format!(
                    "sequence {r} has {places} tokens between <audio_start> and <audio_end>, its clip has {} frames",
                    clip.dim(0)?
                )));
            }
            heard.push(Tensor::cat(
                &[row_x.narrow(0, 0, start + 1)?, clip, row_x.narrow(0, end, time - end)?],
                0,
            )?);
        }
        let left = next.len();
        // As in the original, one clip per sequence is accepted even if some are not used.
        if left > 0 && clips.len() != rows.len() {
            return Err(Error::input(format!("{left} of {} clips have no <audio_start>", clips.len())));
        }
        Ok(Tensor::stack(&heard, 0)?)
    }

    /// Returns the token embeddings, `(batch, sequence, hidden_size)`, of sequences of token ids of one length.
    pub fn words(&self, rows: &[Vec<u32>]) -> Result<Tensor> {
        let time = rows.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(rows.concat(), (rows.len(), time), &self.device)?;
        match &self.embed_tokens {
            Some(table) => table.forward(&ids),
            None => self.language.embed(&ids),
        }
    }

    /// Returns the hidden states after the final norm, of embeddings `x`; both `(batch, sequence, hidden_size)`.
    pub fn hidden(
        &self,
        x: &Tensor,
        positions: &Positions,
        mask: &Mask,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.language.check_length(cache.length() + x.dim(1)?)?;
        let step = Step { positions, mask, token_type_ids: None };
        self.language.hidden(x, &step, cache, &mut no_hook)
    }

    /// Returns the logits, `(…, vocab_size)`, of hidden states, `(…, hidden_size)`.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the checkpoint has no head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.language
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))
    }

    /// Creates a KV cache of `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.language.num_hidden_layers(), capacity)
    }

    /// Maximum sequence length.
    pub fn max_position_embeddings(&self) -> usize {
        self.language.max_position_embeddings()
    }
}

/// The language model that the config is of: Llama where it is LLark's own.
fn language(config: &Value, w: &Weights) -> Result<Box<dyn CausalLm>> {
    let mut config = config.clone();
    if matches!(config["model_type"].as_str(), None | Some("wrapped_llamav2")) {
        config["model_type"] = json!("llama");
    }
    fauna_text::causal_lm(&config, w)
}

/// The position of `<audio_start>` in a sequence, if any.
fn audio_start(row: &[u32], tokens: AudioTokens) -> Result<Option<usize>> {
    let count = |token| row.iter().filter(|id| **id == token).count();
    match (count(tokens.start), count(tokens.end)) {
        (0, 0) => Ok(None),
        (1, 1) => Ok(row.iter().position(|id| *id == tokens.start)),
        (starts, ends) if starts == ends => {
            Err(Error::input(format!("{starts} <audio_start> tokens in a sequence: only one is implemented")))
        }
        (starts, ends) => Err(Error::input(format!("{starts} <audio_start> and {ends} <audio_end> tokens"))),
    }
}

/// The projector next to an unchanged language model, and the vocabulary size of its token embeddings, if it has any.
fn adapter(pretrained: &Pretrained) -> Result<Option<(Weights, Option<usize>)>> {
    if pretrained.weights.is_meta() || pretrained.options.random_weights.is_some() {
        return Ok(None);
    }
    let step = |name: &String| -> Option<u64> {
        name.strip_prefix("mm_projector/checkpoint-")?.strip_suffix(".bin")?.parse().ok()
    };
    // The latest checkpoint.
    let Some(name) =
        pretrained.files.names().into_iter().filter(|name| step(name).is_some()).max_by_key(step)
    else {
        return Ok(None);
    };
    let path = pretrained.files.require(&name)?;
    let table = fauna_shared::checkpoint::Checkpoint::open(&path)?;
    let table = table.iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
    let count = table.and_then(|(_, stored)| stored.shape.first().copied());
    Ok(Some((pretrained.part_at("", &[path], rename)?, count)))
}

/// The decoder of a prompt, with its audio clips.
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
            // Generated tokens are text, even `<audio_start>`.
            _ => self.llark.words(&rows)?,
        };
        let hidden = self.llark.hidden(&x, &positions, &mask, cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.llark.logits(&last)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// A small config that covers every branch.
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
    // The weights were not released.
    releases: &[],
    config_of_gguf: Some(fauna_text::llama::config_of_gguf),
    layout: None,
    rename,
    inventory: |pretrained| Ok(LLark::open(pretrained)?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(LLarkPipeline::open(pretrained)?)),
    sample,
};
