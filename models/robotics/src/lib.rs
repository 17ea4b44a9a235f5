//! The robotics pipelines of `fauna`: RT-2 by its open kin OpenVLA, and a table-top to try any policy on.
//!
//! [`openvla`] reads like its paper and can be used alone; [`action`] is how movements become words; [`tabletop`] is a
//! small simulator into which any [`Policy`](fauna_shared::model::Policy) plugs. [`FAMILIES`] is how the zoo finds them.

pub mod action;
pub mod openvla;
pub mod tabletop;

use fauna_shared::item::Modality::{Action, Image, Text};
use fauna_shared::model::{Family, Keys, Release};

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&OPENVLA];

/// OpenVLA, which stands for RT-2, and what was fine-tuned from it.
pub static OPENVLA: Family = Family {
    name: "openvla",
    systems: &["RT-2"],
    paper: "Brohan et al. 2023, arXiv 2307.15818; Kim et al. 2024, arXiv 2406.09246",
    model_types: &["openvla"],
    architectures: &["OpenVLAForActionPrediction", "ActionTokenizer", "PrismaticImageProcessor"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Image, Text],
    outputs: &[Action],
    releases: &[
        Release::new("openvla/openvla-7b", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-prismatic", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-spatial", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-object", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-goal", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-10", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-v01-7b", "RT-2", "7.1B", "MIT (base: Llama 2)"),
    ],
    config_of_gguf: None,
    layout: Some(openvla::layout),
    rename: openvla::rename,
    inventory: openvla::inventory,
    open: openvla::open,
    sample: openvla::sample,
};
