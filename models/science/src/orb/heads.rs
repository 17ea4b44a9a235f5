//! The heads: what the states of the atoms say.

use candle_core::{D, DType, Tensor};
use fauna_shared::nn::{IGNORE_INDEX, Mlp};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, transfer};

use super::network::load_mlp;
use super::{Architecture, Config, Graph};

/// Number of reference energies; the first is not used.
pub(super) const REFERENCES: usize = 118;
/// Number of classes of the confidence head.
pub(super) const BINS: usize = 50;
/// The largest error with a class, in eV/Å, of a new model.
const LARGEST_ERROR: f32 = 0.3;
/// Coulomb constant times the square of the elementary charge, in eV Å, of a new model.
const COULOMB_CONSTANT: f32 = 14.399_645;
/// Intermediate size of the head of latent charges.
const CHARGE_HIDDEN: usize = 128;

/// Mean and standard deviation of the targets of a head: `bn` of `ScalarNormalizer` in the reference.
struct Normalizer {
    mean: Tensor,
    spread: Tensor,
}

impl Normalizer {
    fn load(w: &Weights) -> Result<Self> {
        // For training only.
        w.skip("bn.num_batches_tracked");
        let variance = w.tensor("bn.running_var", &[1])?.detach();
        // Random weights may have a negative variance.
        Ok(Self { mean: w.tensor("bn.running_mean", &[1])?.detach(), spread: variance.abs()?.sqrt()? })
    }

    /// Normalises.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.mean)?.broadcast_div(&self.spread)?)
    }

    /// Denormalises.
    fn inverse(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.spread)?.broadcast_add(&self.mean)?)
    }
}

/// Normalizers of the six components of the stress.
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

/// Classifies the force error of an atom into 50 classes.
struct ConfidenceHead {
    mlp: Mlp,
    /// Edges of the classes, in eV/Å, rising.
    edges: Vec<f32>,
    /// Centre of each class, in eV/Å.
    centres: Vec<f64>,
}

/// Latent charges, which sum to the total charge.
struct LatentCharges {
    mlp: Mlp,
    /// Coulomb constant in eV Å.
    coulomb_constant: f64,
}

/// All heads of a model.
pub(super) struct Heads {
    energy: Mlp,
    energy_normalizer: Normalizer,
    /// Reference energy of an atom of each element, in eV.
    references: Vec<f64>,
    /// The same, `(elements)`.
    reference_weight: Tensor,
    forces: Option<ForcesHead>,
    stress: Option<StressHead>,
    confidence: Option<ConfidenceHead>,
    charges: Option<LatentCharges>,
}

impl Heads {
    /// Loads the heads from the weights above `heads`. The confidence and stress heads of a direct model may be missing.
    pub(super) fn load(c: &Config, w: &Weights) -> Result<Self> {
        let here = w.at("heads");
        let head = |name: &str, inputs: usize, outputs: usize| {
            let widths = (inputs, c.head_mlp_hidden_dim, outputs);
            load_mlp(&here.at(name), c.activation, widths, c.head_mlp_depth)
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
            true => {
                let edges = floats(&here.at("confidence").constant("bin_edges", &[BINS + 1], || {
                    (0..=BINS).map(|i| LARGEST_ERROR * i as f32 / BINS as f32).collect()
                })?)?;
                let centres = edges.windows(2).map(|pair| f64::from(pair[0] + pair[1]) / 2.0).collect();
                Some(ConfidenceHead { mlp: head("confidence", width, BINS)?, edges, centres })
            }
            false => None,
        };
        let charges = match c.has_electrostatics {
            true => Some(LatentCharges {
                mlp: load_mlp(&here.at("latent_charges"), c.activation, (width, CHARGE_HIDDEN, 1), 1)?,
                coulomb_constant: scalar(&w.at("coulomb_module").constant(
                    "coulomb_constant",
                    &[],
                    || vec![COULOMB_CONSTANT],
                )?)?,
            }),
            false => None,
        };
        let reference_weight = references(&here.at("energy.reference.linear"))?;
        Ok(Self {
            energy: head("energy", width + usize::from(charges.is_some()), 1)?,
            energy_normalizer: Normalizer::load(&here.at("energy.normalizer"))?,
            references: floats(&reference_weight)?.into_iter().map(f64::from).collect(),
            reference_weight,
            forces,
            stress,
            confidence,
            charges,
        })
    }

    /// The energy of each structure without reference energies, `(structures, 1)` in eV, and the latent charges of the atoms,
    /// `(nodes, 1)`, of models that have them.
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

    /// The sum of the reference energies, in eV.
    pub(super) fn reference(&self, numbers: &[u8]) -> f64 {
        let of = |number: &u8| self.references.get(usize::from(*number)).copied().unwrap_or(0.0);
        numbers.iter().map(of).sum()
    }

    /// Coulomb constant in eV Å of models with latent charges; else 0.
    pub(super) fn coulomb_constant(&self) -> f64 {
        self.charges.as_ref().map_or(0.0, |charges| charges.coulomb_constant)
    }

    /// Forces in eV/Å, `(nodes, 3)`, of a direct model.
    pub(super) fn forces(&self, nodes: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.forces else { return Ok(None) };
        Ok(Some(head.normalizer.inverse(&head.mlp.forward(nodes)?)?))
    }

    /// Stress in eV/Å³, `(structures, 6)`, of a direct model with a stress head.
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

    /// The sums of the reference energies of structures, `(structures)` in eV float32, with a gradient. `elements` are
    /// the numbers of atoms of each element, `(structures, elements)`.
    pub(super) fn reference_of(&self, elements: &Tensor) -> Result<Tensor> {
        let weight = self.reference_weight.to_dtype(DType::F32)?.reshape((REFERENCES, 1))?;
        Ok(elements.matmul(&weight)?.squeeze(1)?)
    }

    /// Energies per atom in units of their normalizer.
    pub(super) fn normalised_energy(&self, per_atom: &Tensor) -> Result<Tensor> {
        self.energy_normalizer.forward(per_atom)
    }

    /// Forces in units of their normalizer.
    pub(super) fn normalised_forces(&self, forces: &Tensor) -> Result<Tensor> {
        match &self.forces {
            Some(head) => head.normalizer.forward(forces),
            None => Err(no_head("forces")),
        }
    }

    /// The stress head of v2, `(structures, 6)`, in units of its normalizer; `None` for v3.
    pub(super) fn raw_stress(&self, graph: &Graph, nodes: &Tensor) -> Result<Option<Tensor>> {
        match &self.stress {
            Some(StressHead { mlp, normalizer: StressNormalizer::One(_) }) => {
                Ok(Some(mlp.forward(&graph.mean(nodes)?)?))
            }
            _ => Ok(None),
        }
    }

    /// Stress in units of its normalizers, `(structures, 6)`.
    pub(super) fn normalised_stress(&self, stress: &Tensor) -> Result<Tensor> {
        match self.stress.as_ref().map(|head| &head.normalizer) {
            Some(StressNormalizer::One(one)) => one.forward(stress),
            Some(StressNormalizer::DiagonalAndOff([diagonal, off])) => {
                let halves =
                    [diagonal.forward(&stress.narrow(1, 0, 3)?)?, off.forward(&stress.narrow(1, 3, 3)?)?];
                Ok(Tensor::cat(&halves, 1)?)
            }
            None => Err(no_head("stress")),
        }
    }

    /// Logits of the confidence head, `(nodes, 50)`, which has no influence on the backbone.
    pub(super) fn confidence_logits(&self, nodes: &Tensor) -> Result<Tensor> {
        match &self.confidence {
            Some(head) => head.mlp.forward(&nodes.detach()),
            None => Err(no_head("confidence")),
        }
    }

    /// The class of each force error in eV/Å: -100 beyond the last.
    pub(super) fn classes(&self, errors: &[f32]) -> Vec<i64> {
        let edges = self.confidence.as_ref().map_or(&[][..], |head| &head.edges);
        let class = |error: &f32| match edges.last().is_some_and(|last| error <= last) {
            true => edges.partition_point(|edge| edge < error).saturating_sub(1).min(BINS - 1) as i64,
            false => IGNORE_INDEX,
        };
        errors.iter().map(class).collect()
    }

    /// Whether there is a head for `term` of a loss.
    pub(super) fn has(&self, term: &str) -> bool {
        match term {
            "energy" => true,
            "forces" => self.forces.is_some(),
            "stress" => self.stress.is_some(),
            "confidence" => self.confidence.is_some() && self.forces.is_some(),
            _ => false,
        }
    }

    /// Class probabilities of the confidence head, `(nodes, 50)`, of models that have one.
    pub(super) fn confidence(&self, nodes: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.confidence else { return Ok(None) };
        let logits = head.mlp.forward(nodes)?;
        let odds = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        Ok(Some(odds.broadcast_div(&odds.sum_keepdim(D::Minus1)?)?))
    }

    /// Expected force error in eV/Å by the class probabilities.
    pub(super) fn expected_error(&self, odds: &[f32]) -> f64 {
        let centres = self.confidence.iter().flat_map(|head| &head.centres);
        odds.iter().zip(centres).map(|(share, centre)| f64::from(*share) * centre).sum()
    }
}

fn no_head(name: &str) -> Error {
    Error::unsupported(format!("this model has no {name} head"))
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(transfer::scalar::<f32>(&tensor.detach().to_dtype(DType::F32)?)?))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    transfer::to_host(&tensor.detach().to_dtype(DType::F32)?)
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

/// The reference energies by atomic number, `(elements)`; some releases store them as a matrix of one row.
fn references(w: &Weights) -> Result<Tensor> {
    match w.dims("weight") == Some(&[1, REFERENCES]) {
        true => Ok(w.tensor("weight", &[1, REFERENCES])?.squeeze(0)?),
        false => w.tensor("weight", &[REFERENCES]),
    }
}
