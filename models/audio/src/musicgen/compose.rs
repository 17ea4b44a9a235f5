//! From wishes to sound: several at once, of any length, handed over while it is made.

use std::ops::ControlFlow;

use candle_core::{DType, Device, IndexOp, Tensor};
use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
use fauna_shared::audio::sinc::Sinc;
use fauna_shared::audio::{self, with_channels};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::Sound;
use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, ErrorKind, Result};

use super::pattern::{Pattern, Window, windows};
use super::write::Page;
use super::{MusicGen, Text, no_melody_here};
use crate::encodec::Stream;

/// The longest text T5 was trained on, in tokens.
const LONGEST_TEXT: usize = 512;

/// What a model was trained on, and by how much a longer piece moves on, in seconds.
const WINDOW: f64 = 30.0;
const STRIDE: f64 = 18.0;

/// Sound is decoded so many seconds at a time.
const AT_ONCE: f64 = 0.5;

/// What a piece of music is made from. All parts may be left out.
#[derive(Debug, Clone, Default)]
pub struct MusicPrompt {
    /// What it is like.
    pub words: String,
    /// What its melody follows, for the models that follow one: the first 30 s, over and over if it is shorter.
    pub melody: Option<Sound>,
    /// How it begins: the piece goes on from here, and holds this too, as the codec renders it.
    pub beginning: Option<Sound>,
}

/// A network with what it needs to read wishes.
pub struct MusicGenerator {
    network: MusicGen,
    tokenizer: Option<Tokenizer>,
    chroma: Option<Chroma>,
    window: f64,
    stride: f64,
}

/// A wish as the network reads it.
struct Plan {
    /// Token ids; none for no words.
    words: Vec<u32>,
    /// Mono samples at the chroma's rate.
    melody: Option<Vec<f32>>,
    /// The codes of the beginning, one list a codebook.
    given: Vec<Vec<u32>>,
}

impl MusicGenerator {
    /// Without a tokenizer: no words can be read.
    pub fn new(network: MusicGen) -> Self {
        Self { network, tokenizer: None, chroma: None, window: WINDOW, stride: STRIDE }
    }

    /// With what turns words to tokens.
    pub fn with_tokenizer(self, tokenizer: Option<Tokenizer>) -> Self {
        Self { tokenizer, ..self }
    }

    /// With the settings by which melodies are heard, for a model that follows one.
    ///
    /// # Errors
    /// As [`Chroma::new`].
    pub fn with_chroma(self, settings: ChromaConfig) -> Result<Self> {
        let num_chroma = self.network.config().num_chroma;
        let chroma = match self.network.config().has_melody() {
            true => Some(Chroma::new(&ChromaConfig { num_chroma, ..settings })?),
            false => None,
        };
        Ok(Self { chroma, ..self })
    }

    /// With other windows for what is longer than one: each pass makes at most `window` seconds and begins `stride`
    /// seconds after the one before, reading what that one made from there on. 30 and 18 if not set.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) unless `0 < stride <= window`, each at least a frame.
    pub fn with_windows(self, window: f64, stride: f64) -> Result<Self> {
        let composer = Self { window, stride, ..self };
        match stride <= window && composer.frames(stride) > 0 && window.is_finite() {
            true => Ok(composer),
            false => {
                Err(Error::input(format!("windows of {window} s that move on by {stride} s cover nothing")))
            }
        }
    }

    /// The network.
    pub fn network(&self) -> &MusicGen {
        &self.network
    }

    /// What hears melodies, if the model follows them.
    pub fn chroma(&self) -> Option<&Chroma> {
        self.chroma.as_ref()
    }

    /// Makes a piece for each of `wishes`, all in one batch where their lengths allow, and hands over its sound while
    /// it is made, half a second at a time, with the index of the wish; `each` may break to end everything. Gives the
    /// codes, `(codebooks, frames)` of int64, a wish each.
    ///
    /// `options.seconds` is the length of the whole piece, beginning included, to the frame; without it
    /// `max_new_tokens` counts columns of the delay pattern as transformers does. What is longer than the model was
    /// trained for is made in windows that overlap. A wish for nothing needs no guidance and gets none.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for options out of range, a text of more than 512 tokens, a sound that is none,
    /// a melody given to a model without melody, or a beginning that is as long as the piece.
    pub fn compose(
        &self,
        wishes: &[MusicPrompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<Vec<Tensor>> {
        options.check()?;
        let plan = |(index, wish): (usize, &MusicPrompt)| {
            self.plan(wish).map_err(|error| match wishes.len() {
                1 => error,
                _ => error.context(format!("prompt {index}")),
            })
        };
        let plans = wishes.iter().enumerate().map(plan).collect::<Result<Vec<_>>>()?;
        let mut codes: Vec<Vec<Vec<u32>>> = plans.iter().map(|plan| plan.given.clone()).collect();
        let mut flow = ControlFlow::Continue(());
        for group in self.groups(&plans) {
            if flow.is_continue() {
                flow = self.play(&plans, &group, options, &mut codes, each)?;
            }
        }
        codes.into_iter().map(|rows| codes_tensor(&rows, 1)?.i(0).map_err(Error::from)).collect()
    }

    /// Indices of the wishes that fit one batch: their beginnings have one length, and their words where those stand
    /// before the codes, so that no row's positions depend on another's.
    fn groups(&self, plans: &[Plan]) -> Vec<Vec<usize>> {
        let key = |plan: &Plan| {
            let words = if self.network.config().has_melody() { plan.words.len().max(1) } else { 0 };
            (words, plan.frames())
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (index, plan) in plans.iter().enumerate() {
            match groups.iter_mut().find(|group| key(&plans[group[0]]) == key(plan)) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        groups
    }

    fn plan(&self, wish: &MusicPrompt) -> Result<Plan> {
        let words = match wish.words.trim().is_empty() {
            true => Vec::new(),
            false => {
                let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, "the model came without a tokenizer: it reads no words")
                        .hint("put the tokenizer.json or spiece.model of T5 beside the weights")
                })?;
                tokenizer.encode(&wish.words, true)?
            }
        };
        if words.len() > LONGEST_TEXT {
            return Err(Error::input(format!(
                "the text has {} tokens, at most {LONGEST_TEXT} are read",
                words.len()
            ))
            .hint("shorten the text"));
        }
        let melody = match (&wish.melody, &self.chroma) {
            (None, _) => None,
            (Some(_), None) => return Err(no_melody_here()),
            (Some(melody), Some(chroma)) => {
                let mono = audio::mono(melody.clone())?;
                Some(Sinc::JULIUS.resample(&mono, melody.rate, chroma.config().sampling_rate)?)
            }
        };
        let given = match &wish.beginning {
            None => vec![Vec::new(); self.network.config().decoder.num_codebooks],
            Some(sound) => self.codes_of(sound)?,
        };
        Ok(Plan { words, melody, given })
    }

    /// The codes of a sound of any rate, mono or stereo, one list a codebook.
    fn codes_of(&self, sound: &Sound) -> Result<Vec<Vec<u32>>> {
        let config = self.network.config();
        let (rate, channels) = (config.audio_encoder.sampling_rate as u32, self.channels());
        let sound = with_channels(sound.clone(), channels)?;
        let resampled = sound.channels.iter().map(|channel| Sinc::JULIUS.resample(channel, sound.rate, rate));
        let channels = resampled.collect::<Result<Vec<_>>>()?;
        let decoder = self.network.decoder();
        let sound = Tensor::new(channels, &Device::Cpu)?.t()?.unsqueeze(0)?.contiguous()?;
        let sound = sound.to_device(decoder.device())?.to_dtype(decoder.activations())?;
        let codes = self.network.encode(&sound)?.squeeze(0)?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        match codes.iter().flatten().find(|code| **code as usize >= config.decoder.vocab_size) {
            None => Ok(codes),
            Some(code) => Err(Error::input(format!(
                "the codec hears code {code}, the language model knows {}",
                config.decoder.vocab_size
            ))),
        }
    }

    /// Channels of the sound.
    fn channels(&self) -> usize {
        let config = self.network.config();
        config.decoder.audio_channels.max(config.audio_encoder.audio_channels)
    }

    /// Whole frames in so many seconds.
    fn frames(&self, seconds: f64) -> usize {
        // Seconds written in decimals should not lose a frame to rounding.
        (seconds * self.network.config().audio_encoder.frame_rate() as f64 + 1e-6) as usize
    }

    /// How many frames the piece has, and the passes that make them.
    fn length(&self, given: usize, options: &GenerationConfig) -> Result<(Vec<Window>, bool)> {
        let decoder = &self.network.config().decoder;
        let Some(seconds) = options.seconds else {
            let columns = options.max_new_tokens.saturating_add(1 + given);
            let pattern = Pattern::of_columns(decoder.num_codebooks, decoder.audio_channels, columns);
            return match pattern.frames() > given {
                true => Ok((vec![Window { start: 0, context: given, end: pattern.frames() }], true)),
                false => Err(Error::input(format!(
                    "max_new_tokens {} leave no room for a frame: the delays take more",
                    options.max_new_tokens
                ))),
            };
        };
        let total = self.frames(seconds);
        if total == 0 {
            return Err(Error::input(format!("{seconds} seconds are shorter than a frame"))
                .hint(format!("{} frames are a second", self.network.config().audio_encoder.frame_rate())));
        }
        if total <= given {
            return Err(Error::input(format!(
                "the sound to continue has {given} frames, the whole piece of {seconds} s would have {total}"
            ))
            .hint("seconds count from the start of the given sound"));
        }
        Ok((windows(given, total, self.frames(self.window), self.frames(self.stride)), false))
    }

    /// Makes the pieces of one group.
    fn play(
        &self,
        plans: &[Plan],
        group: &[usize],
        options: &GenerationConfig,
        codes: &mut [Vec<Vec<u32>>],
        each: &mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let decoder = &self.network.config().decoder;
        let (codebooks, channels) = (decoder.num_codebooks, decoder.audio_channels);
        let members: Vec<&Plan> = group.iter().map(|index| &plans[*index]).collect();
        let given = members.first().map_or(0, |plan| plan.frames());
        let (windows, by_columns) = self.length(given, options)?;
        let text = self.text(&members)?;
        let wished = members.iter().any(|plan| !plan.words.is_empty() || plan.melody.is_some());
        let guidance = if wished { options.guidance } else { 1.0 };
        let options = GenerationConfig { guidance, ..options.clone() };

        let mut player = Player::new(self, group, each)?;
        let mut rows: Vec<Vec<u32>> = members.iter().flat_map(|plan| plan.given.clone()).collect();
        for frame in 0..given {
            let frame: Vec<u32> = rows.iter().map(|row| row[frame]).collect();
            if player.push(&frame)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let several = windows.len() > 1;
        let mut flow = ControlFlow::Continue(());
        for (number, window) in windows.iter().enumerate() {
            let known: Vec<Vec<u32>> =
                rows.iter().map(|row| row[window.start..window.start + window.context].to_vec()).collect();
            let melody = self.melody(&members, several.then_some(window.start))?;
            let frames = window.end - window.start;
            let page = Page {
                decoder: self.network.decoder(),
                condition: self.network.condition(text.as_ref(), melody.as_ref(), guidance != 1.0)?,
                pattern: match by_columns {
                    true => Pattern::of_columns(
                        codebooks,
                        channels,
                        options.max_new_tokens.saturating_add(1 + given),
                    ),
                    false => Pattern::of_frames(codebooks, channels, frames),
                },
                given: &known,
                // Far enough apart that no window of a prompt draws what another draws.
                streams: &group
                    .iter()
                    .map(|index| ((number as u64) << 32) + (index * codebooks) as u64)
                    .collect::<Vec<_>>(),
            };
            page.write(&options, &mut |frame| {
                for (row, code) in rows.iter_mut().zip(frame) {
                    row.push(*code);
                }
                flow = player.push(frame)?;
                Ok(flow)
            })?;
            if flow.is_break() {
                break;
            }
        }
        for (entry, rows) in group.iter().zip(rows.chunks(codebooks)) {
            codes[*entry] = rows.to_vec();
        }
        match flow {
            ControlFlow::Continue(()) => player.finish(),
            ControlFlow::Break(()) => Ok(flow),
        }
    }

    /// The words of a batch; none for a text model if nobody has any.
    fn text(&self, plans: &[&Plan]) -> Result<Option<Text>> {
        let longest = plans.iter().map(|plan| plan.words.len()).max().unwrap_or(0);
        if longest == 0 {
            return match self.network.config().has_melody() {
                true => self.network.no_text(plans.len()).map(Some),
                false => Ok(None),
            };
        }
        let real = |plan: &&Plan| (0..longest).map(|t| t < plan.words.len()).collect();
        let real: Vec<Vec<bool>> = plans.iter().map(real).collect();
        let padded = |plan: &&Plan| {
            let mut words = plan.words.clone();
            words.resize(longest, 0);
            words
        };
        let ids: Vec<u32> = plans.iter().flat_map(padded).collect();
        let ids = Tensor::from_vec(ids, (plans.len(), longest), self.network.decoder().device())?;
        self.network.read(&ids, Some(real)).map(Some)
    }

    /// The melodies of a batch, `(batch, chroma_length, num_chroma)`; none if nobody has any. A window of a longer
    /// piece that begins at frame `from` hears the melody from there, over and over.
    fn melody(&self, plans: &[&Plan], from: Option<usize>) -> Result<Option<Tensor>> {
        let Some(chroma) = self.chroma.as_ref().filter(|_| plans.iter().any(|plan| plan.melody.is_some()))
        else {
            return Ok(None);
        };
        let config = self.network.config();
        let rate = f64::from(chroma.config().sampling_rate);
        let longest = chroma.config().chunk_length * chroma.config().sampling_rate as usize;
        let mut ones = vec![0f32; plans.len() * config.chroma_length * config.num_chroma];
        for (plan, ones) in plans.iter().zip(ones.chunks_mut(config.chroma_length * config.num_chroma)) {
            let classes = match (&plan.melody, from) {
                (None, _) => vec![0],
                (Some(melody), None) => chroma.classes(&melody[..melody.len().min(longest)])?,
                (Some(melody), Some(frame)) => {
                    let seconds = frame as f64 / config.audio_encoder.frame_rate() as f64;
                    let heard = (self.window * rate) as usize;
                    let from = (seconds * rate) as usize % melody.len();
                    let heard: Vec<f32> =
                        melody.iter().copied().cycle().skip(from).take(heard.min(longest)).collect();
                    chroma.classes(&heard)?
                }
            };
            for (row, class) in ones.chunks_mut(config.num_chroma).zip(classes.iter().cycle()) {
                row[*class] = 1.0;
            }
        }
        let shape = (plans.len(), config.chroma_length, config.num_chroma);
        Ok(Some(Tensor::from_vec(ones, shape, &Device::Cpu)?))
    }
}

impl Plan {
    /// Frames of the beginning.
    fn frames(&self) -> usize {
        self.given.first().map_or(0, Vec::len)
    }
}

/// Rows of codes, one a codebook, as `(batch, codebooks, frames)` of int64 on the CPU.
pub(super) fn codes_tensor(rows: &[Vec<u32>], batch: usize) -> Result<Tensor> {
    let frames = rows.first().map_or(0, Vec::len);
    let codes: Vec<i64> = rows.iter().flatten().map(|code| i64::from(*code)).collect();
    Ok(Tensor::from_vec(codes, (batch, rows.len() / batch.max(1), frames), &Device::Cpu)?)
}

/// Turns frames to sound as they come.
struct Player<'a> {
    composer: &'a MusicGenerator,
    group: &'a [usize],
    stream: Stream,
    /// Codes not decoded yet, one list for each codebook of each entry.
    waiting: Vec<Vec<u32>>,
    at_once: usize,
    each: &'a mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
}

impl<'a> Player<'a> {
    fn new(
        composer: &'a MusicGenerator,
        group: &'a [usize],
        each: &'a mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<Self> {
        let network = &composer.network;
        Ok(Self {
            composer,
            group,
            stream: network.codec().decode_stream()?,
            waiting: vec![Vec::new(); group.len() * network.config().decoder.num_codebooks],
            at_once: composer.frames(AT_ONCE).max(1),
            each,
        })
    }

    fn push(&mut self, frame: &[u32]) -> Result<ControlFlow<()>> {
        for (row, code) in self.waiting.iter_mut().zip(frame) {
            row.push(*code);
        }
        match self.waiting.first().is_some_and(|row| row.len() >= self.at_once) {
            true => self.flush(),
            false => Ok(ControlFlow::Continue(())),
        }
    }

    /// Decodes what waits.
    fn flush(&mut self) -> Result<ControlFlow<()>> {
        if self.waiting.first().is_none_or(Vec::is_empty) {
            return Ok(ControlFlow::Continue(()));
        }
        let network = &self.composer.network;
        let codes = codes_tensor(&self.waiting, self.group.len())?;
        self.waiting.iter_mut().for_each(Vec::clear);
        let sound = network.codec().decode_next(&network.sides(&codes)?, &mut self.stream)?;
        self.hand_over(sound)
    }

    fn finish(mut self) -> Result<ControlFlow<()>> {
        if self.flush()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let empty = self.composer.network.codec().decode_stream()?;
        let rest = std::mem::replace(&mut self.stream, empty);
        let sound = self.composer.network.codec().decode_rest(rest)?;
        self.hand_over(sound)
    }

    fn hand_over(&mut self, sound: Option<Tensor>) -> Result<ControlFlow<()>> {
        let Some(sound) = sound else { return Ok(ControlFlow::Continue(())) };
        let sound = self.composer.network.joined(&sound)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let rate = self.composer.network.config().audio_encoder.sampling_rate as u32;
        for (entry, index) in self.group.iter().enumerate() {
            let channels = sound.i(entry)?.t()?.to_vec2()?;
            if (self.each)(*index, Sound { rate, channels }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
