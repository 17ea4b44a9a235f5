//! Energy, forces and stress from the hidden states.

use candle_core::Tensor;
use fauna_shared::{Error, Result};

use super::gradients::{column, rows};
use super::heads::Heads;
use super::repulsion::Repulsion;
use super::{Architecture, Graph, Orb, Structure};
use fauna_atoms::cell::{self, Matrix, Vector};

/// Stress components beyond this, in eV/Å³, or NaN (a cell without volume), are set to zero.
const MAX_STRESS: f64 = 1e10;

/// Outputs of Orb for a batch of structures.
#[derive(Debug, Clone, Default)]
pub struct Prediction {
    /// Energy of each structure, in eV.
    pub energy: Vec<f64>,
    /// Force on each atom of all structures, in eV/Å.
    pub forces: Vec<Vector>,
    /// Stress of each structure in eV/Å³ as xx, yy, zz, yz, xz, xy, positive under tension; `None` if the model has none.
    pub stress: Option<Vec<[f64; 6]>>,
    /// Class probabilities of the force error of each atom, `(atoms, 50)`, of models with a confidence head.
    pub confidence: Option<Tensor>,
    /// Gradient of the energy of each structure by a rotation, of conservative models.
    pub rotational_grad: Option<Vec<Matrix>>,
    /// Latent charge of each atom in elementary charges, of models that have them.
    pub latent_charges: Option<Vec<f64>>,
}

impl Orb {
    /// Computes all outputs for `structures` in one batch.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a checkpoint without heads, and for electrostatics of a
    /// partly periodic structure.
    pub fn predict(&self, structures: &[Structure]) -> Result<Prediction> {
        let heads = self.heads()?;
        if structures.is_empty() {
            return Ok(Prediction::default());
        }
        let graph = Graph::new(structures, self.model.device())?;
        match self.config.is_conservative() {
            true => self.conservative(heads, &graph),
            false => self.direct(heads, &graph),
        }
    }

    /// The heads.
    pub(super) fn heads(&self) -> Result<&Heads> {
        self.heads.as_ref().ok_or_else(|| {
            Error::unsupported(
                "this checkpoint is a backbone without heads: it has embeddings and no energies",
            )
        })
    }

    fn direct(&self, heads: &Heads, graph: &Graph) -> Result<Prediction> {
        let nodes = self.model.forward(graph, &graph.vectors)?;
        let energies = column(&heads.energy(graph, &nodes)?.0)?;
        let mut found = Prediction { confidence: heads.confidence(&nodes)?, ..Prediction::default() };
        let forces = heads.forces(&nodes)?.map(|forces| rows::<3>(&forces)).transpose()?;
        found.forces = forces.ok_or_else(|| Error::unsupported("a direct model without a forces head"))?;
        found.stress = heads.stress(graph, &nodes)?.map(|stress| rows::<6>(&stress)).transpose()?;
        for (index, (structure, atoms)) in graph.nodes().enumerate() {
            let forces = &mut found.forces[atoms];
            remove_net_force(structure, forces);
            let mut energy = energies[index] + heads.reference(&structure.numbers);
            if self.config.architecture != Architecture::V2 {
                let repulsion = Repulsion::of(structure, self.config.zbl_node_aggregation);
                energy += repulsion.energy;
                let virial = add_forces(structure, repulsion.slopes, forces);
                if let Some(stress) = &mut found.stress {
                    // By the signed volume, as in the reference.
                    let added = voigt(&virial, cell::determinant(&structure.cell));
                    stress[index] = std::array::from_fn(|i| stress[index][i] + added[i]);
                }
            }
            found.energy.push(energy);
        }
        Ok(found)
    }

    /// Forces, stress and rotational gradient follow from the gradient of the summed energies by the edge vectors (and by the
    /// distances of latent charges).
    fn conservative(&self, heads: &Heads, graph: &Graph) -> Result<Prediction> {
        let back = self.gradients(heads, graph)?;
        let confidence = heads.confidence(&back.nodes)?;
        let mut found = Prediction { confidence, latent_charges: back.charges, ..Prediction::default() };
        let (mut start, mut stresses, mut rotations) = (0, Vec::new(), Vec::new());
        for (index, ((structure, _), energy)) in graph.nodes().zip(back.energies).enumerate() {
            let edges = structure.edges.len();
            let mut slope = EdgeGradient::new(structure, back.slopes[start..start + edges].to_vec());
            start += edges;
            let repulsion = Repulsion::of(structure, self.config.zbl_node_aggregation);
            slope.add_repulsion(structure, &repulsion, self.config.zbl_node_aggregation);
            let moment = slope.virial(structure);
            rotations.push(std::array::from_fn(|i| std::array::from_fn(|j| moment[i][j] - moment[j][i])));
            let mut forces = slope.forces(structure);
            let (mut energy, mut strain) = (energy + repulsion.energy, moment);
            if let Some(field) = back.fields.get(index) {
                energy += field.energy;
                for (row, added) in strain.iter_mut().zip(&field.strain) {
                    *row = cell::sum(row, added);
                }
                for (force, added) in forces.iter_mut().zip(&field.forces) {
                    *force = cell::sum(force, added);
                }
            }
            found.energy.push(energy + heads.reference(&structure.numbers));
            stresses.push(voigt(&strain, cell::volume(&structure.cell)));
            found.forces.extend(forces);
        }
        found.stress = Some(stresses);
        found.rotational_grad = Some(rotations);
        Ok(found)
    }
}

/// Gradient of the energy of a structure by its edge vectors, in eV/Å.
struct EdgeGradient(Vec<Vector>);

impl EdgeGradient {
    fn new(structure: &Structure, slopes: Vec<Vector>) -> Self {
        debug_assert_eq!(structure.edges.len(), slopes.len());
        Self(slopes)
    }

    fn add_repulsion(
        &mut self,
        structure: &Structure,
        repulsion: &Repulsion,
        aggregation: super::Aggregation,
    ) {
        let share = match aggregation {
            super::Aggregation::Sum => 1.0,
            super::Aggregation::Mean => 1.0 / structure.len() as f64,
        };
        for (slope, added) in self.0.iter_mut().zip(&repulsion.slopes) {
            *slope = cell::sum(slope, &added.map(|value| share * value));
        }
    }

    /// The sum over the edges of the outer product of vector and gradient: the gradient by a linear map of space.
    fn virial(&self, structure: &Structure) -> Matrix {
        let mut moment = [[0.0; 3]; 3];
        for (vector, slope) in structure.edges.vectors.iter().zip(&self.0) {
            for (row, value) in moment.iter_mut().zip(vector) {
                *row = cell::sum(row, &slope.map(|slope| value * slope));
            }
        }
        moment
    }

    /// Forces on the atoms.
    fn forces(&self, structure: &Structure) -> Vec<Vector> {
        let mut forces = vec![[0.0; 3]; structure.len()];
        let edges = &structure.edges;
        for ((sender, receiver), slope) in edges.senders.iter().zip(&edges.receivers).zip(&self.0) {
            let (sender, receiver) = (*sender as usize, *receiver as usize);
            forces[sender] = cell::sum(&forces[sender], slope);
            forces[receiver] = cell::difference(&forces[receiver], slope);
        }
        forces
    }
}

/// Adds the forces of an energy with these edge gradients to `forces`, and returns its virial in eV.
pub(super) fn add_forces(structure: &Structure, slopes: Vec<Vector>, forces: &mut [Vector]) -> Matrix {
    let slope = EdgeGradient::new(structure, slopes);
    for (force, added) in forces.iter_mut().zip(slope.forces(structure)) {
        *force = cell::sum(force, &added);
    }
    slope.virial(structure)
}

/// The stress in Voigt order from the gradient by strain.
pub(super) fn voigt(strain: &Matrix, volume: f64) -> [f64; 6] {
    [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)].map(|(i, j)| {
        let stress = (strain[i][j] + strain[j][i]) / 2.0 / volume;
        if stress.abs() < MAX_STRESS { stress } else { 0.0 }
    })
}

/// Removes the net force and, without a cell, the net torque by the smallest change.
fn remove_net_force(structure: &Structure, forces: &mut [Vector]) {
    let sum = forces.iter().fold([0.0; 3], |all, force| cell::sum(&all, force));
    let drift = sum.map(|value| value / forces.len() as f64);
    for force in forces.iter_mut() {
        *force = cell::difference(force, &drift);
    }
    if !cell::is_zero(&structure.cell) {
        return;
    }
    let (arms, inverse) = inverse_inertia(structure);
    let mut torque = [0.0; 3];
    for (arm, force) in arms.iter().zip(forces.iter()) {
        torque = cell::sum(&torque, &cell::cross(arm, force));
    }
    // The torque of the forces (turn × arm) is the inertia tensor times the turn.
    let turn = cell::times(&torque, &inverse);
    for (force, arm) in forces.iter_mut().zip(&arms) {
        *force = cell::difference(force, &cell::cross(&turn, arm));
    }
}

/// The positions of the atoms relative to their mean, and the pseudo-inverse of their inertia tensor.
pub(super) fn inverse_inertia(structure: &Structure) -> (Vec<Vector>, Matrix) {
    let positions = &structure.positions;
    let sum = positions.iter().fold([0.0; 3], |all, position| cell::sum(&all, position));
    let centre = sum.map(|value| value / positions.len() as f64);
    let arms: Vec<Vector> = positions.iter().map(|position| cell::difference(position, &centre)).collect();
    let mut inertia = [[0.0; 3]; 3];
    for arm in &arms {
        let square = cell::dot(arm, arm);
        for i in 0..3 {
            inertia[i][i] += square;
            for j in 0..3 {
                inertia[i][j] -= arm[i] * arm[j];
            }
        }
    }
    (arms, pseudo_inverse(&inertia))
}

/// The Moore-Penrose inverse of a symmetric matrix: collinear atoms have no inertia about their line.
fn pseudo_inverse(matrix: &Matrix) -> Matrix {
    let (values, vectors) = eigen(*matrix);
    let largest = values.iter().fold(0.0f64, |all, value| all.max(value.abs()));
    let mut inverse = [[0.0; 3]; 3];
    for (value, vector) in values.iter().zip(&vectors) {
        if value.abs() > 1e-9 * largest {
            for i in 0..3 {
                for j in 0..3 {
                    inverse[i][j] += vector[i] * vector[j] / value;
                }
            }
        }
    }
    inverse
}

/// Eigenvalues of a symmetric matrix, and its eigenvectors as rows, by Jacobi rotations.
fn eigen(mut a: Matrix) -> (Vector, Matrix) {
    let mut vectors = cell::IDENTITY;
    for _ in 0..30 {
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            if a[p][q] == 0.0 {
                continue;
            }
            let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
            let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
            let c = 1.0 / (t * t + 1.0).sqrt();
            let mut turn = cell::IDENTITY;
            (turn[p][p], turn[q][q], turn[p][q], turn[q][p]) = (c, c, -t * c, t * c);
            a = cell::product(&cell::product(&turn, &a), &cell::transpose(&turn));
            vectors = cell::product(&turn, &vectors);
        }
    }
    ([a[0][0], a[1][1], a[2][2]], vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fauna_atoms::NeighborList;

    fn molecule(positions: Vec<Vector>) -> Structure {
        Structure {
            numbers: vec![1; positions.len()],
            positions,
            cell: [[0.0; 3]; 3],
            periodic: [false; 3],
            charge: None,
            spin: None,
            edges: NeighborList::default(),
        }
    }

    #[test]
    fn balanced_forces_neither_push_nor_turn_the_whole() {
        let shapes = [
            vec![[0.0, 0.0, 0.0], [1.0, 0.2, 0.0], [0.3, 1.1, -0.4], [0.0, 0.5, 0.9]],
            vec![[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.5, 0.0, 0.0]],
            vec![[0.3, -0.1, 0.2], [0.6, 0.4, 1.1]],
            vec![[1.0, 2.0, 3.0]],
        ];
        for positions in shapes {
            let mut forces: Vec<Vector> = (0..positions.len())
                .map(|i| [i as f64, 1.0 - 0.7 * i as f64, 0.3 * (i * i) as f64])
                .collect();
            let structure = molecule(positions.clone());
            remove_net_force(&structure, &mut forces);
            let (mut force, mut torque) = ([0.0; 3], [0.0; 3]);
            for (f, r) in forces.iter().zip(&positions) {
                force = cell::sum(&force, f);
                torque = cell::sum(&torque, &cell::cross(r, f));
            }
            assert!(cell::norm(&force) < 1e-12 && cell::norm(&torque) < 1e-9, "{force:?} {torque:?}");
        }
    }

    #[test]
    fn eigenvalues_and_vectors_rebuild_the_matrix() {
        let matrix = [[2.0, -1.0, 0.5], [-1.0, 3.0, 0.25], [0.5, 0.25, -1.0]];
        let (values, vectors) = eigen(matrix);
        for i in 0..3 {
            for j in 0..3 {
                let built: f64 = (0..3).map(|k| values[k] * vectors[k][i] * vectors[k][j]).sum();
                assert!((built - matrix[i][j]).abs() < 1e-12);
            }
        }
    }
}
