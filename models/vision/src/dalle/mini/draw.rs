//! From words to codes, for any number of pictures at once.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::generate::{AllowedTokens, Decoder, GenerationConfig, Stop, Tokens, generate};
use fauna_shared::{Error, ErrorKind, Result};

use super::{DalleBart, State, Text};

/// The most pictures that are drawn in one batch; their keys and values are what takes the memory.
const AT_ONCE: usize = 16;

/// What is handed the number of a picture and the codes of it that are there, and says whether to go on.
pub(super) type Each<'a> = dyn FnMut(usize, &[u32]) -> Result<ControlFlow<()>> + 'a;

/// What one picture is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// Words, filled up to the length of all others.
    pub words: Vec<u32>,
    /// The words of a picture of nothing, which guidance leads away from; as long.
    pub nothing: Vec<u32>,
    /// Which stream of random numbers it draws from.
    pub stream: u64,
}

/// What pictures are drawn with.
pub(super) struct Pen<'a> {
    pub network: &'a DalleBart,
    /// What a picture begins with.
    pub start: u32,
    /// Codes that may be chosen: those the picture half knows.
    pub codes: usize,
}

/// One batch on its way.
struct Sheet<'a> {
    pen: &'a Pen<'a>,
    text: Text,
    wishes: &'a [Wish],
}

impl Pen<'_> {
    /// The codes of all `wishes`. `each` is handed what there is of a picture with every new code; if it breaks, what is
    /// there is all.
    pub fn draw(
        &self,
        wishes: &[Wish],
        options: &GenerationConfig,
        each: &mut Each,
    ) -> Result<Vec<Vec<u32>>> {
        let mut codes: Vec<Vec<u32>> = Vec::with_capacity(wishes.len());
        for (number, wishes) in wishes.chunks(AT_ONCE).enumerate() {
            let before = number * AT_ONCE;
            let mut outcome = Ok(ControlFlow::Continue(()));
            let mut drawn = vec![Vec::new(); wishes.len()];
            self.sheet(wishes, options)?.draw(options, &mut |row, code| {
                drawn[row].push(code);
                outcome = each(before + row, &drawn[row]);
                matches!(outcome, Ok(ControlFlow::Continue(())))
            })?;
            codes.extend(drawn);
            if outcome?.is_break() {
                break;
            }
        }
        Ok(codes)
    }

    /// Reads the words of a batch; once, if they are all the same.
    fn sheet<'a>(&'a self, wishes: &'a [Wish], options: &GenerationConfig) -> Result<Sheet<'a>> {
        let same = |wish: &Wish| wish.words == wishes[0].words && wish.nothing == wishes[0].nothing;
        let read = if wishes.iter().all(same) { &wishes[..1] } else { wishes };
        let mut texts: Vec<Vec<u32>> = read.iter().map(|wish| wish.words.clone()).collect();
        if options.guidance != 1.0 {
            texts.extend(read.iter().map(|wish| wish.nothing.clone()));
        }
        Ok(Sheet { pen: self, text: self.network.read(&texts)?, wishes })
    }
}

impl Sheet<'_> {
    fn draw(&self, options: &GenerationConfig, each: &mut dyn FnMut(usize, u32) -> bool) -> Result<()> {
        let length = self.pen.network.config().image_length;
        // A picture never ends early.
        let options = GenerationConfig {
            max_new_tokens: length,
            min_new_tokens: 0,
            eos: Some(Vec::new()),
            pad: Some(self.pen.start),
            repetition_penalty: 1.0,
            ..options.clone()
        };
        let prompts = vec![[self.pen.start]; self.wishes.len()];
        generate(self, &prompts, &options, &mut |new| match each(new.row, new.token) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Stop::All),
        })?;
        Ok(())
    }
}

impl Decoder for Sheet<'_> {
    type Cache = State;

    fn cache(&self, _: usize, capacity: usize) -> Result<State> {
        self.pen.network.start(&self.text, capacity)
    }

    fn step(&self, tokens: &Tokens, state: &mut State) -> Result<Tensor> {
        if !tokens.is_even() {
            return Err(Error::new(ErrorKind::Compute, "all pictures begin with one code"));
        }
        let hidden = self.pen.network.forward(tokens.ids(), tokens.rows(), state)?;
        let last = hidden.narrow(1, tokens.time() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.pen.network.logits(&last)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.pen.network.config().image_length)
    }

    fn allowed(&self, _: usize, _: &[u32]) -> AllowedTokens {
        AllowedTokens::Within(0..self.pen.codes as u32)
    }

    fn stream(&self, row: usize) -> u64 {
        self.wishes[row].stream
    }
}
