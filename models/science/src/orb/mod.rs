//! Orb: a universal potential. Atoms go in; energy, forces and stress come out.
//!
//! Neumann et al. 2024, "Orb: A Fast, Scalable Neural Network Potential" (arXiv 2410.22570), and Rhodes et al. 2025,
//! "Orb-v3: atomistic simulation at scale" (arXiv 2504.06231). A simulator on a graph (Sanchez-Gonzalez et al. 2020):
//! atoms are nodes, pairs nearer than 6 Å are edges; nodes and edges are encoded, pass messages through several layers
//! weighted by gates, and small heads read the result. Direct models read forces and stress from heads of their own;
//! conservative models take them as the slope of the energy, on the way back through the whole network.
//!
//! Checked against `DirectForcefieldRegressor` and `ConservativeForcefieldRegressor` of orb-models 0.7.0, parity cases
//! `tests/parity/orb`. Nodes are `(atoms, width)`, edges `(edges, width)`.
//!
//! ```
//! use fauna_science::orb::{Config, Orb};
//! use fauna_shared::item::Atoms;
//! use fauna_shared::model::{Model, Potential};
//! use fauna_shared::{runtime::Runtime, weights::Weights};
//!
//! let config: Config = serde_json::from_value(fauna_science::orb::sample())?;
//! let orb = Orb::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let hydroxide = Atoms {
//!     numbers: vec![8, 1],
//!     positions: vec![[0.0; 3], [0.97, 0.0, 0.0]],
//!     charge: Some(-1.0),
//!     spin: Some(1.0),
//!     ..Atoms::default()
//! };
//! let found = orb.evaluate(&[hydroxide])?.remove(0);
//! assert!(found.energy.is_finite() && found.forces.len() == 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod back;
mod electrostatics;
mod features;
mod graph;
mod heads;
mod network;
mod pipeline;
mod predict;
mod release;
mod repulsion;

use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::Activation;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;

pub use graph::{Graph, Structure};
pub use pipeline::OrbPipeline;
pub use predict::Prediction;
pub use release::sample;
pub(crate) use release::{NAME, inventory, layout, rename};

use heads::Heads;
use network::MoleculeGns;

/// What kind of Orb it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Architecture {
    /// The second version: forces and stress from heads.
    #[serde(rename = "orb_v2")]
    V2,
    /// The third: forces and stress are slopes of the energy.
    #[serde(rename = "orb_v3_conservative")]
    V3Conservative,
    /// The third: forces and stress from heads.
    #[serde(rename = "orb_v3_direct")]
    V3Direct,
}

/// How the energies of pairs that repel each other make that of the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Their sum over the atoms.
    #[default]
    Sum,
    /// Their mean over the atoms: how the conservative models of the third version were trained.
    Mean,
}

/// The arguments of the reference's builders, by its names. Releases have no file for them: they follow from the name
/// of the release.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// What kind of Orb it is.
    pub architecture: Architecture,
    /// Width of nodes and edges.
    pub latent_dim: usize,
    /// Width inside the perceptrons of the trunk.
    pub base_mlp_hidden_dim: usize,
    /// Hidden layers of the perceptrons of the trunk.
    pub base_mlp_depth: usize,
    /// Width inside the heads.
    pub head_mlp_hidden_dim: usize,
    /// Hidden layers of the heads.
    pub head_mlp_depth: usize,
    /// Layers that pass messages.
    pub num_message_passing_steps: usize,
    /// Inside all perceptrons.
    pub activation: Activation,
    /// Whether charge and spin of the whole steer every layer.
    #[serde(default)]
    pub has_charge_spin_cond: bool,
    /// Whether there is a head for stress; conservative models always tell it.
    #[serde(default = "yes")]
    pub has_stress: bool,
    /// Whether atoms are given charges that attract and repel each other. Then charge and spin steer every layer too.
    #[serde(default)]
    pub has_electrostatics: bool,
    /// Whether atoms are given spins as well; not implemented, and in no release.
    #[serde(default)]
    pub use_per_atom_spins: bool,
    /// Edges are shorter, in Å.
    pub radius: f64,
    /// Edges that begin at one atom, at most; the nearest stay.
    pub max_num_neighbors: usize,
    /// How the repulsion of pairs adds up, in the third version.
    #[serde(default)]
    pub zbl_node_aggregation: Aggregation,
}

fn yes() -> bool {
    true
}

/// The largest radius a graph may have, in Å.
const LARGEST_RADIUS: f64 = 20.0;
/// More layers, and layers of a perceptron, than any Orb has.
const MOST_LAYERS: usize = 1000;

impl Config {
    /// Whether charge and spin of the whole steer every layer.
    pub fn is_conditioned(&self) -> bool {
        self.has_charge_spin_cond || self.has_electrostatics
    }

    /// Whether forces are slopes of the energy.
    pub fn is_conservative(&self) -> bool {
        self.architecture == Architecture::V3Conservative
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("latent_dim", self.latent_dim),
            ("base_mlp_hidden_dim", self.base_mlp_hidden_dim),
            ("head_mlp_hidden_dim", self.head_mlp_hidden_dim),
            ("max_num_neighbors", self.max_num_neighbors),
        ])?;
        let counts = [
            ("base_mlp_depth", self.base_mlp_depth),
            ("head_mlp_depth", self.head_mlp_depth),
            ("num_message_passing_steps", self.num_message_passing_steps),
        ];
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| *count > MOST_LAYERS) {
            return Err(Error::unsupported(format!(
                "{key} is {count}; at most {MOST_LAYERS} are implemented"
            )));
        }
        if !(self.radius > 0.0 && self.radius <= LARGEST_RADIUS) {
            return Err(Error::unsupported(format!("radius is {}", self.radius))
                .hint(format!("above 0 and at most {LARGEST_RADIUS} Å is wanted")));
        }
        if self.use_per_atom_spins {
            return Err(Error::unsupported("use_per_atom_spins is not implemented"));
        }
        if self.has_electrostatics && !self.is_conservative() {
            return Err(Error::unsupported("has_electrostatics is known of conservative models only"));
        }
        if self.is_conditioned() && self.architecture == Architecture::V2 {
            return Err(Error::unsupported("has_charge_spin_cond is known of the third version only"));
        }
        if self.is_conditioned() && !self.latent_dim.is_multiple_of(4) {
            let message = format!("latent_dim {} is no multiple of 4", self.latent_dim);
            return Err(Error::unsupported(message)
                .hint("charge and spin take half of it each, as sines and cosines"));
        }
        Ok(())
    }
}

/// The whole model.
pub struct Orb {
    config: Config,
    model: MoleculeGns,
    heads: Option<Heads>,
}

impl Model for Orb {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let model = MoleculeGns::load(&config, &w.at("model"))?;
        // A trunk without any head still tells vectors.
        let heads = match w.has("heads", true) {
            true => Some(Heads::load(&config, w)?),
            false => None,
        };
        // What training needs, and heads that this kind of Orb does not have: the reference passes over them too.
        ["heads", "grad_forces_normalizer", "grad_stress_normalizer"]
            .into_iter()
            .for_each(|name| w.skip(name));
        Ok(Self { config, model, heads })
    }
}

impl Orb {
    /// What kind of Orb it is, and how large.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `atoms` as the model takes them in.
    ///
    /// # Errors
    /// As [`Structure::new`]; and if the model wants a charge and a spin, and there are none.
    pub fn structure(&self, atoms: &fauna_shared::item::Atoms) -> Result<Structure> {
        let structure = Structure::new(atoms, &self.config)?;
        if self.config.is_conditioned() && (atoms.charge.is_none() || atoms.spin.is_none()) {
            return Err(Error::input("this model wants the charge and the spin multiplicity of the whole").hint(
                "a neutral molecule with paired electrons has charge 0 and spin 1; in extended XYZ: charge=0 spin=1",
            ));
        }
        Ok(structure)
    }

    /// The mean of the states of the atoms of each structure, `(structures, latent_dim)`.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn embed(&self, structures: &[Structure]) -> Result<candle_core::Tensor> {
        let graph = Graph::new(structures, self.model.device())?;
        let nodes = self.model.forward(&graph, &graph.vectors)?;
        graph.mean(&nodes)
    }
}

/// Orb, versions 2 and 3, direct and conservative, and its relatives for molecules.
pub static FAMILY: Family = Family {
    name: "orb",
    systems: &["Orbital"],
    paper: "Rhodes et al. 2025, arXiv 2504.06231",
    model_types: &[NAME],
    architectures: &[],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Atoms],
    outputs: &[Modality::Atoms, Modality::Vector],
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
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(OrbPipeline::open(pretrained)?)),
    sample,
};

#[cfg(test)]
mod tests;
