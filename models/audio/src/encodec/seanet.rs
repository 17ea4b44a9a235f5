//! SEANet, the encoder and decoder network: convolutions, residual blocks and an LSTM (section 3.1).
//!
//! Every layer is streaming: it takes chunks and returns the outputs that are complete; its [`State`] keeps the frames
//! that later outputs need. Whole audio is a single chunk, which is also the last. The outputs do not depend on the
//! chunking, so that long audio runs in bounded memory.

use candle_core::Tensor;
use fauna_shared::nn::{
    Activation, Conv1d, ConvOptions, ConvTranspose1d, GroupNorm, Lstm, LstmState, PadMode, add, pad_time,
};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::config::{Config, NormType};

/// Epsilon of the group norms.
const EPSILON: f64 = 1e-5;

/// Elements of an activation per chunk: few enough to stay in the CPU caches from layer to layer, enough for efficient
/// matrix products.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// The encoder or the decoder.
pub(super) struct Seanet {
    layers: Vec<Layer>,
    /// Length of a chunk of the input.
    chunk: usize,
    /// Whether the network can stream.
    streams: bool,
}

/// The state of a network between two chunks.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    layers: Vec<LayerState>,
}

#[derive(Debug, Clone)]
enum LayerState {
    Frames(Frames),
    Residual { narrow: Frames, widen: Frames, skipped: Option<Tensor> },
    Lstm(Option<LstmState>),
    Nothing,
}

/// The state of a convolution.
#[derive(Debug, Clone, Default)]
struct Frames {
    /// Input frames that later outputs need.
    kept: Option<Tensor>,
    /// Index of the start of the next window in `kept`; earlier frames are for reflection padding at the end.
    next: usize,
    /// Number of input frames so far.
    seen: usize,
    /// Whether the left padding is done.
    begun: bool,
}

impl Seanet {
    /// Loads the encoder: `(batch, samples, channels)` to `(batch, frames, hidden_size)`.
    pub fn encoder(c: &Config, w: &Weights) -> Result<Self> {
        let mut layers = Layers::new(c, w);
        let mut width = c.num_filters;
        layers.conv(c.audio_channels, width, c.kernel_size, 1)?;
        for ratio in c.upsampling_ratios.iter().copied().rev() {
            layers.residuals(width)?;
            layers.elu();
            layers.conv(width, 2 * width, 2 * ratio, ratio)?;
            width *= 2;
        }
        layers.lstm(width)?;
        layers.elu();
        layers.conv(width, c.hidden_size, c.last_kernel_size, 1)?;
        Ok(Self { layers: layers.list, chunk: chunk_length(c.num_filters), streams: c.streams() })
    }

    /// Loads the decoder: `(batch, frames, hidden_size)` to `(batch, frames * hop, channels)`.
    pub fn decoder(c: &Config, w: &Weights) -> Result<Self> {
        let mut layers = Layers::new(c, w);
        let mut width = c.max_channels();
        layers.conv(c.hidden_size, width, c.kernel_size, 1)?;
        layers.lstm(width)?;
        for ratio in c.upsampling_ratios.iter().copied() {
            layers.elu();
            layers.conv_transpose(width, width / 2, ratio)?;
            width /= 2;
            layers.residuals(width)?;
        }
        layers.elu();
        layers.conv(width, c.audio_channels, c.last_kernel_size, 1)?;
        Ok(Self { layers: layers.list, chunk: chunk_length(c.max_channels()), streams: c.streams() })
    }

    /// Runs the network on whole audio.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let made = self.push(Some(x), true, &mut self.start())?;
        made.ok_or_else(|| Error::input("the audio has no samples"))
    }

    /// The state before the first chunk.
    pub fn start(&self) -> State {
        State { layers: self.layers.iter().map(Layer::start).collect() }
    }

    /// Runs the network on the next chunk; returns the outputs that are complete, if any. The `last` chunk completes
    /// all outputs, and may be empty.
    pub fn push(&self, x: Option<&Tensor>, last: bool, state: &mut State) -> Result<Option<Tensor>> {
        let mut waiting = vec![None; self.layers.len()];
        self.run(0, x.cloned(), Now { last, flush: true }, &mut state.layers, &mut waiting)
    }

    /// Runs the layers from `first` on, in chunks. Short chunks are buffered before a layer until the end of this push.
    fn run(
        &self,
        first: usize,
        x: Option<Tensor>,
        now: Now,
        states: &mut [LayerState],
        waiting: &mut [Option<Tensor>],
    ) -> Result<Option<Tensor>> {
        let (Some(layer), true) = (self.layers.get(first), first < states.len()) else { return Ok(x) };
        let x = join(waiting[first].take(), x)?;
        let chunk = match &x {
            Some(_) if !self.streams => usize::MAX,
            Some(x) if first > 0 => chunk_length(x.dim(0)? * x.dim(2)?),
            _ => self.chunk,
        };
        let time = length(x.as_ref())?;
        if !now.flush && time < chunk / 2 {
            waiting[first] = x;
            return Ok(None);
        }
        let mut made = Vec::new();
        for from in (0..time.max(1)).step_by(chunk) {
            let end = time <= from.saturating_add(chunk);
            let x = match &x {
                Some(x) => Some(x.narrow(1, from, chunk.min(time - from))?),
                None => None,
            };
            let now = Now { last: now.last && end, flush: now.flush && end };
            let done = match x.is_none() && !now.last {
                true => None,
                false => layer.push(x, now.last, &mut states[first])?,
            };
            made.extend(self.run(first + 1, done, now, states, waiting)?);
        }
        match made.len() {
            0 => Ok(None),
            1 => Ok(made.pop()),
            _ => Ok(Some(Tensor::cat(&made, 1)?)),
        }
    }
}

/// What ends with a chunk.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// The whole audio.
    last: bool,
    /// The current push, so that buffers are flushed.
    flush: bool,
}

/// Length of a chunk of frames with `width` channels.
fn chunk_length(width: usize) -> usize {
    (CHUNK_ELEMENTS / width.max(1)).max(1)
}

/// Builder of the list of layers; the index of a layer is part of its tensors' names.
struct Layers<'a> {
    list: Vec<Layer>,
    c: &'a Config,
    w: &'a Weights,
}

impl<'a> Layers<'a> {
    fn new(c: &'a Config, w: &'a Weights) -> Self {
        Self { list: Vec::new(), c, w }
    }

    /// The weights of the next layer.
    fn here(&self) -> Weights {
        self.w.at_index("layers", self.list.len())
    }

    fn conv(&mut self, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Result<()> {
        let options = ConvOptions::new(kernel).stride(stride);
        let conv = Conv::load(self.c, &self.here(), inputs, outputs, options, stride)?;
        self.list.push(Layer::Conv(conv));
        Ok(())
    }

    fn conv_transpose(&mut self, inputs: usize, outputs: usize, ratio: usize) -> Result<()> {
        let conv = ConvTranspose::load(self.c, &self.here(), inputs, outputs, ratio)?;
        self.list.push(Layer::ConvTranspose(conv));
        Ok(())
    }

    fn residuals(&mut self, width: usize) -> Result<()> {
        let mut dilation = 1;
        for _ in 0..self.c.num_residual_layers {
            let block = Residual::load(self.c, &self.here(), width, dilation)?;
            self.list.push(Layer::Residual(Box::new(block)));
            dilation = dilation.saturating_mul(self.c.dilation_growth_rate);
        }
        Ok(())
    }

    fn lstm(&mut self, width: usize) -> Result<()> {
        let lstm = self.here().lstm("lstm", width, width, self.c.num_lstm_layers)?;
        self.list.push(Layer::Lstm(lstm));
        Ok(())
    }

    fn elu(&mut self) {
        self.list.push(Layer::Elu);
    }
}

enum Layer {
    Conv(Conv),
    ConvTranspose(ConvTranspose),
    Residual(Box<Residual>),
    Lstm(Lstm),
    Elu,
}

impl Layer {
    fn start(&self) -> LayerState {
        match self {
            Self::Conv(_) | Self::ConvTranspose(_) => LayerState::Frames(Frames::default()),
            Self::Residual(_) => {
                LayerState::Residual { narrow: Frames::default(), widen: Frames::default(), skipped: None }
            }
            Self::Lstm(_) => LayerState::Lstm(None),
            Self::Elu => LayerState::Nothing,
        }
    }

    fn push(&self, x: Option<Tensor>, last: bool, state: &mut LayerState) -> Result<Option<Tensor>> {
        match (self, state) {
            (Self::Conv(conv), LayerState::Frames(frames)) => conv.push(x, last, frames),
            (Self::ConvTranspose(conv), LayerState::Frames(frames)) => conv.push(x, last, frames),
            (Self::Residual(block), LayerState::Residual { narrow, widen, skipped }) => {
                block.push(x, last, narrow, widen, skipped)
            }
            (Self::Lstm(lstm), LayerState::Lstm(state)) => {
                x.map(|x| residual_lstm(lstm, x, state)).transpose()
            }
            (Self::Elu, _) => x.map(elu).transpose(),
            _ => Err(Error::input("the stream is of another network")),
        }
    }
}

/// `LSTM(x) + x`, from the LSTM state on.
fn residual_lstm(lstm: &Lstm, x: Tensor, state: &mut Option<LstmState>) -> Result<Tensor> {
    let state = match state {
        Some(state) => state,
        None => state.insert(lstm.start(&x)?),
    };
    add(&lstm.forward_from(&x, state)?, &x)
}

fn elu(x: Tensor) -> Result<Tensor> {
    Activation::Elu.forward(&x)
}

/// A padded convolution.
struct Conv {
    conv: Conv1d,
    norm: Option<GroupNorm>,
    stride: usize,
    left: usize,
    right: usize,
    mode: PadMode,
}

impl Conv {
    fn load(
        c: &Config,
        w: &Weights,
        inputs: usize,
        outputs: usize,
        options: ConvOptions,
        stride: usize,
    ) -> Result<Self> {
        let options = options.weight_norm(c.norm_type == NormType::WeightNorm);
        let surplus = options.span().saturating_sub(stride);
        let right = if c.use_causal_conv { 0 } else { surplus / 2 };
        Ok(Self {
            conv: w.conv1d("conv", inputs, outputs, options)?,
            norm: norm(c, w, outputs)?,
            stride,
            left: surplus - right,
            right,
            mode: c.pad_mode,
        })
    }

    fn push(&self, x: Option<Tensor>, last: bool, frames: &mut Frames) -> Result<Option<Tensor>> {
        if self.conv.options().span() == 1 {
            return x.map(|x| self.convolve(&x)).transpose();
        }
        frames.seen += length(x.as_ref())?;
        let Some(x) = join(frames.kept.take(), x)? else { return Ok(None) };
        // At the end, the last window is padded with at most this many frames.
        let most = self.right + self.stride - 1;
        if !frames.begun && !last && x.dim(1)? <= self.left.max(most) {
            // Not enough frames for the reflection padding at the start.
            frames.kept = Some(x);
            return Ok(None);
        }
        let before = if frames.begun { 0 } else { self.left };
        let fill = frames.seen.next_multiple_of(self.stride) - frames.seen;
        let after = if last { self.right + fill } else { 0 };
        let x = pad(&x, before, after, self.mode)?;
        frames.begun = true;

        let (time, first) = (x.dim(1)?, frames.next);
        let Some(windows) = self.conv.options().frames(time - first) else {
            frames.kept = Some(x);
            return Ok(None);
        };
        let next = first + windows * self.stride;
        if !last {
            // Reflection padding at the end needs up to `most + 1` frames.
            let from = next.min(time.saturating_sub(most + 1));
            frames.kept = Some(x.narrow(1, from, time - from)?.force_contiguous()?);
            frames.next = next - from;
        }
        let read = (windows - 1) * self.stride + self.conv.options().span();
        self.convolve(&x.narrow(1, first, read)?.contiguous()?).map(Some)
    }

    fn convolve(&self, x: &Tensor) -> Result<Tensor> {
        normed(&self.norm, self.conv.forward(x)?)
    }
}

/// A transposed convolution with a kernel of two frames, whose surplus is trimmed.
struct ConvTranspose {
    conv: ConvTranspose1d,
    norm: Option<GroupNorm>,
    ratio: usize,
    left: usize,
    right: usize,
}

impl ConvTranspose {
    fn load(c: &Config, w: &Weights, inputs: usize, outputs: usize, ratio: usize) -> Result<Self> {
        let options = ConvOptions::new(2 * ratio).stride(ratio);
        let right = match c.use_causal_conv {
            true => (ratio as f64 * c.trim_right_ratio).ceil() as usize,
            false => ratio / 2,
        };
        let weight_norm = c.norm_type == NormType::WeightNorm;
        Ok(Self {
            conv: w.conv_transpose1d("conv", inputs, outputs, options.weight_norm(weight_norm))?,
            norm: norm(c, w, outputs)?,
            ratio,
            left: ratio - right,
            right,
        })
    }

    fn push(&self, x: Option<Tensor>, last: bool, frames: &mut Frames) -> Result<Option<Tensor>> {
        let before = length(frames.kept.as_ref())?;
        let Some(x) = join(frames.kept.take(), x)? else { return Ok(None) };
        let time = x.dim(1)?;
        let y = normed(&self.norm, self.conv.forward(&x)?)?;
        // The outputs of the last frame are complete up to the start of the next frame.
        let until = if last { y.dim(1)? - self.right } else { time * self.ratio };
        let from = if frames.begun { before * self.ratio } else { self.left };
        if !last {
            frames.kept = Some(x.narrow(1, time - 1, 1)?.force_contiguous()?);
        }
        frames.begun = true;
        match until - from {
            0 => Ok(None),
            time => Ok(Some(y.narrow(1, from, time)?.contiguous()?)),
        }
    }
}

/// A residual block: the shortcut plus two convolutions, the first with fewer channels.
struct Residual {
    narrow: Conv,
    widen: Conv,
    shortcut: Option<Conv>,
}

impl Residual {
    fn load(c: &Config, w: &Weights, width: usize, dilation: usize) -> Result<Self> {
        let (inner, block) = (width / c.compress, w.at("block"));
        let dilated = ConvOptions::new(c.residual_kernel_size).dilation(dilation);
        let plain = ConvOptions::new(1);
        Ok(Self {
            narrow: Conv::load(c, &block.at("1"), width, inner, dilated, 1)?,
            widen: Conv::load(c, &block.at("3"), inner, width, plain, 1)?,
            shortcut: match c.use_conv_shortcut {
                true => Some(Conv::load(c, &w.at("shortcut"), width, width, plain, 1)?),
                false => None,
            },
        })
    }

    fn push(
        &self,
        x: Option<Tensor>,
        last: bool,
        narrow: &mut Frames,
        widen: &mut Frames,
        skipped: &mut Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let y = self.narrow.push(x.clone().map(elu).transpose()?, last, narrow)?;
        let y = self.widen.push(y.map(elu).transpose()?, last, widen)?;
        let (x, y) = match (join(skipped.take(), x)?, y) {
            (Some(x), Some(y)) => (x, y),
            (x, _) => {
                *skipped = x;
                return Ok(None);
            }
        };
        let (time, made) = (x.dim(1)?, y.dim(1)?);
        if made < time {
            *skipped = Some(x.narrow(1, made, time - made)?.force_contiguous()?);
        }
        let x = x.narrow(1, 0, made)?;
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.convolve(&x.contiguous()?)?,
            None => x,
        };
        add(&x, &y).map(Some)
    }
}

fn norm(c: &Config, w: &Weights, width: usize) -> Result<Option<GroupNorm>> {
    match c.norm_type {
        NormType::WeightNorm => Ok(None),
        NormType::TimeGroupNorm => w.group_norm("norm", 1, width, EPSILON).map(Some),
    }
}

fn normed(norm: &Option<GroupNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}

/// Pads `x` over time. For reflection padding, a shorter `x` is extended with zeros first, which are removed again, as
/// in the reference.
fn pad(x: &Tensor, before: usize, after: usize, mode: PadMode) -> Result<Tensor> {
    let (time, most) = (x.dim(1)?, before.max(after));
    if mode != PadMode::Reflect || time > most {
        return pad_time(x, before, after, mode);
    }
    let longer = pad_time(x, 0, most + 1 - time, PadMode::Zeros)?;
    Ok(pad_time(&longer, before, after, mode)?.narrow(1, 0, before + time + after)?)
}

/// Concatenates over time.
fn join(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(Tensor::cat(&[a, b], 1)?)),
        (a, b) => Ok(a.or(b)),
    }
}

fn length(x: Option<&Tensor>) -> Result<usize> {
    Ok(x.map_or(Ok(0), |x| x.dim(1))?)
}
