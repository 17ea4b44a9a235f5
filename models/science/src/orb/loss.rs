//! The loss of the reference's regressors: energy, forces, stress and confidence.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use fauna_shared::model::Loss;
use fauna_shared::nn::cross_entropy;
use fauna_shared::{Error, Result, transfer};
use serde_json::Value;

use super::electrostatics::field;
use super::gradients::column;
use super::heads::{Heads, REFERENCES};
use super::predict::{add_forces, inverse_inertia, voigt};
use super::repulsion::Repulsion;
use super::{Architecture, Graph, Orb, Structure};
use fauna_atoms::cell;

/// Where Huber's loss becomes linear, in units of the normalizers.
const DELTA: f32 = 0.01;
/// Norms of target forces, in units of the normalizer, from which on it becomes linear earlier, and by which factors
/// (MACE's conditional Huber loss).
const LARGE: [(f64, f32); 3] = [(100.0, 0.7), (200.0, 0.4), (300.0, 0.1)];
/// Weight of the off-diagonal components of the stress.
const OFF_DIAGONAL: f64 = 0.1;

/// The terms of the loss, in the order of the reference.
const TERMS: [&str; 4] = ["energy", "forces", "stress", "confidence"];

/// What structures are to have.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// Energy of each structure in eV.
    pub energy: Option<Vec<f64>>,
    /// Forces in eV/Å, `(atoms, 3)`.
    pub forces: Option<Vec<f32>>,
    /// Stress in eV/Å³, `(structures, 6)`.
    pub stress: Option<Vec<f32>>,
}

impl Targets {
    /// Whether there is what the term `name` compares with.
    fn has(&self, name: &str) -> bool {
        match name {
            "energy" => self.energy.is_some(),
            "stress" => self.stress.is_some(),
            _ => self.forces.is_some(),
        }
    }
}

/// Options of the loss.
#[derive(Debug)]
pub(super) struct LossOptions {
    /// The weight of each term, `loss_weights`; `None` if they are not given.
    weights: Option<BTreeMap<String, f64>>,
    /// Whether the reference energies learn.
    train_references: bool,
}

impl LossOptions {
    /// Reads the options by the names of the reference: `loss_weights`, by default 1 for every term that has a target,
    /// and `train_reference_energies`, by default false.
    pub(super) fn of(options: &Value) -> Result<Self> {
        let known = ["loss_weights", "train_reference_energies"];
        let unknown = options.as_object().and_then(|o| o.keys().find(|name| !known.contains(&name.as_str())));
        if let Some(name) = unknown {
            return Err(Error::input(format!("the loss has no option \"{name}\""))
                .hint(format!("known: {}", known.join(", "))));
        }
        let weights = match &options["loss_weights"] {
            Value::Null => None,
            Value::Object(weights) => {
                let weight = |(name, value): (&String, &Value)| match value.as_f64() {
                    Some(weight) if weight.is_finite() => Ok((name.clone(), weight)),
                    _ => Err(Error::input(format!("loss_weights.{name} is {value}, expected a number"))),
                };
                Some(weights.iter().map(weight).collect::<Result<_>>()?)
            }
            other => {
                return Err(Error::input(format!("loss_weights are {other}, expected numbers by terms"))
                    .hint(format!("the terms are {}", TERMS.join(", "))));
            }
        };
        let train_references = crate::series::flag(options, "train_reference_energies")?.unwrap_or(false);
        Ok(Self { weights, train_references })
    }

    /// The terms of `orb` with targets, and their weights.
    fn terms(&self, orb: &Orb, heads: &Heads, targets: &Targets) -> Result<Vec<(&'static str, f64)>> {
        if let Some(name) = self.weights.iter().flatten().map(|(name, _)| name).find(|name| {
            !(TERMS.contains(&name.as_str()) || orb.config.is_conservative() && is_derivative(name))
        }) {
            return Err(Error::input(format!("loss_weights names the term \"{name}\""))
                .hint(format!("the terms are {}", TERMS.join(", "))));
        }
        if orb.config.is_conservative() {
            return self.conservative(targets);
        }
        let weight = |name: &'static str| -> Result<Option<(&'static str, f64)>> {
            let given = self.weights.as_ref().map(|weights| weights.get(name).copied());
            let weight = match given {
                None => (heads.has(name) && targets.has(name)).then_some(1.0),
                Some(weight) => weight,
            };
            match weight {
                None => Ok(None),
                Some(_) if !heads.has(name) => {
                    Err(Error::unsupported(format!("this model has no head for the loss of {name}")))
                }
                Some(_) if !targets.has(name) => {
                    let target = if name == "confidence" { "forces" } else { name };
                    Err(Error::input(format!("{target} is missing, for the loss of {name}")))
                }
                Some(weight) => Ok(Some((name, weight))),
            }
        };
        let terms: Vec<_> = TERMS.into_iter().map(weight).collect::<Result<Vec<_>>>()?;
        let terms: Vec<_> = terms.into_iter().flatten().collect();
        match terms.is_empty() {
            true => Err(Error::input("nothing to learn: no energy, forces or stress is given")),
            false => Ok(terms),
        }
    }

    /// Of a conservative model the energy is learned: the gradient of a loss of forces or stress, which are gradients of
    /// the energy, would be a second derivative.
    fn conservative(&self, targets: &Targets) -> Result<Vec<(&'static str, f64)>> {
        let others = match &self.weights {
            Some(weights) => weights.keys().any(|name| name != "energy"),
            None => targets.forces.is_some() || targets.stress.is_some(),
        };
        if others {
            return Err(Error::unsupported(
                "forces and stress of a conservative model are derivatives of its energy, and a loss of them needs \
                 second derivatives, which are not implemented",
            )
            .hint("learn the energy alone, by loss_weights {\"energy\": 1}, or take a direct model"));
        }
        if targets.energy.is_none() {
            return Err(Error::input("energy is missing"));
        }
        let weight = self.weights.as_ref().map_or(Some(1.0), |weights| weights.get("energy").copied());
        Ok(vec![("energy", weight.ok_or_else(|| Error::input("loss_weights are empty"))?)])
    }
}

/// Whether the term `name` of a conservative model compares derivatives of the energy.
fn is_derivative(name: &str) -> bool {
    ["grad_forces", "grad_stress", "rotational_grad"].contains(&name)
}

/// What the pair repulsion adds.
struct Added {
    /// `(structures)`, in eV.
    energy: Vec<f32>,
    /// `(atoms, 3)`, in eV/Å.
    forces: Vec<f32>,
    /// `(structures, 6)`, in eV/Å³.
    stress: Vec<f32>,
}

impl Added {
    fn of(orb: &Orb, structures: &[Structure]) -> Self {
        let mut added = Self { energy: Vec::new(), forces: Vec::new(), stress: Vec::new() };
        for structure in structures {
            let mut forces = vec![[0.0; 3]; structure.len()];
            let (mut energy, mut stress) = (0.0, [0.0; 6]);
            if orb.config.architecture != Architecture::V2 {
                let repulsion = Repulsion::of(structure, orb.config.zbl_node_aggregation);
                energy = repulsion.energy;
                let virial = add_forces(structure, repulsion.slopes, &mut forces);
                stress = voigt(&virial, cell::determinant(&structure.cell));
            }
            added.energy.push(energy as f32);
            added.forces.extend(forces.iter().flatten().map(|value| *value as f32));
            added.stress.extend(stress.map(|value| value as f32));
        }
        added
    }
}

impl Orb {
    /// The loss of `structures`: the weighted sum of the terms of `options`, which are its parts as `loss_energy` and so
    /// on, weight included.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for forces and stress of a conservative model;
    /// [`Input`](fauna_shared::ErrorKind::Input) for a term without a target.
    pub(super) fn loss(
        &self,
        structures: &[Structure],
        targets: &Targets,
        options: &LossOptions,
    ) -> Result<Loss> {
        let heads = self.heads()?;
        let terms = options.terms(self, heads, targets)?;
        let graph = Graph::new(structures, self.model.device())?;
        let nodes = self.model.forward(&graph, &graph.vectors)?;
        let added = Added::of(self, structures);
        let forces = match terms.iter().any(|(name, _)| ["forces", "confidence"].contains(name)) {
            true => Some(self.learned_forces(heads, &graph, &nodes, &added)?),
            false => None,
        };
        let mut parts = BTreeMap::new();
        for (name, weight) in terms {
            let term = match (name, &forces) {
                ("energy", _) => {
                    let known = targets.energy.as_deref().unwrap_or_default();
                    self.energy_loss(heads, &graph, &nodes, &added, known, options.train_references)?
                }
                ("stress", _) => {
                    let known = targets.stress.as_deref().unwrap_or_default();
                    stress_loss(heads, &graph, &nodes, &added, known)?
                }
                ("forces", Some(forces)) => forces_loss(heads, forces, known_forces(targets))?,
                (_, Some(forces)) => confidence_loss(heads, &nodes, forces, known_forces(targets))?,
                (name, None) => return Err(Error::input(format!("no forces for the loss of {name}"))),
            };
            parts.insert(format!("loss_{name}"), (term * weight)?);
        }
        let sum = parts.values().cloned().map(Ok).reduce(|a, b: Result<Tensor>| Ok((a? + b?)?));
        let value = sum.unwrap_or_else(|| Err(Error::input("the loss has no terms")))?;
        let mut loss = Loss::mean(value, structures.len() as f64);
        loss.parts = parts;
        Ok(loss)
    }

    /// Huber's loss of the energy per atom without reference energies, the mean over the structures.
    fn energy_loss(
        &self,
        heads: &Heads,
        graph: &Graph,
        nodes: &Tensor,
        added: &Added,
        known: &[f64],
        train_references: bool,
    ) -> Result<Tensor> {
        let (device, count) = (nodes.device(), graph.structures.len());
        let (energies, charges) = heads.energy(graph, nodes)?;
        let constant = |values: Vec<f32>| Ok::<_, Error>(Tensor::from_vec(values, (count, 1), device)?);
        let mut energies = (energies.to_dtype(DType::F32)? + constant(added.energy.clone())?)?;
        if let Some(charges) = charges {
            energies = (energies + coulomb(heads, graph, &charges)?)?;
        }
        let target = match train_references {
            false => {
                let rest = graph.structures.iter().zip(known);
                constant(rest.map(|(one, known)| (known - heads.reference(&one.numbers)) as f32).collect())?
            }
            true => {
                let mut elements = vec![0f32; count * REFERENCES];
                for (row, structure) in elements.chunks_exact_mut(REFERENCES).zip(graph.structures) {
                    structure.numbers.iter().for_each(|number| row[usize::from(*number)] += 1.0);
                }
                let references =
                    heads.reference_of(&Tensor::from_vec(elements, (count, REFERENCES), device)?)?;
                // The difference of large energies that are close is exact in float32; some devices have no float64.
                let rest = known.iter().map(|known| (known - f64::from(*known as f32)) as f32).collect();
                let known = known.iter().map(|known| *known as f32).collect();
                ((constant(known)? - references.to_dtype(DType::F32)?.unsqueeze(1)?)? + constant(rest)?)?
            }
        };
        let per_atom = |energies: Tensor| heads.normalised_energy(&energies.broadcast_div(&graph.counts)?);
        huber(&(per_atom(energies)? - per_atom(target)?)?, DELTA)
    }

    /// Forces of the head without net force and net torque, with those of the pair repulsion, `(atoms, 3)` float32.
    fn learned_forces(&self, heads: &Heads, graph: &Graph, nodes: &Tensor, added: &Added) -> Result<Tensor> {
        let forces =
            heads.forces(nodes)?.ok_or_else(|| Error::unsupported("this model has no forces head"))?;
        let mut forces = forces.to_dtype(DType::F32)?;
        forces = (&forces - graph.owners.gather(&graph.mean(&forces)?)?)?;
        let count = graph.structures.len();
        if graph.structures.iter().any(|structure| cell::is_zero(&structure.cell)) {
            let (mut arms, mut inverses) = (Vec::new(), Vec::new());
            for structure in graph.structures {
                let (places, inverse) = inverse_inertia(structure);
                let turns = if cell::is_zero(&structure.cell) { 1.0 } else { 0.0 };
                arms.extend(places.iter().flatten().map(|value| *value as f32));
                inverses.extend(inverse.iter().flatten().map(|value| (turns * value) as f32));
            }
            let arms = Tensor::from_vec(arms, forces.shape(), forces.device())?;
            let inverses = Tensor::from_vec(inverses, (count, 3, 3), forces.device())?;
            let torque = graph.owners.sum(&cross(&arms, &forces)?)?;
            let turn = torque.unsqueeze(2)?.broadcast_mul(&inverses)?.sum(1)?;
            forces = (&forces - cross(&graph.owners.gather(&turn)?, &arms)?)?;
        }
        Ok((&forces + Tensor::from_slice(&added.forces, forces.shape(), forces.device())?)?)
    }
}

fn known_forces(targets: &Targets) -> &[f32] {
    targets.forces.as_deref().unwrap_or_default()
}

/// The electrostatic energies of latent `charges`, `(structures, 1)`; their gradient by the charges are the potentials.
fn coulomb(heads: &Heads, graph: &Graph, charges: &Tensor) -> Result<Tensor> {
    let values = column(charges)?;
    let (mut energies, mut potentials) = (Vec::new(), Vec::with_capacity(values.len()));
    for (structure, atoms) in graph.nodes() {
        let field = field(structure, &values[atoms], heads.coulomb_constant())?;
        potentials.extend(field.potentials.iter().map(|value| *value as f32));
        energies.push(field.energy as f32);
    }
    let potentials = Tensor::from_vec(potentials, charges.shape(), charges.device())?;
    let change = graph.owners.sum(&((charges - charges.detach())? * potentials)?)?;
    let energies = Tensor::from_vec(energies, change.shape(), charges.device())?;
    Ok((energies + change)?)
}

/// The conditional Huber loss of normalised forces, the mean over all components.
fn forces_loss(heads: &Heads, forces: &Tensor, known: &[f32]) -> Result<Tensor> {
    let known = Tensor::from_slice(known, forces.shape(), forces.device())?;
    let target = heads.normalised_forces(&known)?;
    let norms = column(&target.sqr()?.sum(1)?.sqrt()?)?;
    let delta = |norm: &f64| {
        let factor = LARGE.iter().rev().find(|(from, _)| norm >= from).map_or(1.0, |(_, factor)| *factor);
        DELTA * factor
    };
    let deltas: Vec<f32> = norms.iter().flat_map(|norm| [delta(norm); 3]).collect();
    let deltas = Tensor::from_vec(deltas, forces.shape(), forces.device())?;
    huber_by(&(heads.normalised_forces(forces)? - target)?, &deltas)
}

/// Huber's loss of the stress: of v3 the mean over the diagonal, and a tenth of that over the other components.
fn stress_loss(heads: &Heads, graph: &Graph, nodes: &Tensor, added: &Added, known: &[f32]) -> Result<Tensor> {
    let shape = (graph.structures.len(), 6);
    let target = heads.normalised_stress(&Tensor::from_slice(known, shape, nodes.device())?)?;
    if let Some(raw) = heads.raw_stress(graph, nodes)? {
        return huber(&(raw - target)?, DELTA);
    }
    let stress =
        heads.stress(graph, nodes)?.ok_or_else(|| Error::unsupported("this model has no stress head"))?;
    let added = Tensor::from_slice(&added.stress, shape, nodes.device())?;
    let errors = (heads.normalised_stress(&(stress.to_dtype(DType::F32)? + added)?)? - target)?;
    let [diagonal, off] = [0, 3].map(|start| huber(&errors.narrow(1, start, 3)?, DELTA));
    Ok((diagonal? + (off? * OFF_DIAGONAL)?)?)
}

/// Cross entropy of the classes of the mean absolute errors of `forces`; errors beyond the last class are ignored.
fn confidence_loss(heads: &Heads, nodes: &Tensor, forces: &Tensor, known: &[f32]) -> Result<Tensor> {
    let forces: Vec<f32> = transfer::to_host(&forces.detach())?;
    let errors = forces.chunks_exact(3).zip(known.chunks_exact(3));
    let error = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / 3.0;
    let classes = heads.classes(&errors.map(error).collect::<Vec<f32>>());
    if classes.iter().all(|class| *class < 0) {
        // Nothing is within the classes; the reference returns NaN.
        return Ok(heads.confidence_logits(nodes)?.to_dtype(DType::F32)?.sum_all()?.affine(0.0, 0.0)?);
    }
    let count = classes.len();
    Ok(cross_entropy(&heads.confidence_logits(nodes)?, &Tensor::from_vec(classes, count, &Device::Cpu)?)?.0)
}

/// The mean of Huber's loss of `errors`: `e² / 2` up to `delta`, and linear beyond.
fn huber(errors: &Tensor, delta: f32) -> Result<Tensor> {
    huber_by(errors, &Tensor::full(delta, errors.shape(), errors.device())?)
}

/// [`huber`] with a delta for each error.
fn huber_by(errors: &Tensor, deltas: &Tensor) -> Result<Tensor> {
    let size = errors.abs()?;
    let within = size.minimum(deltas)?;
    Ok(((&within * size)? - (within.sqr()? * 0.5)?)?.mean_all()?)
}

/// Cross products of rows, `(rows, 3)`.
fn cross(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let of = |x: &Tensor, axis: usize| x.narrow(1, axis % 3, 1);
    let component = |axis: usize| -> Result<Tensor> {
        let plus = (of(a, axis + 1)? * of(b, axis + 2)?)?;
        Ok((plus - (of(a, axis + 2)? * of(b, axis + 1)?)?)?)
    };
    Ok(Tensor::cat(&[component(0)?, component(1)?, component(2)?], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubers_loss_is_quadratic_up_to_delta_and_linear_beyond() {
        let errors = Tensor::new(&[0.5f32, -3.0], &Device::Cpu).unwrap();
        let loss: f32 = huber(&errors, 1.0).unwrap().to_scalar().unwrap();
        assert!((loss - (0.125 + 2.5) / 2.0).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn cross_products_follow_the_right_hand() {
        let unit = |axis: usize| {
            let values: Vec<f32> = (0..3).map(|i| if i == axis { 1.0 } else { 0.0 }).collect();
            Tensor::from_vec(values, (1, 3), &Device::Cpu).unwrap()
        };
        let z = cross(&unit(0), &unit(1)).unwrap();
        assert_eq!(z.to_vec2::<f32>().unwrap(), [[0.0, 0.0, 1.0]]);
    }
}
