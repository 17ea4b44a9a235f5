//! The science exhibits of `fauna`: forecasts by the open kin of TimeGPT, atoms by Orb.

pub mod atoms;
pub mod forecast;
pub mod orb;

use fauna_shared::item::Modality::{Atoms, Vector};
use fauna_shared::model::{Family, Release};

/// Orb, versions 2 and 3, direct and conservative, and its kin for molecules.
pub static ORB: Family = Family {
    name: "orb",
    systems: &["Orbital"],
    paper: "Rhodes et al. 2025, arXiv 2504.06231",
    model_types: &[orb::FAMILY],
    architectures: &[],
    gguf: &[],
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
    open: |opening| Ok(Box::new(orb::OrbExhibit::open(opening)?)),
    sample: orb::sample,
};

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&ORB];
