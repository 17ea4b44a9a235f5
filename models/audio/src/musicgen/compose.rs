//! Music generation from prompts: batched, of any length, with streaming of the audio.

use std::ops::ControlFlow;

use candle_core::{DType, Device, IndexOp, Tensor};
use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
use fauna_shared::audio::sinc::Sinc;
use fauna_shared::audio::{self, with_channels};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::Sound;
use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, ErrorKind, Result, transfer};

use super::pattern::{DelayPattern, Window, windows};
use super::write::WindowDecoder;
use super::{EncodedText, MusicGen, no_melody_here};
use crate::encodec::Stream;

/// T5's maximum sequence length in training.
const MAX_TEXT_LENGTH: usize = 512;

/// The duration in training, and the stride of the windows of longer audio, in seconds.
const WINDOW: f64 = 30.0;
const STRIDE: f64 = 18.0;

/// Duration of a chunk of streamed audio, in seconds.
const CHUNK: f64 = 0.5;

/// A prompt of music generation. All parts are optional.
#[derive(Debug, Clone, Default)]
pub struct MusicPrompt {
    /// The text description.
    pub text: String,
    /// Melody conditioning, for melody models: the first 30 s, repeated if shorter.
    pub melody: Option<Sound>,
    /// Audio to continue; it is the beginning of the result, as decoded by the codec.
    pub audio_prompt: Option<Sound>,
}

/// The network with its preprocessing of prompts.
pub struct MusicGenerator {
    network: MusicGen,
    tokenizer: Option<Tokenizer>,
    chroma: Option<Chroma>,
    window: f64,
    stride: f64,
}

/// A preprocessed prompt.
struct PreparedPrompt {
    /// Token ids of the text; empty without text.
    ids: Vec<u32>,
    /// Mono samples of the melody at the chromagram's sampling rate.
    melody: Option<Vec<f32>>,
    /// The codes of the audio prompt, one list per codebook.
    given: Vec<Vec<u32>>,
}

impl MusicGenerator {
    /// Creates a generator without a tokenizer, for prompts without text.
    pub fn new(network: MusicGen) -> Self {
        Self { network, tokenizer: None, chroma: None, window: WINDOW, stride: STRIDE }
    }

    /// Sets the tokenizer of the text.
    pub fn with_tokenizer(self, tokenizer: Option<Tokenizer>) -> Self {
        Self { tokenizer, ..self }
    }

    /// Sets the chromagram settings; ignored by models without melody conditioning.
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

    /// Sets the windows of audio longer than one: at most `window` seconds each, with a stride of `stride` seconds; the
    /// overlap is the context of the next window. 30 and 18 by default.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) unless `0 < stride <= window`, each at least a frame.
    pub fn with_windows(self, window: f64, stride: f64) -> Result<Self> {
        let generator = Self { window, stride, ..self };
        match stride <= window && generator.frames(stride) > 0 && window.is_finite() {
            true => Ok(generator),
            false => {
                Err(Error::input(format!("windows of {window} s with a stride of {stride} s are invalid")))
            }
        }
    }

    /// Replaces the network by one of the same config.
    pub(super) fn set_network(&mut self, network: MusicGen) {
        self.network = network;
    }

    /// The network.
    pub fn network(&self) -> &MusicGen {
        &self.network
    }

    /// The chromagram extractor, if the model has melody conditioning.
    pub fn chroma(&self) -> Option<&Chroma> {
        self.chroma.as_ref()
    }

    /// Generates music for each prompt, in one batch if their lengths allow, and streams the audio in chunks of half a
    /// second, with the index of the prompt; `each` may break to end all generation. Returns the codes of each prompt,
    /// `(codebooks, frames)` of int64.
    ///
    /// `options.seconds` is the duration of the whole result, audio prompt included; without it, `max_new_tokens` is
    /// the number of new columns of the delay pattern, as in transformers. Audio longer than in training is generated
    /// in overlapping windows. Unconditional prompts have no guidance.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for options out of range, a text of more than 512 tokens, invalid audio, a melody
    /// for a model without melody conditioning, or an audio prompt that is not shorter than the result.
    pub fn generate(
        &self,
        prompts: &[MusicPrompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<Vec<Tensor>> {
        options.check()?;
        let plan = |(index, prompt): (usize, &MusicPrompt)| {
            self.plan(prompt).map_err(|error| match prompts.len() {
                1 => error,
                _ => error.context(format!("prompt {index}")),
            })
        };
        let plans = prompts.iter().enumerate().map(plan).collect::<Result<Vec<_>>>()?;
        let mut codes: Vec<Vec<Vec<u32>>> = plans.iter().map(|plan| plan.given.clone()).collect();
        let mut flow = ControlFlow::Continue(());
        for group in self.groups(&plans) {
            if flow.is_continue() {
                flow = self.generate_group(&plans, &group, options, &mut codes, each)?;
            }
        }
        codes.into_iter().map(|rows| codes_tensor(&rows, 1)?.i(0).map_err(Error::from)).collect()
    }

    /// Groups the prompts into batches of the same audio prompt length, and in melody models of the same text length,
    /// so that the positions of one do not depend on the others.
    fn groups(&self, plans: &[PreparedPrompt]) -> Vec<Vec<usize>> {
        let key = |plan: &PreparedPrompt| {
            let text = if self.network.config().has_melody() { plan.ids.len().max(1) } else { 0 };
            (text, plan.frames())
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

    /// Tokenizes a description; no tokens for an empty one.
    pub(super) fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the model has no tokenizer for text prompts")
                .hint("put T5's tokenizer.json or spiece.model next to the weights")
        })?;
        tokenizer.encode(text, true)
    }

    fn plan(&self, prompt: &MusicPrompt) -> Result<PreparedPrompt> {
        let ids = self.text_ids(&prompt.text)?;
        if ids.len() > MAX_TEXT_LENGTH {
            return Err(Error::input(format!(
                "the text has {} tokens, the maximum is {MAX_TEXT_LENGTH}",
                ids.len()
            ))
            .hint("shorten the text"));
        }
        let melody = match (&prompt.melody, &self.chroma) {
            (None, _) => None,
            (Some(_), None) => return Err(no_melody_here()),
            (Some(melody), Some(chroma)) => {
                let mono = audio::mono(melody.clone())?;
                Some(Sinc::JULIUS.resample(&mono, melody.rate, chroma.config().sampling_rate)?)
            }
        };
        let given = match &prompt.audio_prompt {
            None => vec![Vec::new(); self.network.config().decoder.num_codebooks],
            Some(sound) => self.codes_of(sound)?,
        };
        Ok(PreparedPrompt { ids, melody, given })
    }

    /// Encodes audio of any sampling rate, mono or stereo; returns one list per codebook.
    pub(super) fn codes_of(&self, sound: &Sound) -> Result<Vec<Vec<u32>>> {
        let config = self.network.config();
        let (rate, channels) = (config.audio_encoder.sampling_rate as u32, self.channels());
        let sound = with_channels(sound.clone(), channels)?;
        let resampled = sound.channels.iter().map(|channel| Sinc::JULIUS.resample(channel, sound.rate, rate));
        let channels = resampled.collect::<Result<Vec<_>>>()?;
        let decoder = self.network.decoder();
        let sound = Tensor::new(channels, &Device::Cpu)?.t()?.unsqueeze(0)?.contiguous()?;
        let sound = sound.to_device(decoder.device())?.to_dtype(decoder.activations())?;
        let codes = transfer::rows::<u32>(&self.network.encode(&sound)?.squeeze(0)?.to_dtype(DType::U32)?)?;
        match codes.iter().flatten().find(|code| **code as usize >= config.decoder.vocab_size) {
            None => Ok(codes),
            Some(code) => Err(Error::input(format!(
                "the codec's code {code} is outside the language model's vocabulary of {}",
                config.decoder.vocab_size
            ))),
        }
    }

    /// Number of audio channels.
    fn channels(&self) -> usize {
        let config = self.network.config();
        config.decoder.audio_channels.max(config.audio_encoder.audio_channels)
    }

    /// Number of complete frames in `seconds`.
    fn frames(&self, seconds: f64) -> usize {
        // The epsilon avoids losing a frame to rounding.
        (seconds * self.network.config().audio_encoder.frame_rate() as f64 + 1e-6) as usize
    }

    /// The windows of the generation, and whether the length is given in columns.
    fn length(&self, given: usize, options: &GenerationConfig) -> Result<(Vec<Window>, bool)> {
        let decoder = &self.network.config().decoder;
        let Some(seconds) = options.seconds else {
            let columns = options.max_new_tokens.saturating_add(1 + given);
            let pattern = DelayPattern::of_columns(decoder.num_codebooks, decoder.audio_channels, columns);
            return match pattern.frames() > given {
                true => Ok((vec![Window { start: 0, context: given, end: pattern.frames() }], true)),
                false => Err(Error::input(format!(
                    "max_new_tokens {} is less than the delays need for one frame",
                    options.max_new_tokens
                ))),
            };
        };
        let total = self.frames(seconds);
        if total == 0 {
            return Err(Error::input(format!("{seconds} seconds are shorter than one frame"))
                .hint(format!("the frame rate is {} Hz", self.network.config().audio_encoder.frame_rate())));
        }
        if total <= given {
            return Err(Error::input(format!(
                "the audio to continue has {given} frames, the result of {seconds} s has {total}"
            ))
            .hint("seconds include the audio to continue"));
        }
        Ok((windows(given, total, self.frames(self.window), self.frames(self.stride)), false))
    }

    /// Generates one batch.
    fn generate_group(
        &self,
        plans: &[PreparedPrompt],
        group: &[usize],
        options: &GenerationConfig,
        codes: &mut [Vec<Vec<u32>>],
        each: &mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let decoder = &self.network.config().decoder;
        let (codebooks, channels) = (decoder.num_codebooks, decoder.audio_channels);
        let members: Vec<&PreparedPrompt> = group.iter().map(|index| &plans[*index]).collect();
        let given = members.first().map_or(0, |plan| plan.frames());
        let (windows, by_columns) = self.length(given, options)?;
        let text = self.text(&members)?;
        let conditional = members.iter().any(|plan| !plan.ids.is_empty() || plan.melody.is_some());
        let guidance = if conditional { options.guidance } else { 1.0 };
        let options = GenerationConfig { guidance, ..options.clone() };

        let mut streamer = AudioStreamer::new(self, group, each)?;
        let mut rows: Vec<Vec<u32>> = members.iter().flat_map(|plan| plan.given.clone()).collect();
        for frame in 0..given {
            let frame: Vec<u32> = rows.iter().map(|row| row[frame]).collect();
            if streamer.push(&frame)?.is_break() {
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
            let decoder = WindowDecoder {
                decoder: self.network.decoder(),
                condition: self.network.condition(text.as_ref(), melody.as_ref(), guidance != 1.0)?,
                pattern: match by_columns {
                    true => DelayPattern::of_columns(
                        codebooks,
                        channels,
                        options.max_new_tokens.saturating_add(1 + given),
                    ),
                    false => DelayPattern::of_frames(codebooks, channels, frames),
                },
                given: &known,
                // Each window and each prompt has its own stream.
                streams: &group
                    .iter()
                    .map(|index| ((number as u64) << 32) + (index * codebooks) as u64)
                    .collect::<Vec<_>>(),
            };
            decoder.generate(&options, &mut |frame| {
                for (row, code) in rows.iter_mut().zip(frame) {
                    row.push(*code);
                }
                flow = streamer.push(frame)?;
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
            ControlFlow::Continue(()) => streamer.finish(),
            ControlFlow::Break(()) => Ok(flow),
        }
    }

    /// Encodes the texts of a batch; `None` for a text model if all are empty.
    fn text(&self, plans: &[&PreparedPrompt]) -> Result<Option<EncodedText>> {
        let longest = plans.iter().map(|plan| plan.ids.len()).max().unwrap_or(0);
        if longest == 0 {
            return match self.network.config().has_melody() {
                true => self.network.no_text(plans.len()).map(Some),
                false => Ok(None),
            };
        }
        let real = |plan: &&PreparedPrompt| (0..longest).map(|t| t < plan.ids.len()).collect();
        let real: Vec<Vec<bool>> = plans.iter().map(real).collect();
        let padded = |plan: &&PreparedPrompt| {
            let mut ids = plan.ids.clone();
            ids.resize(longest, 0);
            ids
        };
        let ids: Vec<u32> = plans.iter().flat_map(padded).collect();
        let ids = Tensor::from_vec(ids, (plans.len(), longest), self.network.decoder().device())?;
        self.network.encode_text(&ids, Some(real)).map(Some)
    }

    /// The chromagrams of a batch, `(batch, chroma_length, num_chroma)`; `None` without melodies. For a window that
    /// begins at frame `from`, the melody is shifted accordingly and repeated.
    fn melody(&self, plans: &[&PreparedPrompt], from: Option<usize>) -> Result<Option<Tensor>> {
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
                    let length = (self.window * rate) as usize;
                    let from = (seconds * rate) as usize % melody.len();
                    let samples: Vec<f32> =
                        melody.iter().copied().cycle().skip(from).take(length.min(longest)).collect();
                    chroma.classes(&samples)?
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

impl PreparedPrompt {
    /// Number of frames of the audio prompt.
    fn frames(&self) -> usize {
        self.given.first().map_or(0, Vec::len)
    }
}

/// Converts codes, one list per codebook, to `(batch, codebooks, frames)` of int64 on the CPU.
pub(super) fn codes_tensor(rows: &[Vec<u32>], batch: usize) -> Result<Tensor> {
    let frames = rows.first().map_or(0, Vec::len);
    let codes: Vec<i64> = rows.iter().flatten().map(|code| i64::from(*code)).collect();
    Ok(Tensor::from_vec(codes, (batch, rows.len() / batch.max(1), frames), &Device::Cpu)?)
}

/// Decodes frames to audio in a streaming manner.
struct AudioStreamer<'a> {
    generator: &'a MusicGenerator,
    group: &'a [usize],
    stream: Stream,
    /// Codes that are not decoded yet, one list per codebook of each batch element.
    pending: Vec<Vec<u32>>,
    chunk: usize,
    each: &'a mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
}

impl<'a> AudioStreamer<'a> {
    fn new(
        generator: &'a MusicGenerator,
        group: &'a [usize],
        each: &'a mut dyn FnMut(usize, Sound) -> ControlFlow<()>,
    ) -> Result<Self> {
        let network = &generator.network;
        Ok(Self {
            generator,
            group,
            stream: network.codec().decode_stream()?,
            pending: vec![Vec::new(); group.len() * network.config().decoder.num_codebooks],
            chunk: generator.frames(CHUNK).max(1),
            each,
        })
    }

    fn push(&mut self, frame: &[u32]) -> Result<ControlFlow<()>> {
        for (row, code) in self.pending.iter_mut().zip(frame) {
            row.push(*code);
        }
        match self.pending.first().is_some_and(|row| row.len() >= self.chunk) {
            true => self.flush(),
            false => Ok(ControlFlow::Continue(())),
        }
    }

    /// Decodes the pending codes.
    fn flush(&mut self) -> Result<ControlFlow<()>> {
        if self.pending.first().is_none_or(Vec::is_empty) {
            return Ok(ControlFlow::Continue(()));
        }
        let network = &self.generator.network;
        let codes = codes_tensor(&self.pending, self.group.len())?;
        self.pending.iter_mut().for_each(Vec::clear);
        let sound = network.codec().decode_next(&network.split_channels(&codes)?, &mut self.stream)?;
        self.emit(sound)
    }

    fn finish(mut self) -> Result<ControlFlow<()>> {
        if self.flush()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let empty = self.generator.network.codec().decode_stream()?;
        let rest = std::mem::replace(&mut self.stream, empty);
        let sound = self.generator.network.codec().decode_rest(rest)?;
        self.emit(sound)
    }

    fn emit(&mut self, sound: Option<Tensor>) -> Result<ControlFlow<()>> {
        let Some(sound) = sound else { return Ok(ControlFlow::Continue(())) };
        let sound =
            self.generator.network.merge_channels(&sound)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let rate = self.generator.network.config().audio_encoder.sampling_rate as u32;
        for (entry, index) in self.group.iter().enumerate() {
            let channels = transfer::rows(&sound.i(entry)?.t()?)?;
            if (self.each)(*index, Sound { rate, channels }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
