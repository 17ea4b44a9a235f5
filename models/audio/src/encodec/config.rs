//! The keys of `config.json`, and what follows from them.

use fauna_shared::model::check_sizes;
use fauna_shared::nn::PadMode;
use fauna_shared::{Error, Result};
use serde::Deserialize;

/// The keys of `config.json` that shape the codec. What a config leaves out has the reference's default: configs
/// inside other configs (MusicGen's) are written without the keys that have it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Samples a second, in Hz.
    pub sampling_rate: usize,
    /// Channels of sound.
    pub audio_channels: usize,
    /// The bandwidths offered, in kbit/s, ascending; the first is the default.
    pub target_bandwidths: Vec<f64>,
    /// Whether each window is brought to unit loudness, and its scale kept beside the codes.
    pub normalize: bool,
    /// The length of a window in seconds; none if the sound is coded in one piece.
    pub chunk_length_s: Option<f64>,
    /// The part of a window that the next one covers again.
    pub overlap: Option<f64>,
    /// Width of a frame.
    pub hidden_size: usize,
    /// Width of the first convolution; it doubles at every ratio.
    pub num_filters: usize,
    /// Residual blocks at every ratio.
    pub num_residual_layers: usize,
    /// Samples become frames by their product; in the decoder's order.
    pub upsampling_ratios: Vec<usize>,
    /// What keeps the convolutions in bounds.
    pub norm_type: NormType,
    /// Kernel of the first convolution of the encoder and of the decoder.
    pub kernel_size: usize,
    /// Kernel of the last.
    pub last_kernel_size: usize,
    /// Kernel of the residual blocks.
    pub residual_kernel_size: usize,
    /// By what the dilation of a residual block exceeds that of the one before it.
    pub dilation_growth_rate: usize,
    /// Whether no output depends on what comes after it.
    pub use_causal_conv: bool,
    /// What stands before and after the sound.
    pub pad_mode: PadMode,
    /// By what residual blocks narrow the width.
    pub compress: usize,
    /// Layers of the LSTM.
    pub num_lstm_layers: usize,
    /// How much of what a causal transposed convolution makes too much is cut at the right; the rest at the left.
    pub trim_right_ratio: f64,
    /// Entries of a codebook: a power of two.
    pub codebook_size: usize,
    /// Width of an entry; `hidden_size` if null.
    pub codebook_dim: Option<usize>,
    /// Whether residual blocks add a convolution of their input, rather than the input itself.
    pub use_conv_shortcut: bool,
}

/// What keeps the convolutions in bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormType {
    /// Weights given as direction and length (Salimans and Kingma 2016).
    WeightNorm,
    /// A group norm of one group over time and channels, after each convolution.
    TimeGroupNorm,
}

/// The 24 kHz codec, as the reference's own defaults have it.
impl Default for Config {
    fn default() -> Self {
        Self {
            sampling_rate: 24_000,
            audio_channels: 1,
            target_bandwidths: vec![1.5, 3.0, 6.0, 12.0, 24.0],
            normalize: false,
            chunk_length_s: None,
            overlap: None,
            hidden_size: 128,
            num_filters: 32,
            num_residual_layers: 1,
            upsampling_ratios: vec![8, 5, 4, 2],
            norm_type: NormType::WeightNorm,
            kernel_size: 7,
            last_kernel_size: 7,
            residual_kernel_size: 3,
            dilation_growth_rate: 2,
            use_causal_conv: true,
            pad_mode: PadMode::Reflect,
            compress: 2,
            num_lstm_layers: 2,
            trim_right_ratio: 1.0,
            codebook_size: 1024,
            codebook_dim: None,
            use_conv_shortcut: true,
        }
    }
}

/// The windows a long sound is coded in, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Samples of a window; the last may have fewer.
    pub length: usize,
    /// Samples from the start of a window to the start of the next.
    pub stride: usize,
}

impl Config {
    /// Samples of a frame: the product of the ratios.
    pub fn hop_length(&self) -> usize {
        self.upsampling_ratios.iter().product()
    }

    /// Frames a second, rounded up.
    pub fn frame_rate(&self) -> usize {
        self.sampling_rate.div_ceil(self.hop_length())
    }

    /// Bits of a code.
    fn bits(&self) -> usize {
        self.codebook_size.ilog2() as usize
    }

    /// Codebooks: what the widest bandwidth needs.
    pub fn num_quantizers(&self) -> usize {
        let widest = 1000.0 * self.target_bandwidths.last().copied().unwrap_or(0.0);
        let one = (self.frame_rate() * self.bits()) as f64;
        // A floor of the exact quotient, which a rounded division may miss by one.
        ((widest - widest % one) / one).round() as usize
    }

    /// Codebooks that `bandwidth` (kbit/s, the default if none) has room for.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if it is not offered; the message lists those that are.
    pub fn quantizers_for(&self, bandwidth: Option<f64>) -> Result<usize> {
        let Some(bandwidth) = bandwidth.or(self.target_bandwidths.first().copied()) else {
            return Ok(self.num_quantizers());
        };
        if !self.target_bandwidths.contains(&bandwidth) {
            let offered: Vec<String> = self.target_bandwidths.iter().map(f64::to_string).collect();
            return Err(Error::input(format!("a bandwidth of {bandwidth} kbit/s is not offered"))
                .hint(format!("offered: {}", offered.join(", "))));
        }
        let one = (self.bits() * self.frame_rate()) as f64;
        Ok(((bandwidth * 1000.0 / one).floor() as usize).clamp(1, self.num_quantizers()))
    }

    /// The windows; none if the sound is coded in one piece.
    pub fn windows(&self) -> Option<Windows> {
        let length = (self.chunk_length_s? * self.sampling_rate as f64) as usize;
        let stride = ((1.0 - self.overlap?) * length as f64) as usize;
        Some(Windows { length, stride: stride.max(1) })
    }

    /// Whether the networks can be given the sound piece by piece: what they make of one piece then depends only on
    /// its neighbourhood and on what came before.
    pub(super) fn streams(&self) -> bool {
        self.norm_type == NormType::WeightNorm && self.pad_mode != PadMode::Circular
    }

    /// Width between the network and the frames: the first width, doubled at every ratio.
    pub(super) fn widest(&self) -> usize {
        self.num_filters << self.upsampling_ratios.len()
    }

    /// Refuses what no network can be built from, before anything is multiplied or reserved by it.
    pub(crate) fn check(&self) -> Result<()> {
        check_sizes(&[
            ("sampling_rate", self.sampling_rate),
            ("audio_channels", self.audio_channels),
            ("hidden_size", self.hidden_size),
            ("num_filters", self.num_filters),
            ("kernel_size", self.kernel_size),
            ("last_kernel_size", self.last_kernel_size),
            ("residual_kernel_size", self.residual_kernel_size),
            ("dilation_growth_rate", self.dilation_growth_rate),
            ("compress", self.compress),
            ("num_lstm_layers", self.num_lstm_layers),
        ])?;
        let refuse = |message: String| Err(Error::unsupported(message));
        let ratios = &self.upsampling_ratios;
        if ratios.is_empty() || ratios.len() > 16 {
            return refuse(format!("upsampling_ratios has {} entries, 1 to 16 are wanted", ratios.len()));
        }
        let hop = ratios.iter().try_fold(1usize, |hop, ratio| hop.checked_mul(*ratio)).unwrap_or(0);
        check_sizes(&[("the product of upsampling_ratios", hop)])?;
        check_sizes(&[("num_filters, doubled at every ratio,", self.widest())])?;
        if self.compress > self.num_filters {
            return refuse(format!(
                "compress {} leaves nothing of num_filters {}",
                self.compress, self.num_filters
            ));
        }
        let dilation = u32::try_from(self.num_residual_layers.saturating_sub(1))
            .ok()
            .and_then(|power| self.dilation_growth_rate.checked_pow(power))
            .and_then(|dilation| dilation.checked_mul(self.residual_kernel_size))
            .unwrap_or(0);
        check_sizes(&[("the dilation that num_residual_layers and dilation_growth_rate lead to", dilation)])?;
        if !self.codebook_size.is_power_of_two() || self.codebook_size < 2 {
            return refuse(format!("codebook_size {} is not a power of two", self.codebook_size));
        }
        check_sizes(&[("codebook_size", self.codebook_size)])?;
        if let Some(width) = self.codebook_dim
            && width != self.hidden_size
        {
            return refuse(format!("codebook_dim {width} is not hidden_size {}", self.hidden_size));
        }
        if self.target_bandwidths.is_empty() || !self.target_bandwidths.iter().all(|b| *b > 0.0 && *b < 1e6) {
            return refuse(format!("target_bandwidths {:?} are not kbit/s", self.target_bandwidths));
        }
        let books = "the number of codebooks that target_bandwidths, sampling_rate, upsampling_ratios and codebook_size \
                     lead to";
        check_sizes(&[(books, self.num_quantizers())])?;
        if !(0.0..=1.0).contains(&self.trim_right_ratio) {
            return refuse(format!("trim_right_ratio {} is not between 0 and 1", self.trim_right_ratio));
        }
        if !self.use_causal_conv && self.trim_right_ratio != 1.0 {
            return refuse("trim_right_ratio is for causal convolutions, use_causal_conv is false".into());
        }
        match (self.chunk_length_s, self.overlap) {
            (None, _) => Ok(()),
            (Some(_), None) => refuse("chunk_length_s without overlap".into()),
            (Some(seconds), Some(overlap)) => {
                let length = seconds * self.sampling_rate as f64;
                if !(length >= 1.0 && length < (1u64 << 31) as f64) {
                    return refuse(format!("chunk_length_s {seconds} is no window"));
                }
                match (0.0..1.0).contains(&overlap) {
                    true => Ok(()),
                    false => refuse(format!("overlap {overlap} is not from 0 to below 1")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_32khz() -> Config {
        Config {
            sampling_rate: 32_000,
            target_bandwidths: vec![2.2],
            upsampling_ratios: vec![8, 5, 4, 4],
            num_filters: 64,
            codebook_size: 2048,
            use_causal_conv: false,
            use_conv_shortcut: false,
            ..Config::default()
        }
    }

    fn config_48khz() -> Config {
        Config {
            sampling_rate: 48_000,
            audio_channels: 2,
            target_bandwidths: vec![3.0, 6.0, 12.0, 24.0],
            normalize: true,
            chunk_length_s: Some(1.0),
            overlap: Some(0.01),
            norm_type: NormType::TimeGroupNorm,
            use_causal_conv: false,
            ..Config::default()
        }
    }

    #[test]
    fn the_official_codecs_have_their_codebooks() {
        let codebooks = |config: Config| -> Vec<usize> {
            assert!(config.check().is_ok());
            config.target_bandwidths.iter().map(|b| config.quantizers_for(Some(*b)).unwrap()).collect()
        };
        assert_eq!(codebooks(Config::default()), [2, 4, 8, 16, 32]);
        assert_eq!(codebooks(config_32khz()), [4]);
        assert_eq!(codebooks(config_48khz()), [2, 4, 8, 16]);
    }

    #[test]
    fn windows_of_48_khz_are_a_second_and_begin_every_47520_samples() {
        assert_eq!(config_48khz().windows(), Some(Windows { length: 48_000, stride: 47_520 }));
        assert_eq!(Config::default().windows(), None);
    }

    #[test]
    fn a_bandwidth_that_is_not_offered_is_told_those_that_are() {
        let error = Config::default().quantizers_for(Some(5.0)).unwrap_err().to_string();
        assert!(error.contains("5 kbit/s") && error.contains("1.5, 3, 6, 12, 24"), "{error}");
    }

    #[test]
    fn what_a_config_leaves_out_is_the_references_default() {
        let config: Config = serde_json::from_str(r#"{"codebook_size": 64, "overlap": null}"#).unwrap();
        assert_eq!(config, Config { codebook_size: 64, ..Config::default() });
    }

    #[test]
    fn configs_that_no_network_can_be_built_from_are_refused_by_key() {
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = config_48khz();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        let said = [
            (refused(&|c| c.upsampling_ratios = vec![usize::MAX, 3]), "upsampling_ratios"),
            (refused(&|c| c.upsampling_ratios = vec![]), "upsampling_ratios"),
            (refused(&|c| c.codebook_size = 1000), "codebook_size"),
            (refused(&|c| c.codebook_dim = Some(64)), "codebook_dim"),
            (refused(&|c| c.target_bandwidths = vec![]), "target_bandwidths"),
            (refused(&|c| c.target_bandwidths = vec![0.1]), "target_bandwidths"),
            (refused(&|c| c.overlap = None), "overlap"),
            (refused(&|c| c.overlap = Some(1.0)), "overlap"),
            (refused(&|c| c.chunk_length_s = Some(1e-9)), "chunk_length_s"),
            (refused(&|c| c.trim_right_ratio = 0.5), "trim_right_ratio"),
            (refused(&|c| c.compress = 64), "compress"),
            (refused(&|c| c.num_residual_layers = 200), "num_residual_layers"),
            (refused(&|c| c.num_filters = 1 << 40), "num_filters"),
        ];
        for (message, key) in said {
            assert!(message.contains(key), "{message}");
        }
    }
}
