//! The sound pipelines of `fauna`: EnCodec, MusicGen, Jukebox, LLark.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.

pub mod encodec;
pub mod jukebox;
pub mod llark;
pub mod musicgen;

use fauna_shared::item::Modality::{Codes, Sound, Text, Vector};
use fauna_shared::model::{Family, Keys, Release};
use serde_json::json;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&ENCODEC, &MUSICGEN, &JUKEBOX, &LLARK];

/// EnCodec at 24, 32 and 48 kHz.
pub static ENCODEC: Family = Family {
    name: "encodec",
    systems: &["EnCodec"],
    paper: "Défossez et al. 2022, arXiv 2210.13438",
    model_types: &["encodec"],
    architectures: &["EncodecModel"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Sound, Codes],
    outputs: &[Codes, Sound, Vector],
    releases: &[
        Release::new("facebook/encodec_24khz", "EnCodec", "19M", "MIT (code)"),
        Release::new("facebook/encodec_32khz", "EnCodec", "58M", "CC-BY-NC-4.0"),
        Release::new("facebook/encodec_48khz", "EnCodec", "17M", "MIT (code)"),
    ],
    config_of_gguf: None,
    layout: Some(encodec::layout),
    rename: encodec::rename,
    inventory: |pretrained| Ok(pretrained.load::<encodec::Encodec>()?.1),
    open: |pretrained| Ok(Box::new(encodec::EncodecPipeline::open(pretrained)?)),
    sample: || {
        json!({
            "architectures": ["EncodecModel"], "model_type": "encodec", "sampling_rate": 600, "audio_channels": 2,
            "target_bandwidths": [0.4, 0.8], "normalize": true, "chunk_length_s": 0.1, "overlap": 0.1,
            "hidden_size": 8, "num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [3, 2],
            "norm_type": "weight_norm", "kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3,
            "dilation_growth_rate": 2, "use_causal_conv": false, "pad_mode": "reflect", "compress": 2,
            "num_lstm_layers": 2, "trim_right_ratio": 1.0, "codebook_size": 16, "codebook_dim": 8,
            "use_conv_shortcut": true
        })
    },
};

/// MusicGen in every size, mono and stereo, with and without melody.
pub static MUSICGEN: Family = Family {
    name: "musicgen",
    systems: &["MusicGen"],
    paper: "Copet et al. 2023, arXiv 2306.05284",
    model_types: &["musicgen", "musicgen_melody"],
    architectures: &[
        "MusicgenForConditionalGeneration",
        "MusicgenMelodyForConditionalGeneration",
        "MusicgenMelodyFeatureExtractor",
    ],
    gguf: &[],
    keys: &musicgen::KEYS,
    inputs: &[Text, Sound],
    outputs: &[Sound],
    releases: &[
        Release::new("facebook/musicgen-small", "MusicGen", "0.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-medium", "MusicGen", "2.0B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-large", "MusicGen", "3.4B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-melody", "MusicGen", "1.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-melody-large", "MusicGen", "2.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-small", "MusicGen", "0.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-medium", "MusicGen", "2.0B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-large", "MusicGen", "3.5B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-melody", "MusicGen", "1.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-melody-large", "MusicGen", "2.7B", "CC-BY-NC-4.0"),
    ],
    config_of_gguf: None,
    layout: Some(musicgen::layout),
    rename: musicgen::rename,
    inventory: musicgen::inventory,
    open: musicgen::open,
    sample: || {
        json!({
            "architectures": ["MusicgenForConditionalGeneration"], "model_type": "musicgen",
            "text_encoder": {
                "vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 30, "num_layers": 2, "num_heads": 3,
                "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
                "feed_forward_proj": "gated-gelu"
            },
            "audio_encoder": {
                "sampling_rate": 600, "target_bandwidths": [2.0], "upsampling_ratios": [3, 2], "num_filters": 4,
                "hidden_size": 8, "codebook_size": 32, "use_causal_conv": false, "use_conv_shortcut": false
            },
            "decoder": {
                "vocab_size": 32, "pad_token_id": 32, "hidden_size": 32, "num_hidden_layers": 3,
                "num_attention_heads": 4, "ffn_dim": 64, "num_codebooks": 4
            }
        })
    },
};

/// Jukebox's codec and the prior that LLark listens with.
pub static JUKEBOX: Family = Family {
    name: "jukebox",
    systems: &["LLark"],
    paper: "Dhariwal et al. 2020, arXiv 2005.00341",
    model_types: &["jukebox"],
    architectures: &["JukeboxModel"],
    gguf: &[],
    keys: &jukebox::KEYS,
    inputs: &[Sound, Codes],
    outputs: &[Codes, Sound, Vector],
    releases: &[
        Release::new(
            "openai/jukebox-1b-lyrics",
            "LLark",
            "1B, of which the codec 2M",
            "OpenAI, non-commercial",
        ),
        Release::new(
            "openai/jukebox-5b-lyrics",
            "LLark",
            "5B, of which the codec 2M",
            "OpenAI, non-commercial",
        ),
    ],
    config_of_gguf: None,
    layout: Some(jukebox::layout),
    rename: jukebox::rename,
    inventory: |pretrained| Ok(jukebox::Jukebox::open(pretrained)?.1),
    open: |pretrained| Ok(Box::new(jukebox::JukeboxPipeline::open(pretrained)?)),
    sample: jukebox::sample,
};

/// LLark: Jukebox's prior, a projector and Llama 2.
pub static LLARK: Family = Family {
    name: "llark",
    systems: &["LLark"],
    paper: "Gardner et al. 2023, arXiv 2310.07160",
    model_types: &["wrapped_llamav2"],
    architectures: &["WrappedLlamav2ForCausalLM"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Sound, Text],
    outputs: &[Text, Vector],
    // Its weights were never released.
    releases: &[],
    config_of_gguf: Some(fauna_text::llama::config_of_gguf),
    layout: None,
    rename: llark::rename,
    inventory: |pretrained| Ok(llark::LLark::open(pretrained)?.1),
    open: |pretrained| Ok(Box::new(llark::LLarkPipeline::open(pretrained)?)),
    sample: llark::sample,
};
