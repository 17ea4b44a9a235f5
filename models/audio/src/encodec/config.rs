//! `config.json`.

use fauna_shared::model::check_sizes;
use fauna_shared::nn::PadMode;
use fauna_shared::{Error, Result};
use serde::Deserialize;

/// The keys of `config.json` that define the codec. Missing keys have the reference's defaults, as nested configs
/// (MusicGen's) omit them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Sampling rate in Hz.
    pub sampling_rate: usize,
    /// Number of audio channels.
    pub audio_channels: usize,
    /// Supported bandwidths in kbit/s, ascending; the first is the default.
    pub target_bandwidths: Vec<f64>,
    /// Whether each window is normalized to unit RMS, with its scale stored next to the codes.
    pub normalize: bool,
    /// Length of a window in seconds; `None` without windows.
    pub chunk_length_s: Option<f64>,
    /// Overlap of consecutive windows, as a fraction of their length.
    pub overlap: Option<f64>,
    /// Dimension of the latents.
    pub hidden_size: usize,
    /// Number of channels of the first convolution; doubled at every downsampling ratio.
    pub num_filters: usize,
    /// Number of residual blocks per downsampling ratio.
    pub num_residual_layers: usize,
    /// Upsampling ratios, in the decoder's order; their product is the hop length.
    pub upsampling_ratios: Vec<usize>,
    /// Normalization of the convolutions.
    pub norm_type: NormType,
    /// Kernel size of the first convolution of encoder and decoder.
    pub kernel_size: usize,
    /// Kernel size of the last convolution of encoder and decoder.
    pub last_kernel_size: usize,
    /// Kernel size of the residual blocks.
    pub residual_kernel_size: usize,
    /// Factor between the dilations of consecutive residual blocks.
    pub dilation_growth_rate: usize,
    /// Whether the convolutions are causal.
    pub use_causal_conv: bool,
    /// Padding mode of the convolutions.
    pub pad_mode: PadMode,
    /// Factor by which residual blocks reduce the channels.
    pub compress: usize,
    /// Number of LSTM layers.
    pub num_lstm_layers: usize,
    /// Fraction of the surplus of a causal transposed convolution that is trimmed on the right; the rest on the left.
    pub trim_right_ratio: f64,
    /// Number of codes of a codebook, a power of two.
    pub codebook_size: usize,
    /// Dimension of a code's embedding; `hidden_size` if null.
    pub codebook_dim: Option<usize>,
    /// Whether the shortcut of residual blocks is a convolution, rather than the identity.
    pub use_conv_shortcut: bool,
}

/// Normalization of the convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormType {
    /// Weight normalization (Salimans and Kingma 2016).
    WeightNorm,
    /// Group norm with one group, over time and channels, after each convolution.
    TimeGroupNorm,
}

/// The 24 kHz codec, the reference's defaults.
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

/// The windows in which audio is encoded, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Length of a window; the last may be shorter.
    pub length: usize,
    /// Stride between the starts of consecutive windows.
    pub stride: usize,
}

impl Config {
    /// Hop length: samples per frame, the product of the ratios.
    pub fn hop_length(&self) -> usize {
        self.upsampling_ratios.iter().product()
    }

    /// Frame rate in Hz, rounded up.
    pub fn frame_rate(&self) -> usize {
        self.sampling_rate.div_ceil(self.hop_length())
    }

    /// Bits per code.
    fn bits(&self) -> usize {
        self.codebook_size.ilog2() as usize
    }

    /// Number of codebooks, that of the highest bandwidth.
    pub fn num_quantizers(&self) -> usize {
        let highest = 1000.0 * self.target_bandwidths.last().copied().unwrap_or(0.0);
        let one = (self.frame_rate() * self.bits()) as f64;
        // Floor division, exact where a rounded quotient could be off by one.
        ((highest - highest % one) / one).round() as usize
    }

    /// Returns the number of codebooks for `bandwidth` in kbit/s, or for the default bandwidth.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for other bandwidths than
    /// [`target_bandwidths`](Config::target_bandwidths).
    pub fn quantizers_for(&self, bandwidth: Option<f64>) -> Result<usize> {
        let Some(bandwidth) = bandwidth.or(self.target_bandwidths.first().copied()) else {
            return Ok(self.num_quantizers());
        };
        if !self.target_bandwidths.contains(&bandwidth) {
            let supported: Vec<String> = self.target_bandwidths.iter().map(f64::to_string).collect();
            return Err(Error::input(format!("a bandwidth of {bandwidth} kbit/s is not supported"))
                .hint(format!("supported: {}", supported.join(", "))));
        }
        let one = (self.bits() * self.frame_rate()) as f64;
        Ok(((bandwidth * 1000.0 / one).floor() as usize).clamp(1, self.num_quantizers()))
    }

    /// The windows; `None` if the audio is encoded as a whole.
    pub fn windows(&self) -> Option<Windows> {
        let length = (self.chunk_length_s? * self.sampling_rate as f64) as usize;
        let stride = ((1.0 - self.overlap?) * length as f64) as usize;
        Some(Windows { length, stride: stride.max(1) })
    }

    /// Whether encoder and decoder can stream: outputs depend only on previous inputs and a bounded lookahead.
    pub(super) fn streams(&self) -> bool {
        self.norm_type == NormType::WeightNorm && self.pad_mode != PadMode::Circular
    }

    /// Number of channels at the frame rate: `num_filters`, doubled at every ratio.
    pub(super) fn max_channels(&self) -> usize {
        self.num_filters << self.upsampling_ratios.len()
    }

    /// Checks the sizes, before anything is allocated by them.
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
            return refuse(format!("upsampling_ratios has {} entries, expected 1 to 16", ratios.len()));
        }
        let hop = ratios.iter().try_fold(1usize, |hop, ratio| hop.checked_mul(*ratio)).unwrap_or(0);
        check_sizes(&[("the product of upsampling_ratios", hop)])?;
        check_sizes(&[("num_filters, doubled at every ratio,", self.max_channels())])?;
        if self.compress > self.num_filters {
            return refuse(format!(
                "compress {} is larger than num_filters {}",
                self.compress, self.num_filters
            ));
        }
        let dilation = u32::try_from(self.num_residual_layers.saturating_sub(1))
            .ok()
            .and_then(|power| self.dilation_growth_rate.checked_pow(power))
            .and_then(|dilation| dilation.checked_mul(self.residual_kernel_size))
            .unwrap_or(0);
        check_sizes(&[("the dilation by num_residual_layers and dilation_growth_rate", dilation)])?;
        if !self.codebook_size.is_power_of_two() || self.codebook_size < 2 {
            return refuse(format!("codebook_size {} is not a power of two", self.codebook_size));
        }
        check_sizes(&[("codebook_size", self.codebook_size)])?;
        if let Some(width) = self.codebook_dim
            && width != self.hidden_size
        {
            return refuse(format!("codebook_dim {width} must equal hidden_size {}", self.hidden_size));
        }
        if self.target_bandwidths.is_empty() || !self.target_bandwidths.iter().all(|b| *b > 0.0 && *b < 1e6) {
            return refuse(format!(
                "target_bandwidths {:?} must be positive, in kbit/s",
                self.target_bandwidths
            ));
        }
        let books = "the number of codebooks by target_bandwidths, sampling_rate, upsampling_ratios and codebook_size";
        check_sizes(&[(books, self.num_quantizers())])?;
        if !(0.0..=1.0).contains(&self.trim_right_ratio) {
            return refuse(format!("trim_right_ratio is {}, expected 0 to 1", self.trim_right_ratio));
        }
        if !self.use_causal_conv && self.trim_right_ratio != 1.0 {
            return refuse("trim_right_ratio requires use_causal_conv, which is false".into());
        }
        match (self.chunk_length_s, self.overlap) {
            (None, _) => Ok(()),
            (Some(_), None) => refuse("chunk_length_s requires overlap".into()),
            (Some(seconds), Some(overlap)) => {
                let length = seconds * self.sampling_rate as f64;
                if !(length >= 1.0 && length < (1u64 << 31) as f64) {
                    return refuse(format!("chunk_length_s is {seconds}, expected at least one sample"));
                }
                match (0.0..1.0).contains(&overlap) {
                    true => Ok(()),
                    false => refuse(format!("overlap is {overlap}, expected 0 to below 1")),
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
    fn the_released_codecs_have_the_right_number_of_codebooks() {
        let codebooks = |config: Config| -> Vec<usize> {
            assert!(config.check().is_ok());
            config.target_bandwidths.iter().map(|b| config.quantizers_for(Some(*b)).unwrap()).collect()
        };
        assert_eq!(codebooks(Config::default()), [2, 4, 8, 16, 32]);
        assert_eq!(codebooks(config_32khz()), [4]);
        assert_eq!(codebooks(config_48khz()), [2, 4, 8, 16]);
    }

    #[test]
    fn the_48_khz_codec_has_windows_of_one_second_with_overlap() {
        assert_eq!(config_48khz().windows(), Some(Windows { length: 48_000, stride: 47_520 }));
        assert_eq!(Config::default().windows(), None);
    }

    #[test]
    fn an_unsupported_bandwidth_is_an_error_that_lists_the_supported_ones() {
        let error = Config::default().quantizers_for(Some(5.0)).unwrap_err().to_string();
        assert!(error.contains("5 kbit/s") && error.contains("1.5, 3, 6, 12, 24"), "{error}");
    }

    #[test]
    fn missing_keys_have_the_references_defaults() {
        let config: Config = serde_json::from_str(r#"{"codebook_size": 64, "overlap": null}"#).unwrap();
        assert_eq!(config, Config { codebook_size: 64, ..Config::default() });
    }

    #[test]
    fn invalid_sizes_are_refused_by_key() {
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
