//! GenSLMs: genome-scale language models, GPT-NeoX with codons as tokens.
//!
//! Zvyagin et al. 2022, "GenSLMs: Genome-scale language models reveal SARS-CoV-2 evolutionary dynamics", bioRxiv
//! 10.1101/2022.10.10.511571. Checked against the project's tokenisation and pooling with transformers
//! `GPTNeoXForCausalLM`, parity cases `tests/parity/genslm`.
//!
//! The network is [`gpt_neox`](crate::gpt_neox). This module has the tokenizer ([`codons`]), FASTA files ([`fasta`]),
//! the releases, and the pipeline ([`GenSlm`]): embeddings, likelihoods and generation of genes.

pub mod codons;
pub mod fasta;
mod pipeline;
mod release;

use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Release};
pub use pipeline::{GenSlm, Pooling, Score};
pub use release::rename;
pub(crate) use release::{inventory, layout};
use serde_json::json;

/// The name of the family.
pub(crate) const NAME: &str = "genslm";

/// GenSLMs: GPT-NeoX with codons as tokens. It has the `model_type` of GPT-NeoX; its layout recognises its releases.
pub static FAMILY: Family = Family {
    name: NAME,
    systems: &["GenSLMs"],
    paper: "Zvyagin et al. 2022, bioRxiv 10.1101/2022.10.10.511571",
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Gene, Modality::Text],
    outputs: &[Modality::Gene, Modality::Vector],
    releases: &[
        Release::new("genslm_25M_patric", "GenSLMs", "25M", "MIT"),
        Release::new("genslm_250M_patric", "GenSLMs", "250M", "MIT"),
        Release::new("genslm_2.5B_patric", "GenSLMs", "2.5B", "MIT"),
        Release::new("genslm_25M_covid", "GenSLMs", "25M", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(GenSlm::open(pretrained)?)),
    // An odd head dimension, and an intermediate size other than four times the hidden size.
    sample: || {
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 69, "hidden_size": 69,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3, "hidden_act": "gelu_fast",
            "max_position_embeddings": 24, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "tie_word_embeddings": false
        })
    },
};
