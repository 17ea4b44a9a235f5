//! The science pipelines of `fauna`: forecasts by the open kin of TimeGPT, atoms by Orb.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.
//!
//! ```
//! let names: Vec<_> = fauna_science::FAMILIES.iter().map(|family| family.name).collect();
//! assert!(names.contains(&"chronos-bolt"));
//! ```

pub mod atoms;
pub mod chronos;
pub mod forecast;
pub mod orb;
pub mod quantiles;
mod series;
pub mod timesfm;

use fauna_shared::item::Modality::{Atoms, Series, Vector};
use fauna_shared::model::{Family, Keys, Release};
use fauna_shared::weights::Name;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&CHRONOS_T5, &CHRONOS_BOLT, &CHRONOS_2, &TIMESFM, &TIMESFM_2_5, &ORB];

/// Chronos on T5, or on GPT-2: paths of a series' future, drawn token by token.
pub static CHRONOS_T5: Family = Family {
    name: "chronos-t5",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2024, arXiv 2403.07815",
    model_types: &["t5", "gpt2"],
    architectures: &["T5ForConditionalGeneration", "GPT2LMHeadModel"],
    gguf: &[],
    keys: &chronos::KEYS,
    inputs: &[Series],
    outputs: &[Series, Vector],
    releases: &[
        Release::new("amazon/chronos-t5-tiny", "TimeGPT", "8.4M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-mini", "TimeGPT", "20M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-small", "TimeGPT", "46M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-base", "TimeGPT", "201M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-large", "TimeGPT", "709M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(chronos::TOKENS),
    rename: chronos::rename,
    inventory: chronos::t5_inventory,
    open: |pretrained| Ok(Box::new(chronos::T5Pipeline::open(pretrained)?)),
    sample: chronos::t5_sample,
};

/// Chronos-Bolt: quantiles of a series' future in one pass.
pub static CHRONOS_BOLT: Family = Family {
    name: "chronos-bolt",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2024, arXiv 2403.07815",
    model_types: &["t5"],
    architectures: &["ChronosBoltModelForForecasting"],
    gguf: &[],
    keys: &fauna_text::t5::KEYS,
    inputs: &[Series],
    outputs: &[Series, Vector],
    releases: &[
        Release::new("amazon/chronos-bolt-tiny", "TimeGPT", "8.7M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-mini", "TimeGPT", "21M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-small", "TimeGPT", "48M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-base", "TimeGPT", "205M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(chronos::BOLT),
    rename: chronos::rename_bolt,
    inventory: |pretrained| Ok(pretrained.load::<chronos::bolt::ChronosBolt>()?.1),
    open: |pretrained| Ok(Box::new(chronos::BoltPipeline::open(pretrained)?)),
    sample: chronos::bolt_sample,
};

/// Chronos-2: quantiles of the futures of series that tell something about each other.
pub static CHRONOS_2: Family = Family {
    name: "chronos-2",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2025, arXiv 2510.15821",
    model_types: &["t5"],
    architectures: &["Chronos2Model"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Series],
    outputs: &[Series, Vector],
    releases: &[
        Release::new("amazon/chronos-2", "TimeGPT", "120M", "Apache-2.0"),
        Release::new("autogluon/chronos-2-small", "TimeGPT", "28M", "Apache-2.0"),
        Release::new("autogluon/chronos-2-synth", "TimeGPT", "120M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(chronos::TWO),
    rename: |_| Name::Keep,
    inventory: |pretrained| Ok(pretrained.load::<chronos::two::Chronos2>()?.1),
    open: |pretrained| Ok(Box::new(chronos::TwoPipeline::open(pretrained)?)),
    sample: chronos::two_sample,
};

/// TimesFM 1.0 and 2.0.
pub static TIMESFM: Family = Family {
    name: "timesfm",
    systems: &["TimeGPT"],
    paper: "Das et al. 2024, arXiv 2310.10688",
    model_types: &["timesfm"],
    architectures: &["TimesFmModelForPrediction"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Series],
    outputs: &[Series, Vector],
    releases: &[
        Release::new("google/timesfm-1.0-200m-pytorch", "TimeGPT", "204M", "Apache-2.0"),
        Release::new("google/timesfm-2.0-500m-pytorch", "TimeGPT", "499M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(timesfm::PATCHED),
    rename: timesfm::rename_patched,
    inventory: |pretrained| Ok(pretrained.load::<timesfm::patched::TimesFm>()?.1),
    open: |pretrained| Ok(Box::new(timesfm::PatchedPipeline::open(pretrained)?)),
    sample: timesfm::patched_sample,
};

/// TimesFM 2.5.
pub static TIMESFM_2_5: Family = Family {
    name: "timesfm-2.5",
    systems: &["TimeGPT"],
    paper: "Das et al. 2024, arXiv 2310.10688",
    // The hub's config of the original files names the earlier kind: the layout tells them apart.
    model_types: &["timesfm2_5", "timesfm"],
    architectures: &["TimesFm2_5ModelForPrediction", "TimesFmModelForPrediction"],
    gguf: &[],
    keys: &timesfm::v2_5::KEYS,
    inputs: &[Series],
    outputs: &[Series, Vector],
    releases: &[
        Release::new("google/timesfm-2.5-200m-pytorch", "TimeGPT", "231M", "Apache-2.0"),
        Release::new("google/timesfm-2.5-200m-transformers", "TimeGPT", "231M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(timesfm::V2_5),
    rename: timesfm::rename_2_5,
    inventory: |pretrained| Ok(pretrained.load::<timesfm::v2_5::TimesFm25>()?.1),
    open: |pretrained| Ok(Box::new(timesfm::V25Pipeline::open(pretrained)?)),
    sample: timesfm::v2_5_sample,
};

/// Orb, versions 2 and 3, direct and conservative, and its kin for molecules.
pub static ORB: Family = Family {
    name: "orb",
    systems: &["Orbital"],
    paper: "Rhodes et al. 2025, arXiv 2504.06231",
    model_types: &[orb::FAMILY],
    architectures: &[],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Atoms],
    outputs: &[Atoms, Vector],
    releases: &[
        Release::new("orb-v3-conservative-inf-omat", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-conservative-20-omat", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-conservative-inf-mpa", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-conservative-20-mpa", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-direct-inf-omat", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-direct-20-omat", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-direct-inf-mpa", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-direct-20-mpa", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-conservative-omol", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v3-direct-omol", "Orbital", "26M", "Apache-2.0"),
        Release::new("orbmol-v1-conservative", "Orbital", "26M", "Apache-2.0"),
        Release::new("orbmol-v1-direct", "Orbital", "26M", "Apache-2.0"),
        Release::new("orbmol-v2", "Orbital", "26M", "Apache-2.0"),
        Release::new("separate-d3-3layer", "Orbital", "17M", "Apache-2.0"),
        Release::new("separate-d3-5layer", "Orbital", "26M", "Apache-2.0"),
        Release::new("separate-d4-3layer", "Orbital", "17M", "Apache-2.0"),
        Release::new("separate-d4-5layer", "Orbital", "26M", "Apache-2.0"),
        Release::new("orb-v2", "Orbital", "25M", "Apache-2.0"),
        Release::new("orb-mptraj-only-v2", "Orbital", "25M", "Apache-2.0"),
        Release::new("orb-d3-v2", "Orbital", "25M", "Apache-2.0"),
        Release::new("orb-d3-sm-v2", "Orbital", "17M", "Apache-2.0"),
        Release::new("orb-d3-xs-v2", "Orbital", "9M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(orb::layout),
    rename: orb::rename,
    inventory: orb::inventory,
    open: |pretrained| Ok(Box::new(orb::OrbPipeline::open(pretrained)?)),
    sample: orb::sample,
};
