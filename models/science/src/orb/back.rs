//! The way back from the energies to the edges, which is where the forces of conservative models come from.

use candle_core::{DType, Tensor, Var};
use fauna_shared::Result;

use super::electrostatics::{Field, field};
use super::heads::Heads;
use super::network::{Given, State};
use super::{Graph, Orb};
use fauna_atoms::cell::Vector;

/// Edges up to which everything on the way there is kept for the way back, some 80 KB an edge at the official size.
/// Larger graphs keep the states between layers alone and compute each layer again when its turn comes: a third of the
/// memory, and half as much time again.
const EDGES_KEPT: usize = 60_000;

/// What the way there and back gives.
pub(super) struct WayBack {
    /// Without repulsion, charges and references, in eV, one a structure.
    pub energies: Vec<f64>,
    /// In elementary charges, one a node, where the model gives them.
    pub charges: Option<Vec<f64>>,
    /// What the charges of each structure do to each other.
    pub fields: Vec<Field>,
    /// The states of the nodes, `(nodes, latent_dim)`.
    pub nodes: Tensor,
    /// The slope of the energies against each vector of the graph, in eV/Å.
    pub slopes: Vec<Vector>,
}

/// What the heads say of the nodes, and the one number whose slope is wanted.
struct Said {
    total: Tensor,
    energies: Vec<f64>,
    charges: Option<Vec<f64>>,
    fields: Vec<Field>,
}

impl Said {
    fn of(heads: &Heads, graph: &Graph, nodes: &Tensor) -> Result<Self> {
        let (energies, charges) = heads.energy(graph, nodes)?;
        let mut total = energies.sum_all()?;
        let energies = column(&energies)?;
        let Some(charges) = charges else {
            return Ok(Self { total, energies, charges: None, fields: Vec::new() });
        };
        let values = column(&charges)?;
        let (mut fields, mut potentials) = (Vec::new(), Vec::with_capacity(values.len()));
        for (structure, atoms) in graph.nodes() {
            let field = field(structure, &values[atoms], heads.coulomb_constant())?;
            potentials.extend(field.potentials.iter().map(|value| *value as f32));
            fields.push(field);
        }
        // Of the energy of charges only the slope against them is wanted here: their potentials.
        let potentials = Tensor::from_vec(potentials, charges.shape(), charges.device())?;
        total = (total + (charges * potentials)?.sum_all()?)?;
        Ok(Self { total, energies, charges: Some(values), fields })
    }

    fn with(self, nodes: Tensor, slopes: Option<&Tensor>, edges: usize) -> Result<WayBack> {
        let slopes = match slopes {
            Some(slopes) => rows::<3>(slopes)?,
            None => vec![[0.0; 3]; edges],
        };
        Ok(WayBack { energies: self.energies, charges: self.charges, fields: self.fields, nodes, slopes })
    }
}

impl Orb {
    /// There and back.
    pub(super) fn way_back(&self, heads: &Heads, graph: &Graph) -> Result<WayBack> {
        match graph.senders.edges() > EDGES_KEPT {
            false => self.at_once(heads, graph),
            true => self.layer_by_layer(heads, graph),
        }
    }

    pub(super) fn at_once(&self, heads: &Heads, graph: &Graph) -> Result<WayBack> {
        let vectors = Var::from_tensor(&graph.vectors)?;
        let nodes = self.model.forward(graph, vectors.as_tensor())?;
        let said = Said::of(heads, graph, &nodes)?;
        let slopes = said.total.backward()?;
        said.with(nodes.detach(), slopes.get(&vectors), graph.senders.edges())
    }

    /// The same with less memory.
    pub(super) fn layer_by_layer(&self, heads: &Heads, graph: &Graph) -> Result<WayBack> {
        let (start, envelope) = self.model.begin(graph, &graph.vectors)?;
        let condition = self.model.condition(graph)?;
        let given = Given { envelope: &envelope, condition: condition.as_ref() };
        let mut states = vec![start];
        for layer in self.model.layers() {
            let state = layer.forward(graph, states[states.len() - 1].clone(), &given)?;
            states.push(state);
        }
        let last = states.remove(states.len() - 1);
        let nodes = Var::from_tensor(&last.nodes)?;
        let said = Said::of(heads, graph, nodes.as_tensor())?;
        let back = said.total.backward()?;
        let mut to_nodes = back.get(&nodes).cloned().map_or_else(|| last.nodes.zeros_like(), Ok)?;
        let mut to_edges = last.edges.zeros_like()?;
        let mut to_envelope = envelope.zeros_like()?;
        for layer in self.model.layers().iter().rev() {
            let Some(state) = states.pop() else { break };
            let vars = [
                Var::from_tensor(&state.nodes)?,
                Var::from_tensor(&state.edges)?,
                Var::from_tensor(&envelope)?,
            ];
            let [nodes, edges, envelope] = vars.each_ref().map(Var::as_tensor);
            let given = Given { envelope, condition: condition.as_ref() };
            let out = layer.forward(graph, State { nodes: nodes.clone(), edges: edges.clone() }, &given)?;
            let pulled = ((out.nodes * &to_nodes)?.sum_all()? + (out.edges * &to_edges)?.sum_all()?)?;
            let back = pulled.backward()?;
            let slope = |var: &Var| back.get(var).cloned().map_or_else(|| var.zeros_like(), Ok);
            (to_nodes, to_edges) = (slope(&vars[0])?, slope(&vars[1])?);
            to_envelope = (to_envelope + slope(&vars[2])?)?;
        }
        let vectors = Var::from_tensor(&graph.vectors)?;
        let (start, envelope) = self.model.begin(graph, vectors.as_tensor())?;
        let pulled = ((start.edges * to_edges)?.sum_all()? + (envelope * to_envelope)?.sum_all()?)?;
        let slopes = pulled.backward()?;
        said.with(last.nodes, slopes.get(&vectors), graph.senders.edges())
    }
}

/// The numbers of `(rows, 1)`.
pub(super) fn column(tensor: &Tensor) -> Result<Vec<f64>> {
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// The rows of `(rows, N)`.
pub(super) fn rows<const N: usize>(tensor: &Tensor) -> Result<Vec<[f64; N]>> {
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.as_chunks::<N>().0.iter().map(|row| row.map(f64::from)).collect())
}
