//! Structures as one graph: nodes, edges, and which structure each belongs to.

use candle_core::{Device, Tensor};
use fauna_shared::item::Atoms;
use fauna_shared::nn::Incidence;
use fauna_shared::{Error, Result};

use super::Config;
use fauna_atoms::cell::{self, Matrix, Vector};
use fauna_atoms::{CLOSEST, Neighbours, check, closer, neighbours};

/// The largest atomic number with an energy of reference.
const LARGEST_NUMBER: u8 = 117;

/// One structure, brought into its cell, and who is near whom in it.
#[derive(Debug, Clone)]
pub struct Structure {
    /// Atomic numbers.
    pub numbers: Vec<u8>,
    /// Inside the cell where it repeats, in Å.
    pub positions: Vec<Vector>,
    /// Zero where there is none.
    pub cell: Matrix,
    /// Which of its vectors repeat.
    pub periodic: [bool; 3],
    /// In elementary charges.
    pub charge: Option<f64>,
    /// The multiplicity.
    pub spin: Option<f64>,
    /// Those of each atom that the model looks at.
    pub edges: Neighbours,
}

impl Structure {
    /// Checks `atoms` and finds their neighbours as `config` wants them.
    ///
    /// Along vectors that repeat positions are brought into the cell, along others they are left where they are. (The
    /// reference refuses cells that repeat in some directions only.)
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for what [`check`] refuses, for an element without an energy of
    /// reference, and for atoms nearer than [`CLOSEST`].
    pub fn new(atoms: &Atoms, config: &Config) -> Result<Self> {
        check(atoms)?;
        if let Some(index) = atoms.numbers.iter().position(|number| *number > LARGEST_NUMBER) {
            let message = format!("atom {index} has atomic number {}", atoms.numbers[index]);
            return Err(
                Error::input(message).hint(format!("this model knows the elements up to {LARGEST_NUMBER}"))
            );
        }
        let cell = atoms.cell.unwrap_or_default();
        let positions = cell::wrapped(&atoms.positions, &cell, atoms.periodic)?;
        // Before all pairs are listed, of which there would be the square of those in one place.
        if let Some((distance, a, b)) = closer(&positions, Some(&cell), atoms.periodic, CLOSEST)? {
            return Err(Error::input(format!("atoms {a} and {b} overlap: they are {distance:.3} Å apart"))
                .hint(format!(
                    "less than {CLOSEST} Å is nearer than any two nuclei come; is an atom given twice?"
                )));
        }
        let near = neighbours(&positions, Some(&cell), atoms.periodic, config.radius)?;
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

    /// How many atoms it has.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether it has none, which [`new`](Self::new) refuses.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// Several structures side by side, no edge between two of them.
pub struct Graph<'a> {
    /// The structures, in order.
    pub structures: &'a [Structure],
    /// Where the atoms of each begin, and where the last ones end.
    pub starts: Vec<usize>,
    /// Atomic numbers, `(nodes)`.
    pub numbers: Tensor,
    /// From sender to receiver in Å, `(edges, 3)`.
    pub vectors: Tensor,
    /// Where each edge begins.
    pub senders: Incidence,
    /// Where each edge ends.
    pub receivers: Incidence,
    /// The structure of each node.
    pub owners: Incidence,
    /// Atoms of each structure, `(structures, 1)`.
    pub counts: Tensor,
}

impl<'a> Graph<'a> {
    /// Of `structures`, at least one of them.
    ///
    /// Where no atom has a neighbour there is one edge all the same, longer than any that counts, so that no tensor is
    /// empty.
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
            vectors.extend([BEYOND, 0.0, 0.0]);
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

    /// The mean over the atoms of each structure: `(nodes, width)` to `(structures, width)`.
    pub fn mean(&self, nodes: &Tensor) -> Result<Tensor> {
        Ok(self.owners.sum(nodes)?.broadcast_div(&self.counts)?)
    }

    /// The atoms of each structure.
    pub fn nodes(&self) -> impl Iterator<Item = (&'a Structure, std::ops::Range<usize>)> {
        self.structures.iter().zip(self.starts.windows(2).map(|pair| pair[0]..pair[1]))
    }
}

/// In Å: longer than any edge that counts.
const BEYOND: f32 = 1e3;
