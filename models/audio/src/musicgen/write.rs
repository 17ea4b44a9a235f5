//! Decoding of one window of codes with the delay pattern.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::generate::{self, AllowedTokens, GenerationConfig, Stop, Tokens};

use super::decoder::{Conditioning, Decoder, DecoderState};
use super::pattern::DelayPattern;

/// The decoding of one window.
pub(super) struct WindowDecoder<'a> {
    pub decoder: &'a Decoder,
    pub condition: Conditioning,
    pub pattern: DelayPattern,
    /// The given codes, one list per codebook of each batch element, all of one length.
    pub given: &'a [Vec<u32>],
    /// Stream of the random number generator of each batch element's first codebook, relative to
    /// [`GenerationConfig::stream`].
    pub streams: &'a [u64],
}

impl WindowDecoder<'_> {
    /// Generates the codes, and calls `each` with each complete frame: the codes of all codebooks of all batch
    /// elements.
    ///
    /// `options.max_new_tokens` and the EOS tokens are ignored: the pattern determines the length.
    pub(super) fn generate(
        &self,
        options: &GenerationConfig,
        each: &mut dyn FnMut(&[u32]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let (codebooks, rows) = (self.decoder.config().num_codebooks, self.given.len());
        let first = self.start();
        if first >= self.pattern.columns() {
            return Ok(());
        }
        let cell = |row: usize, column: usize| match self.pattern.frame(row % codebooks, column) {
            Some(frame) => self.given[row].get(frame).copied().unwrap_or(self.special()),
            None => self.special(),
        };
        let prompts: Vec<Vec<u32>> =
            (0..rows).map(|row| (0..first).map(|column| cell(row, column)).collect()).collect();
        let options = GenerationConfig {
            max_new_tokens: self.pattern.columns() - first,
            min_new_tokens: 0,
            eos: Some(Vec::new()),
            ..options.clone()
        };

        let mut columns = prompts.clone();
        let mut done = self.given.first().map_or(0, Vec::len);
        let mut frame = vec![0; rows];
        let mut failure = None;
        generate::generate(self, &prompts, &options, &mut |new| {
            columns[new.row].push(new.token);
            if new.row + 1 < rows {
                return ControlFlow::Continue(());
            }
            while done < self.pattern.complete_frames(first + new.index + 1) {
                for (row, code) in frame.iter_mut().enumerate() {
                    *code = columns[row][self.pattern.column(row % codebooks, done)];
                }
                done += 1;
                match each(&frame) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => return ControlFlow::Break(Stop::All),
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(Stop::All);
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// The first column in which codebook 0 is generated.
    fn start(&self) -> usize {
        self.pattern.column(0, self.given.first().map_or(0, Vec::len))
    }

    fn special(&self) -> u32 {
        self.decoder.config().pad_token_id
    }
}

impl generate::Decoder for WindowDecoder<'_> {
    type Cache = DecoderState;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<DecoderState> {
        self.decoder.start(&self.condition, capacity)
    }

    /// A row of `tokens` is one codebook of one batch element.
    fn step(&self, tokens: &Tokens, state: &mut DecoderState) -> Result<Tensor> {
        let (rows, time, codebooks) =
            (tokens.rows(), tokens.sequence_length(), self.decoder.config().num_codebooks);
        let mut codes = Vec::with_capacity(rows * time);
        for entry in 0..rows / codebooks {
            for t in 0..time {
                codes.extend((0..codebooks).map(|k| tokens.row(entry * codebooks + k)[t]));
            }
        }
        let hidden = self.decoder.forward(&codes, rows / codebooks, state)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
        Ok(self.decoder.logits(&last)?.reshape((rows, ()))?)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn allowed(&self, row: usize, new: &[u32]) -> AllowedTokens {
        let frame = self.pattern.frame(row % self.decoder.config().num_codebooks, self.start() + new.len());
        match frame {
            None => AllowedTokens::Only(self.special()),
            Some(frame) => {
                self.given[row].get(frame).map_or(AllowedTokens::Any, |code| AllowedTokens::Only(*code))
            }
        }
    }

    fn stream(&self, row: usize) -> u64 {
        let codebooks = self.decoder.config().num_codebooks;
        self.streams[row / codebooks].wrapping_add((row % codebooks) as u64)
    }
}
