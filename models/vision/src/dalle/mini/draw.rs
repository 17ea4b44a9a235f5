//! Sampling of image codes from token ids, in batches.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::generate::{AllowedTokens, Decoder, GenerationConfig, Stop, Tokens, generate};
use fauna_shared::{Error, ErrorKind, Result};

use super::{DalleBart, DecoderState, EncodedText};

/// Maximum batch size: the KV cache dominates the memory.
const MAX_BATCH_SIZE: usize = 16;

/// Callback with the index of an image and its codes so far; decides whether to continue.
pub(super) type Each<'a> = dyn FnMut(usize, &[u32]) -> Result<ControlFlow<()>> + 'a;

/// The inputs of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SampleInputs {
    /// Token ids of the prompt, padded.
    pub ids: Vec<u32>,
    /// Token ids of the unconditional prompt for classifier-free guidance, padded to the same length.
    pub uncond_ids: Vec<u32>,
    /// Stream of the random number generator.
    pub stream: u64,
}

/// The model and its sampling constraints.
pub(super) struct Sampler<'a> {
    pub network: &'a DalleBart,
    /// The decoder start token.
    pub start: u32,
    /// Number of codes that may be sampled: those of the image decoder.
    pub num_codes: usize,
}

/// One batch.
struct Batch<'a> {
    sampler: &'a Sampler<'a>,
    text: EncodedText,
    samples: &'a [SampleInputs],
}

impl Sampler<'_> {
    /// Samples the codes of all images. `each` is called after every new code; if it breaks, sampling ends with the
    /// codes so far.
    pub fn sample(
        &self,
        samples: &[SampleInputs],
        options: &GenerationConfig,
        each: &mut Each,
    ) -> Result<Vec<Vec<u32>>> {
        let mut codes: Vec<Vec<u32>> = Vec::with_capacity(samples.len());
        for (number, samples) in samples.chunks(MAX_BATCH_SIZE).enumerate() {
            let before = number * MAX_BATCH_SIZE;
            let mut outcome = Ok(ControlFlow::Continue(()));
            let mut codes_of = vec![Vec::new(); samples.len()];
            self.batch(samples, options)?.sample(options, &mut |row, code| {
                codes_of[row].push(code);
                outcome = each(before + row, &codes_of[row]);
                matches!(outcome, Ok(ControlFlow::Continue(())))
            })?;
            codes.extend(codes_of);
            if outcome?.is_break() {
                break;
            }
        }
        Ok(codes)
    }

    /// Runs the encoder on the prompts of a batch; only once if they are all the same.
    fn batch<'a>(&'a self, samples: &'a [SampleInputs], options: &GenerationConfig) -> Result<Batch<'a>> {
        let same = |sample: &SampleInputs| {
            sample.ids == samples[0].ids && sample.uncond_ids == samples[0].uncond_ids
        };
        let distinct = if samples.iter().all(same) { &samples[..1] } else { samples };
        let mut texts: Vec<Vec<u32>> = distinct.iter().map(|sample| sample.ids.clone()).collect();
        if options.guidance != 1.0 {
            texts.extend(distinct.iter().map(|sample| sample.uncond_ids.clone()));
        }
        Ok(Batch { sampler: self, text: self.network.encode(&texts)?, samples })
    }
}

impl Batch<'_> {
    fn sample(&self, options: &GenerationConfig, each: &mut dyn FnMut(usize, u32) -> bool) -> Result<()> {
        let length = self.sampler.network.config().image_length;
        // All images have the same number of codes.
        let options = GenerationConfig {
            max_new_tokens: length,
            min_new_tokens: 0,
            eos: Some(Vec::new()),
            pad: Some(self.sampler.start),
            repetition_penalty: 1.0,
            ..options.clone()
        };
        let prompts = vec![[self.sampler.start]; self.samples.len()];
        generate(self, &prompts, &options, &mut |new| match each(new.row, new.token) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Stop::All),
        })?;
        Ok(())
    }
}

impl Decoder for Batch<'_> {
    type Cache = DecoderState;

    fn cache(&self, _: usize, capacity: usize) -> Result<DecoderState> {
        self.sampler.network.start(&self.text, capacity)
    }

    fn step(&self, tokens: &Tokens, state: &mut DecoderState) -> Result<Tensor> {
        if !tokens.is_unpadded() {
            return Err(Error::new(ErrorKind::Compute, "all images must begin with one code"));
        }
        let hidden = self.sampler.network.forward(tokens.ids(), tokens.rows(), state)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.sampler.network.logits(&last)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.sampler.network.config().image_length)
    }

    fn allowed(&self, _: usize, _: &[u32]) -> AllowedTokens {
        AllowedTokens::Within(0..self.sampler.num_codes as u32)
    }

    fn stream(&self, row: usize) -> u64 {
        self.samples[row].stream
    }
}
