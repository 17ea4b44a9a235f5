//! SEANet, the network on either side of the codes: convolutions, an LSTM, residual blocks (section 3.1).
//!
//! Every layer takes the sound piece by piece and gives what has become certain; its [`State`] holds the frames that
//! later outputs still need. A whole sound is one piece, and the last. The outputs are the same either way, so a long
//! sound passes in bounded memory and a short one as it is made.

use candle_core::Tensor;
use fauna_shared::nn::{
    Activation, Conv1d, ConvOptions, ConvTranspose1d, GroupNorm, Lstm, LstmState, PadMode, add, pad_time,
};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::config::{Config, NormType};

/// Epsilon of the norms.
const EPSILON: f64 = 1e-5;

/// Numbers of an activation that go through the layers at once: few enough to be in the processor's caches still
/// when the next layer reads them, enough to make its products worth their weights.
const AT_ONCE: usize = 1 << 20;

/// One of the two networks.
pub(super) struct Seanet {
    layers: Vec<Layer>,
    /// Frames that go in at once.
    piece: usize,
    /// Whether pieces are allowed; the whole sound at once otherwise.
    streams: bool,
}

/// What a network keeps between two pieces of a sound.
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

/// What a convolution keeps.
#[derive(Debug, Clone, Default)]
struct Frames {
    /// The frames that later outputs need.
    kept: Option<Tensor>,
    /// Where among them the next window begins; those before it are there for the mirror at the end.
    next: usize,
    /// Frames taken in so far.
    seen: usize,
    /// Whether the beginning is padded.
    begun: bool,
}

impl Seanet {
    /// Sound to frames: `(batch, samples, channels)` to `(batch, frames, hidden_size)`.
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
        Ok(Self { layers: layers.list, piece: pieces_of(c.num_filters), streams: c.streams() })
    }

    /// Frames to sound: `(batch, frames, hidden_size)` to `(batch, frames * hop, channels)`.
    pub fn decoder(c: &Config, w: &Weights) -> Result<Self> {
        let mut layers = Layers::new(c, w);
        let mut width = c.widest();
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
        Ok(Self { layers: layers.list, piece: pieces_of(c.widest()), streams: c.streams() })
    }

    /// What the network makes of a whole sound.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let made = self.push(Some(x), true, &mut self.start())?;
        made.ok_or_else(|| Error::input("a sound of no samples"))
    }

    /// What the layers keep before the first piece.
    pub fn start(&self) -> State {
        State { layers: self.layers.iter().map(Layer::start).collect() }
    }

    /// What the next piece of a sound makes certain, if anything. The `last` piece brings out all the rest, and may
    /// be empty.
    pub fn push(&self, x: Option<&Tensor>, last: bool, state: &mut State) -> Result<Option<Tensor>> {
        let mut waiting = vec![None; self.layers.len()];
        self.run(0, x.cloned(), Now { last, flush: true }, &mut state.layers, &mut waiting)
    }

    /// Sends `x` through the layers from `first` on, in pieces. What is too little to be worth a layer's weights
    /// waits before it for more, until this push has no more.
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
        let piece = match &x {
            Some(_) if !self.streams => usize::MAX,
            Some(x) if first > 0 => pieces_of(x.dim(0)? * x.dim(2)?),
            _ => self.piece,
        };
        let time = length(x.as_ref())?;
        if !now.flush && time < piece / 2 {
            waiting[first] = x;
            return Ok(None);
        }
        let mut made = Vec::new();
        for from in (0..time.max(1)).step_by(piece) {
            let end = time <= from.saturating_add(piece);
            let x = match &x {
                Some(x) => Some(x.narrow(1, from, piece.min(time - from))?),
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

/// What a piece ends.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// The sound.
    last: bool,
    /// What is there for the moment.
    flush: bool,
}

/// Frames of `width` numbers that go through the layers at once.
fn pieces_of(width: usize) -> usize {
    (AT_ONCE / width.max(1)).max(1)
}

/// The layers of a network as they are listed: the place in the list is part of a tensor's name.
struct Layers<'a> {
    list: Vec<Layer>,
    c: &'a Config,
    w: &'a Weights,
}

impl<'a> Layers<'a> {
    fn new(c: &'a Config, w: &'a Weights) -> Self {
        Self { list: Vec::new(), c, w }
    }

    /// Where the weights of the next layer lie.
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
            (Self::Lstm(lstm), LayerState::Lstm(state)) => x.map(|x| remember(lstm, x, state)).transpose(),
            (Self::Elu, _) => x.map(elu).transpose(),
            _ => Err(Error::input("a stream of another network")),
        }
    }
}

/// `LSTM(x) + x`, going on from what is remembered.
fn remember(lstm: &Lstm, x: Tensor, state: &mut Option<LstmState>) -> Result<Tensor> {
    let state = match state {
        Some(state) => state,
        None => state.insert(lstm.start(&x)?),
    };
    add(&lstm.forward_from(&x, state)?, &x)
}

fn elu(x: Tensor) -> Result<Tensor> {
    Activation::Elu.forward(&x)
}

/// A convolution between its paddings.
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
        // At the end the last window is filled up, with at most this many frames in all.
        let most = self.right + self.stride - 1;
        if !frames.begun && !last && x.dim(1)? <= self.left.max(most) {
            // What is mirrored before the first frame is not all here.
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
            // The mirror at the end shows up to `most` frames and turns at one more.
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

/// A transposed convolution over two frames at a time, whose surplus is cut.
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
        // What the last frame makes is certain up to where the next one begins.
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

/// What is skipped, or a convolution of it, plus what a narrow and a widening convolution make of it.
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

/// `x` with frames before and after it. What is too short to be mirrored is first made longer with zeros, and what
/// they added is cut off again.
fn pad(x: &Tensor, before: usize, after: usize, mode: PadMode) -> Result<Tensor> {
    let (time, most) = (x.dim(1)?, before.max(after));
    if mode != PadMode::Reflect || time > most {
        return pad_time(x, before, after, mode);
    }
    let longer = pad_time(x, 0, most + 1 - time, PadMode::Zeros)?;
    Ok(pad_time(&longer, before, after, mode)?.narrow(1, 0, before + time + after)?)
}

/// One after the other in time.
fn join(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(Tensor::cat(&[a, b], 1)?)),
        (a, b) => Ok(a.or(b)),
    }
}

fn length(x: Option<&Tensor>) -> Result<usize> {
    Ok(x.map_or(Ok(0), |x| x.dim(1))?)
}
