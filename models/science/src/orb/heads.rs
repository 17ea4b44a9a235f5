//! The heads: what the states of the atoms say.

use candle_core::{D, Tensor};
use fauna_shared::Result;
use fauna_shared::nn::Mlp;
use fauna_shared::weights::Weights;

use super::network::perceptron;
use super::{Architecture, Config, Graph};

/// Elements with an energy of reference; the first stands for none.
const REFERENCES: usize = 118;
/// Classes of how far forces may be off.
pub(super) const BINS: usize = 50;
/// Width inside the head of latent charges, whatever that of the others is.
const CHARGE_HIDDEN: usize = 128;

/// Mean and spread of what a head was trained on: `bn` of a `ScalarNormalizer` in the reference.
struct Normalizer {
    mean: Tensor,
    spread: Tensor,
}

impl Normalizer {
    fn load(w: &Weights) -> Result<Self> {
        // Only training counts.
        w.skip("bn.num_batches_tracked");
        let variance = w.tensor("bn.running_var", &[1])?;
        // A variance is never negative; one that was made up may be.
        Ok(Self { mean: w.tensor("bn.running_mean", &[1])?, spread: variance.abs()?.sqrt()? })
    }

    /// From numbers around zero back to those of the world.
    fn inverse(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.spread)?.broadcast_add(&self.mean)?)
    }
}

/// What un-normalises the six numbers of a stress.
enum StressNormalizer {
    One(Normalizer),
    DiagonalAndOff([Normalizer; 2]),
}

struct StressHead {
    mlp: Mlp,
    normalizer: StressNormalizer,
}

struct ForcesHead {
    mlp: Mlp,
    normalizer: Normalizer,
}

/// How far the forces of an atom may be off, as the odds of 50 classes.
struct ConfidenceHead {
    mlp: Mlp,
    /// The middle of each class, in eV/Å.
    centres: Vec<f64>,
}

/// Charges that sum up to that of the whole, and how strongly they pull.
struct LatentCharges {
    mlp: Mlp,
    /// In eV Å.
    coulomb_constant: f64,
}

/// All heads of a model.
pub(super) struct Heads {
    energy: Mlp,
    energy_normalizer: Normalizer,
    /// The energy of a lone atom of each element, in eV.
    references: Vec<f64>,
    forces: Option<ForcesHead>,
    stress: Option<StressHead>,
    confidence: Option<ConfidenceHead>,
    charges: Option<LatentCharges>,
}

impl Heads {
    /// From the place above `heads`. Confidence and stress of a direct model may be missing whole.
    pub(super) fn load(c: &Config, w: &Weights) -> Result<Self> {
        let here = w.at("heads");
        let head = |name: &str, inputs: usize, outputs: usize| {
            let widths = (inputs, c.head_mlp_hidden_dim, outputs);
            perceptron(&here.at(name), c.activation, widths, c.head_mlp_depth)
        };
        let width = c.latent_dim;
        let is_direct = !c.is_conservative();
        let of_third = c.architecture != Architecture::V2;
        let forces = match is_direct {
            true => Some(ForcesHead {
                mlp: head("forces", width, 3)?,
                normalizer: Normalizer::load(&here.at("forces.normalizer"))?,
            }),
            false => None,
        };
        let stress = match is_direct && c.has_stress && here.has("stress", true) {
            true => {
                Some(StressHead { mlp: head("stress", width, 6)?, normalizer: stress_normalizer(c, &here)? })
            }
            false => None,
        };
        let confidence = match of_third && here.has("confidence", true) {
            true => Some(ConfidenceHead {
                mlp: head("confidence", width, BINS)?,
                centres: centres(&here.at("confidence"))?,
            }),
            false => None,
        };
        let charges = match c.has_electrostatics {
            true => Some(LatentCharges {
                mlp: perceptron(&here.at("latent_charges"), c.activation, (width, CHARGE_HIDDEN, 1), 1)?,
                coulomb_constant: scalar(&w.at("coulomb_module").tensor("coulomb_constant", &[])?)?,
            }),
            false => None,
        };
        Ok(Self {
            energy: head("energy", width + usize::from(charges.is_some()), 1)?,
            energy_normalizer: Normalizer::load(&here.at("energy.normalizer"))?,
            references: references(&here.at("energy.reference.linear"))?,
            forces,
            stress,
            confidence,
            charges,
        })
    }

    /// The energy of each structure without its references, `(structures, 1)` in eV; and the charges of the atoms,
    /// `(nodes, 1)`, where the model gives them some.
    pub(super) fn energy(&self, graph: &Graph, nodes: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let Some(head) = &self.charges else {
            let mean = self.energy_normalizer.inverse(&self.energy.forward(&graph.mean(nodes)?)?)?;
            return Ok(((mean * &graph.counts)?, None));
        };
        let charges = head.mlp.forward(nodes)?;
        let wanted = graph.structures.iter().map(|structure| structure.charge.unwrap_or(0.0) as f32);
        let wanted = Tensor::from_vec(wanted.collect(), graph.counts.shape(), nodes.device())?;
        let shift = ((&wanted / &graph.counts)? - graph.mean(&charges)?)?;
        let charges = (charges + graph.owners.gather(&shift)?)?;
        let each = self.energy.forward(&Tensor::cat(&[nodes, &charges], 1)?)?;
        Ok((graph.owners.sum(&self.energy_normalizer.inverse(&each)?)?, Some(charges)))
    }

    /// What lone atoms of these elements have together, in eV.
    pub(super) fn reference(&self, numbers: &[u8]) -> f64 {
        let of = |number: &u8| self.references.get(usize::from(*number)).copied().unwrap_or(0.0);
        numbers.iter().map(of).sum()
    }

    /// In eV Å, where charges pull at each other.
    pub(super) fn coulomb_constant(&self) -> f64 {
        self.charges.as_ref().map_or(0.0, |charges| charges.coulomb_constant)
    }

    /// `(nodes, 3)` in eV/Å, of a direct model.
    pub(super) fn forces(&self, nodes: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.forces else { return Ok(None) };
        Ok(Some(head.normalizer.inverse(&head.mlp.forward(nodes)?)?))
    }

    /// `(structures, 6)` in eV/Å³, of a direct model with such a head.
    pub(super) fn stress(&self, graph: &Graph, nodes: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.stress else { return Ok(None) };
        let raw = head.mlp.forward(&graph.mean(nodes)?)?;
        Ok(Some(match &head.normalizer {
            StressNormalizer::One(one) => one.inverse(&raw)?,
            StressNormalizer::DiagonalAndOff([diagonal, off]) => {
                let halves = [diagonal.inverse(&raw.narrow(1, 0, 3)?)?, off.inverse(&raw.narrow(1, 3, 3)?)?];
                Tensor::cat(&halves, 1)?
            }
        }))
    }

    /// The odds of each class for each atom, `(nodes, 50)`, where the model tells.
    pub(super) fn confidence(&self, nodes: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.confidence else { return Ok(None) };
        let logits = head.mlp.forward(nodes)?;
        let odds = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        Ok(Some(odds.broadcast_div(&odds.sum_keepdim(D::Minus1)?)?))
    }

    /// How far forces are off that have such odds, in eV/Å: the mean over the classes.
    pub(super) fn expected_error(&self, odds: &[f32]) -> f64 {
        let centres = self.confidence.iter().flat_map(|head| &head.centres);
        odds.iter().zip(centres).map(|(share, centre)| f64::from(*share) * centre).sum()
    }
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?)
}

fn stress_normalizer(c: &Config, heads: &Weights) -> Result<StressNormalizer> {
    let here = heads.at("stress");
    Ok(match c.architecture {
        Architecture::V2 => StressNormalizer::One(Normalizer::load(&here.at("normalizer"))?),
        _ => StressNormalizer::DiagonalAndOff([
            Normalizer::load(&here.at("diag_normalizer"))?,
            Normalizer::load(&here.at("offdiag_normalizer"))?,
        ]),
    })
}

/// By atomic number; also as the one row of a matrix.
fn references(w: &Weights) -> Result<Vec<f64>> {
    let is_row = w.dims("weight") == Some(&[1, REFERENCES]);
    let weight = match is_row {
        true => w.tensor("weight", &[1, REFERENCES])?,
        false => w.tensor("weight", &[REFERENCES])?,
    };
    Ok(floats(&weight)?.into_iter().map(f64::from).collect())
}

/// The middle of each class.
fn centres(w: &Weights) -> Result<Vec<f64>> {
    let edges = floats(&w.tensor("bin_edges", &[BINS + 1])?)?;
    Ok(edges.windows(2).map(|pair| f64::from(pair[0] + pair[1]) / 2.0).collect())
}
