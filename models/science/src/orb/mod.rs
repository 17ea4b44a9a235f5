//! Orb: a universal interatomic potential: energy, forces and stress of atoms.
//!
//! Neumann et al. 2024, "Orb: A Fast, Scalable Neural Network Potential" (arXiv 2410.22570), and Rhodes et al. 2025,
//! "Orb-v3: atomistic simulation at scale" (arXiv 2504.06231). A graph network simulator
//! (Sanchez-Gonzalez et al. 2020): atoms are nodes, pairs nearer than 6 Å are edges; several layers of message passing with
//! attention gates, and heads for the outputs. Direct models have heads for forces and stress; conservative models compute
//! them as gradients of the energy by backpropagation.
//!
//! Checked against `DirectForcefieldRegressor` and `ConservativeForcefieldRegressor` of orb-models 0.7.0, parity cases
//! `tests/parity/orb`. Nodes are `(atoms, latent_dim)`, edges `(edges, latent_dim)`.
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

mod electrostatics;
mod features;
mod gradients;
mod graph;
mod heads;
mod loss;
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

/// Version and kind of an Orb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Architecture {
    /// Orb v2: forces and stress from heads.
    #[serde(rename = "orb_v2")]
    V2,
    /// Orb v3: forces and stress are gradients of the energy.
    #[serde(rename = "orb_v3_conservative")]
    V3Conservative,
    /// Orb v3: forces and stress from heads.
    #[serde(rename = "orb_v3_direct")]
    V3Direct,
}

/// Aggregation of the ZBL repulsion over the atoms of a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Sum over the atoms.
    #[default]
    Sum,
    /// Mean over the atoms, as the conservative models of v3 were trained.
    Mean,
}

/// The arguments of the model builders of the reference. Releases have no config file: the arguments follow from the name
/// of the release.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Version and kind.
    pub architecture: Architecture,
    /// Hidden size of nodes and edges.
    pub latent_dim: usize,
    /// Intermediate size of the MLPs of the backbone.
    pub base_mlp_hidden_dim: usize,
    /// Number of hidden layers of the MLPs of the backbone.
    pub base_mlp_depth: usize,
    /// Intermediate size of the heads.
    pub head_mlp_hidden_dim: usize,
    /// Number of hidden layers of the heads.
    pub head_mlp_depth: usize,
    /// Number of message-passing layers.
    pub num_message_passing_steps: usize,
    /// Activation function.
    pub activation: Activation,
    /// Whether the layers are conditioned on total charge and spin multiplicity.
    #[serde(default)]
    pub has_charge_spin_cond: bool,
    /// Whether there is a stress head; conservative models always compute the stress.
    #[serde(default = "yes")]
    pub has_stress: bool,
    /// Whether atoms have latent charges with Coulomb interaction; implies conditioning on charge and spin.
    #[serde(default)]
    pub has_electrostatics: bool,
    /// Whether atoms have latent spins; not implemented, and in no release.
    #[serde(default)]
    pub use_per_atom_spins: bool,
    /// Cutoff radius of the edges, in Å.
    pub radius: f64,
    /// Maximum number of edges per sender; the nearest are kept.
    pub max_num_neighbors: usize,
    /// Aggregation of the ZBL repulsion of v3.
    #[serde(default)]
    pub zbl_node_aggregation: Aggregation,
}

fn yes() -> bool {
    true
}

/// Maximum cutoff radius, in Å.
const MAX_RADIUS: f64 = 20.0;
/// Maximum number of layers of the network and of an MLP.
const MAX_LAYERS: usize = 1000;

impl Config {
    /// Whether the layers are conditioned on total charge and spin multiplicity.
    pub fn is_conditioned(&self) -> bool {
        self.has_charge_spin_cond || self.has_electrostatics
    }

    /// Whether forces are gradients of the energy.
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
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| *count > MAX_LAYERS) {
            return Err(Error::unsupported(format!(
                "{key} is {count}; at most {MAX_LAYERS} are implemented"
            )));
        }
        if !(self.radius > 0.0 && self.radius <= MAX_RADIUS) {
            return Err(Error::unsupported(format!("radius is {}", self.radius))
                .hint(format!("expected above 0 and at most {MAX_RADIUS} Å")));
        }
        if self.use_per_atom_spins {
            return Err(Error::unsupported("use_per_atom_spins is not implemented"));
        }
        if self.has_electrostatics && !self.is_conservative() {
            return Err(Error::unsupported("has_electrostatics is implemented for conservative models only"));
        }
        if self.is_conditioned() && self.architecture == Architecture::V2 {
            return Err(Error::unsupported("has_charge_spin_cond is implemented for orb v3 only"));
        }
        if self.is_conditioned() && !self.latent_dim.is_multiple_of(4) {
            let message = format!("latent_dim {} is not a multiple of 4", self.latent_dim);
            return Err(Error::unsupported(message)
                .hint("charge and spin embeddings take half of it each, as sines and cosines"));
        }
        Ok(())
    }
}

/// Orb: the backbone and its heads.
pub struct Orb {
    config: Config,
    model: MoleculeGns,
    heads: Option<Heads>,
}

impl Model for Orb {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let place = backbone(w);
        let model = MoleculeGns::load(&config, &w.at(&place))?;
        // A backbone without heads has embeddings alone.
        let heads = match w.has("heads", true) {
            true => Some(Heads::load(&config, w)?),
            false => None,
        };
        // Tensors of training, and heads that this kind of Orb does not have, are not loaded, as in the reference.
        ["heads", "grad_forces_normalizer", "grad_stress_normalizer"]
            .into_iter()
            .for_each(|name| w.skip(name));
        // Around a nested backbone are the parts of a denoising model.
        match place.as_str() {
            "model.model" => w.skip("model"),
            "model" if !w.has("heads", true) => w.skip(""),
            _ => {}
        }
        Ok(Self { config, model, heads })
    }
}

/// The place of the backbone in the checkpoint: `model`, or the root without heads; in a denoising model it is nested
/// once more.
fn backbone(w: &Weights) -> String {
    let place = if w.has("heads", true) { "model" } else { "" };
    match w.at(place).has("model", false) {
        true if place.is_empty() => "model".to_string(),
        true => "model.model".to_string(),
        false => place.to_string(),
    }
}

impl Orb {
    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Prepares `atoms` as input of the model.
    ///
    /// # Errors
    /// As [`Structure::new`]; and if the model needs charge and spin, and they are missing.
    pub fn structure(&self, atoms: &fauna_shared::item::Atoms) -> Result<Structure> {
        let structure = Structure::new(atoms, &self.config)?;
        if self.config.is_conditioned() && (atoms.charge.is_none() || atoms.spin.is_none()) {
            return Err(Error::input("this model needs the total charge and the spin multiplicity").hint(
                "a neutral molecule with paired electrons has charge 0 and spin 1; in extended XYZ: charge=0 spin=1",
            ));
        }
        Ok(structure)
    }

    /// The mean of the last hidden states over the atoms of each structure, `(structures, latent_dim)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn embed(&self, structures: &[Structure]) -> Result<candle_core::Tensor> {
        let graph = Graph::new(structures, self.model.device())?;
        let nodes = self.model.forward(&graph, &graph.vectors)?;
        graph.mean(&nodes)
    }
}

/// Orb v2 and v3, direct and conservative, and OrbMol.
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
