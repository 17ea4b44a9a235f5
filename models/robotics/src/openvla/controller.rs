//! Control loop of OpenVLA.

use std::ops::ControlFlow;

use candle_core::{DType, Device, IndexOp, Tensor};
use fauna_shared::attention::{Cache, Mask};
use fauna_shared::generate::{Decoder, GenerationConfig, Tokens, generate_from};
use fauna_shared::item::Image;
use fauna_shared::model::{Controller, DegreeOfFreedom, Observation};
use fauna_shared::{Error, ErrorKind, Result};

use super::OpenVla;
use super::processor::FrameProcessor;
use crate::action::{ActionTokenizer, Statistics};

/// Greedy decoding of successive prompts, with the KV cache of their common prefix.
pub struct Writer<'a> {
    network: &'a OpenVla,
    device: &'a Device,
    cache: ActionCache,
    /// Number of tokens at the start of the cache that do not depend on the image.
    kept: usize,
}

/// The generated tokens.
pub struct Written {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// The logits of the last of them, `(vocab_size)` of float32, on the network's device.
    pub last_logits: Tensor,
}

impl<'a> Writer<'a> {
    /// Creates it for prompts of at most `time` tokens, patches included, and `new` new tokens.
    pub fn new(network: &'a OpenVla, device: &'a Device, half: bool, time: usize, new: usize) -> Self {
        let layers = network.language_model().num_hidden_layers();
        let cache = ActionCache { kv: Cache::new(layers, time + new).with_half(half), last_logits: None };
        Self { network, device, cache, kept: 0 }
    }

    /// Generates `new` tokens after `ids`, or fewer if one of `ends` is generated. `patches`: `(1, patches, hidden_size)`,
    /// inserted after the first token; `ids` must begin like those of the last call.
    pub fn write(
        &mut self,
        ids: &[u32],
        patches: Option<&Tensor>,
        new: usize,
        ends: &[u32],
    ) -> Result<Written> {
        self.cache.kv.truncate(self.kept);
        let prompted = Prompted { network: self.network, device: self.device, patches };
        let config = GenerationConfig { eos: Some(ends.to_vec()), ..GenerationConfig::greedy(new) };
        let prompt = [ids.get(self.kept..).unwrap_or(&[])];
        let mut each = |_| ControlFlow::Continue(());
        let mut made = generate_from(&prompted, &mut self.cache, self.kept, &prompt, &config, &mut each)?;
        // Only the first token is before the image and can be reused.
        self.kept = usize::from(patches.is_some());
        let last = self.cache.last_logits.take();
        let last = last.ok_or_else(|| Error::new(ErrorKind::Compute, "no token was generated"))?;
        let last_logits = last.i(0)?.to_dtype(DType::F32)?.contiguous()?;
        Ok(Written { tokens: made.tokens.remove(0), last_logits })
    }
}

/// The KV cache of a prompt.
struct ActionCache {
    kv: Cache,
    /// Logits of the last decoding step.
    last_logits: Option<Tensor>,
}

/// A prompt with the image after its first token.
struct Prompted<'a> {
    network: &'a OpenVla,
    device: &'a Device,
    patches: Option<&'a Tensor>,
}

impl Decoder for Prompted<'_> {
    type Cache = ActionCache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<ActionCache> {
        let layers = self.network.language_model().num_hidden_layers();
        let kv = Cache::new(layers, capacity + self.network.config().patches());
        Ok(ActionCache { kv, last_logits: None })
    }

    fn step(&self, tokens: &Tokens, cache: &mut ActionCache) -> Result<Tensor> {
        let ids = tokens.tensor(self.device)?;
        let x = match self.patches {
            Some(patches) if cache.kv.length() == 0 => self.network.embed(&ids, Some(patches))?,
            // The first token is in the cache from an earlier image.
            Some(patches) if cache.kv.length() == 1 => {
                let words = self.network.embed(&ids, None)?;
                Tensor::cat(&[&patches.to_dtype(words.dtype())?, &words], 1)?
            }
            _ => self.network.embed(&ids, None)?,
        };
        let hidden = self.network.hidden(&x, &Mask::causal(), &mut cache.kv)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        let logits = self.network.logits(&last)?;
        cache.last_logits = Some(logits.clone());
        Ok(logits)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// OpenVLA in a control loop with one instruction.
///
/// The prompt is tokenized once, and the part before the image is processed once; a frame that is identical to the last one
/// returns the same action without computation.
pub struct OpenVlaController<'a> {
    pub(super) network: &'a OpenVla,
    pub(super) processor: &'a FrameProcessor,
    pub(super) tokenizer: &'a ActionTokenizer,
    pub(super) statistics: Statistics,
    pub(super) ids: Vec<u32>,
    pub(super) writer: Writer<'a>,
    pub(super) last: Option<(Image, Vec<f64>)>,
}

impl Controller for OpenVlaController<'_> {
    fn act(&mut self, seen: &Observation) -> Result<Vec<f64>> {
        if let Some((frame, action)) = &self.last
            && frame == seen.frame
        {
            return Ok(action.clone());
        }
        let pixels = self.processor.process(seen.frame)?.unsqueeze(0)?;
        let patches = self.network.see(&pixels)?;
        let written = self.writer.write(&self.ids, Some(&patches), self.statistics.dim(), &[])?;
        let middle = |token: &u32| self.tokenizer.decode(i64::from(*token));
        let normalized: Vec<f64> = written.tokens.iter().map(middle).collect();
        let action = self.statistics.unnormalize(&normalized)?;
        self.last = Some((seen.frame.clone(), action.clone()));
        Ok(action)
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        self.statistics.degrees()
    }
}
