//! GenSLMs: genome-scale language models, GPT-NeoX over codons.
//!
//! Zvyagin et al. 2022, "GenSLMs: Genome-scale language models reveal SARS-CoV-2 evolutionary dynamics", bioRxiv
//! 10.1101/2022.10.10.511571. Checked against the project's tokenisation and pooling on transformers
//! `GPTNeoXForCausalLM`, parity cases `tests/parity/genslm`.
//!
//! The network is [`gpt_neox`](crate::gpt_neox); here are its codons ([`codons`]), files of genes ([`fasta`]), the
//! releases, and what one does with genes ([`GenSlm`]): vectors, likelihoods, new genes.

pub mod codons;
pub mod fasta;
mod pipeline;
mod release;

pub use pipeline::{GenSlm, Pooling, Score};
pub use release::rename;
pub(crate) use release::{inventory, layout};

/// The name of the family.
pub(crate) const FAMILY: &str = "genslm";
