//! A batch of structures as one graph.

use candle_core::{Device, Tensor};
use fauna_shared::item::Atoms;
use fauna_shared::nn::Incidence;
use fauna_shared::{Error, Result};

use super::Config;
use fauna_atoms::cell::{self, Matrix, Vector};
use fauna_atoms::{MIN_DISTANCE, NeighborList, check, neighbor_list, pair_within};

/// Maximum atomic number with a reference energy.
const MAX_ATOMIC_NUMBER: u8 = 117;

/// A structure with wrapped positions and its neighbour list.
#[derive(Debug, Clone)]
pub struct Structure {
    /// Atomic numbers.
    pub numbers: Vec<u8>,
    /// Positions in Å, wrapped into the cell.
    pub positions: Vec<Vector>,
    /// Cell in Å; zero without one.
    pub cell: Matrix,
    /// Periodic directions.
    pub periodic: [bool; 3],
    /// Total charge in elementary charges.
    pub charge: Option<f64>,
    /// Spin multiplicity.
    pub spin: Option<f64>,
    /// Neighbour list, with at most `max_num_neighbors` per atom.
    pub edges: NeighborList,
}

impl Structure {
    /// Checks `atoms` and computes their neighbour list by `config`.
    ///
    /// Positions are wrapped along the periodic directions. (The reference refuses partly periodic cells.)
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for what [`check`] refuses, for an element without a reference
    /// energy, and for atoms nearer than [`MIN_DISTANCE`].
    pub fn new(atoms: &Atoms, config: &Config) -> Result<Self> {
        check(atoms)?;
        if let Some(index) = atoms.numbers.iter().position(|number| *number > MAX_ATOMIC_NUMBER) {
            let message = format!("atom {index} has atomic number {}", atoms.numbers[index]);
            return Err(Error::input(message)
                .hint(format!("this model knows the elements up to {MAX_ATOMIC_NUMBER}")));
        }
        let cell = atoms.cell.unwrap_or_default();
        let positions = cell::wrap_positions(&atoms.positions, &cell, atoms.periodic)?;
        // Before the neighbour list, which is quadratic in the number of atoms in one place.
        if let Some((distance, a, b)) = pair_within(&positions, Some(&cell), atoms.periodic, MIN_DISTANCE)? {
            return Err(Error::input(format!("atoms {a} and {b} overlap: they are {distance:.3} Å apart"))
                .hint(format!(
                    "atoms must be at least {MIN_DISTANCE} Å apart; check that no atom is given twice"
                )));
        }
        let near = neighbor_list(&positions, Some(&cell), atoms.periodic, config.radius)?;
        Ok(Self {
            numbers: atoms.numbers.clone(),
            positions,
            cell,
            periodic: atoms.periodic,
            charge: atoms.charge,
            spin: atoms.spin,
            edges: near.nearest(config.max_num_neighbors),
        })
    }

    /// Number of atoms.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are no atoms, which [`new`](Self::new) refuses.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// A batch of structures as one graph, without edges between structures.
pub struct Graph<'a> {
    /// The structures, in order.
    pub structures: &'a [Structure],
    /// Index of the first atom of each structure, and the number of atoms.
    pub starts: Vec<usize>,
    /// Atomic numbers, `(nodes)`.
    pub numbers: Tensor,
    /// Vectors from sender to receiver in Å, `(edges, 3)`.
    pub vectors: Tensor,
    /// Sender of each edge.
    pub senders: Incidence,
    /// Receiver of each edge.
    pub receivers: Incidence,
    /// Structure of each node.
    pub owners: Incidence,
    /// Number of atoms of each structure, `(structures, 1)`.
    pub counts: Tensor,
}

impl<'a> Graph<'a> {
    /// The graph of at least one of `structures`.
    ///
    /// Without any neighbours there is one edge beyond the cutoff, so that no tensor is empty.
    pub fn new(structures: &'a [Structure], device: &Device) -> Result<Self> {
        let mut starts = vec![0];
        let (mut numbers, mut owners, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (index, structure) in structures.iter().enumerate() {
            let start = numbers.len() as u32;
            numbers.extend(structure.numbers.iter().map(|number| u32::from(*number)));
            owners.resize(numbers.len(), index as u32);
            senders.extend(structure.edges.senders.iter().map(|node| start + node));
            receivers.extend(structure.edges.receivers.iter().map(|node| start + node));
            vectors.extend(structure.edges.vectors.iter().flatten().map(|value| *value as f32));
            starts.push(numbers.len());
        }
        if senders.is_empty() {
            senders.push(0);
            receivers.push(0);
            vectors.extend([BEYOND_CUTOFF, 0.0, 0.0]);
        }
        let (nodes, edges) = (numbers.len(), senders.len());
        let counts: Vec<f32> = structures.iter().map(|structure| structure.len() as f32).collect();
        Ok(Self {
            structures,
            starts,
            numbers: Tensor::from_vec(numbers, nodes, device)?,
            vectors: Tensor::from_vec(vectors, (edges, 3), device)?,
            senders: Incidence::new(senders, nodes, device)?,
            receivers: Incidence::new(receivers, nodes, device)?,
            owners: Incidence::new(owners, structures.len(), device)?,
            counts: Tensor::from_vec(counts, (structures.len(), 1), device)?,
        })
    }

    /// The mean over the atoms of each structure: `(nodes, size)` to `(structures, size)`.
    pub fn mean(&self, nodes: &Tensor) -> Result<Tensor> {
        Ok(self.owners.sum(nodes)?.broadcast_div(&self.counts)?)
    }

    /// Each structure with the range of its atoms.
    pub fn nodes(&self) -> impl Iterator<Item = (&'a Structure, std::ops::Range<usize>)> {
        self.structures.iter().zip(self.starts.windows(2).map(|pair| pair[0]..pair[1]))
    }
}

/// A length beyond the cutoff, in Å.
const BEYOND_CUTOFF: f32 = 1e3;
