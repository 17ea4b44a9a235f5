//! OpenVLA in a control loop.

use candle_core::{D, DType, Device, IndexOp, Tensor};
use fauna_shared::attention::{Cache, Mask};
use fauna_shared::item::Image;
use fauna_shared::model::{Controller, DegreeOfFreedom, Observation};
use fauna_shared::{Error, ErrorKind, Result};

use super::OpenVla;
use super::processor::FrameProcessor;
use crate::action::{ActionTokenizer, Statistics};

/// Greedy words for one prompt after another, whose common beginning is kept.
pub struct Writer<'a> {
    network: &'a OpenVla,
    device: &'a Device,
    cache: Cache,
    /// How many of the first tokens in the cache are the prompt's own, whatever the picture.
    kept: usize,
}

/// What was written.
pub struct Written {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// The scores that the last of them was chosen by, `(vocabulary)` of float32.
    pub last_logits: Tensor,
}

impl<'a> Writer<'a> {
    /// For prompts of at most `time` tokens, patches included, and `new` tokens after them.
    pub fn new(network: &'a OpenVla, device: &'a Device, halves: bool, time: usize, new: usize) -> Self {
        let layers = network.config().text_config.num_hidden_layers;
        let cache = Cache::new(layers, time + new).with_half(halves);
        Self { network, device, cache, kept: 0 }
    }

    /// Exactly `new` tokens after `ids`, or fewer if one of `ends` comes before. `patches`: `(1, patches, width)`, which
    /// stand after the first token; `ids` begin as those of the last call did.
    pub fn write(
        &mut self,
        ids: &[u32],
        patches: Option<&Tensor>,
        new: usize,
        ends: &[u32],
    ) -> Result<Written> {
        let row = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), self.device);
        self.cache.truncate(self.kept);
        let whole = self.network.embed(&row(ids)?, patches)?;
        let x = whole.narrow(1, self.kept, whole.dim(1)? - self.kept)?.contiguous()?;
        let mut scores = self.read(&x)?;
        // What is not there may be seen of the picture: only the first token stands before it.
        self.kept = if patches.is_some() { 1 } else { 0 };
        let mut tokens = Vec::with_capacity(new);
        loop {
            if !scores.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(Error::new(ErrorKind::Compute, "the logits are not numbers")
                    .hint("the weights may be damaged, or the type too narrow: try --dtype f32"));
            }
            let token = scores.argmax(D::Minus1)?.to_scalar::<u32>()?;
            tokens.push(token);
            if tokens.len() >= new || ends.contains(&token) {
                return Ok(Written { tokens, last_logits: scores });
            }
            let next = self.network.embed(&row(&[token])?, None)?;
            scores = self.read(&next)?;
        }
    }

    /// The scores of what follows `x`, `(1, time, width)`.
    fn read(&mut self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.network.hidden(x, &Mask::causal(), &mut self.cache)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
        let scores = self.network.logits(&last)?.i((0, 0))?;
        Ok(scores.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?)
    }
}

/// OpenVLA while it follows an instruction.
///
/// The prompt is tokenised once. What stands before the picture is read once; a frame that is the last one byte for byte
/// gives the same action again without being looked at.
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
