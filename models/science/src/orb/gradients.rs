//! Backpropagation from the energies to the edge vectors, for the forces of conservative models.

use candle_core::{DType, Tensor, Var};
use fauna_shared::grad::{self, Recording};
use fauna_shared::{Result, transfer};

use super::electrostatics::{Field, field};
use super::heads::Heads;
use super::network::{HiddenStates, LayerInputs};
use super::{Graph, Orb};
use fauna_atoms::cell::Vector;

/// Maximum number of edges for which all activations are kept, some 80 KB per edge at the official size. Larger graphs use
/// gradient checkpointing per layer: a third of the memory and 1.5 times the time.
const MAX_EDGES_KEPT: usize = 60_000;

/// Energies and their gradients.
pub(super) struct Gradients {
    /// Energy of each structure in eV, without repulsion, electrostatics and reference energies.
    pub energies: Vec<f64>,
    /// Latent charge of each node in elementary charges, of models that have them.
    pub charges: Option<Vec<f64>>,
    /// Electrostatics of each structure.
    pub fields: Vec<Field>,
    /// Last hidden states of the nodes, `(nodes, latent_dim)`.
    pub nodes: Tensor,
    /// Gradient of the energies by each edge vector, in eV/Å.
    pub slopes: Vec<Vector>,
}

/// Outputs of the heads, and the scalar that is backpropagated.
struct HeadOutputs {
    total: Tensor,
    energies: Vec<f64>,
    charges: Option<Vec<f64>>,
    fields: Vec<Field>,
}

impl HeadOutputs {
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
        // The gradient of the electrostatic energy by the charges is their potentials.
        let potentials = Tensor::from_vec(potentials, charges.shape(), charges.device())?;
        total = (total + (charges * potentials)?.sum_all()?)?;
        Ok(Self { total, energies, charges: Some(values), fields })
    }

    fn with(self, nodes: Tensor, slopes: &Tensor) -> Result<Gradients> {
        let slopes = rows::<3>(slopes)?;
        Ok(Gradients { energies: self.energies, charges: self.charges, fields: self.fields, nodes, slopes })
    }
}

impl Orb {
    /// Forward and backward pass.
    pub(super) fn gradients(&self, heads: &Heads, graph: &Graph) -> Result<Gradients> {
        match graph.senders.edges() > MAX_EDGES_KEPT {
            false => self.at_once(heads, graph),
            true => self.checkpointed(heads, graph),
        }
    }

    pub(super) fn at_once(&self, heads: &Heads, graph: &Graph) -> Result<Gradients> {
        let vectors = Var::from_tensor(&graph.vectors)?;
        let recording = Recording::new();
        let nodes = self.model.forward(graph, vectors.as_tensor())?;
        let said = HeadOutputs::of(heads, graph, &nodes)?;
        let [slopes] = slopes([&vectors], &said.total, recording)?;
        said.with(nodes.detach(), &slopes)
    }

    /// The same with gradient checkpointing per layer.
    pub(super) fn checkpointed(&self, heads: &Heads, graph: &Graph) -> Result<Gradients> {
        let (start, envelope) = self.model.encode(graph, &graph.vectors)?;
        let condition = self.model.condition(graph)?;
        let given = LayerInputs { envelope: &envelope, condition: condition.as_ref() };
        let mut states = vec![start];
        for layer in self.model.layers() {
            let state = layer.forward(graph, states[states.len() - 1].clone(), &given)?;
            states.push(state);
        }
        let last = states.remove(states.len() - 1);
        let nodes = Var::from_tensor(&last.nodes)?;
        let recording = Recording::new();
        let said = HeadOutputs::of(heads, graph, nodes.as_tensor())?;
        let [mut to_nodes] = slopes([&nodes], &said.total, recording)?;
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
            let recording = Recording::new();
            let given = LayerInputs { envelope, condition: condition.as_ref() };
            let out =
                layer.forward(graph, HiddenStates { nodes: nodes.clone(), edges: edges.clone() }, &given)?;
            let pulled = ((out.nodes * &to_nodes)?.sum_all()? + (out.edges * &to_edges)?.sum_all()?)?;
            let new;
            [to_nodes, to_edges, new] = slopes(vars.each_ref(), &pulled, recording)?;
            to_envelope = (to_envelope + new)?;
        }
        let vectors = Var::from_tensor(&graph.vectors)?;
        let recording = Recording::new();
        let (start, envelope) = self.model.encode(graph, vectors.as_tensor())?;
        let pulled = ((start.edges * to_edges)?.sum_all()? + (envelope * to_envelope)?.sum_all()?)?;
        let [slopes] = slopes([&vectors], &pulled, recording)?;
        said.with(last.nodes, &slopes)
    }
}

/// The gradients of `total`, a scalar, by `variables`, which were recorded since `recording` was made.
fn slopes<const N: usize>(variables: [&Var; N], total: &Tensor, recording: Recording) -> Result<[Tensor; N]> {
    let mut gradients = grad::Gradients::of(variables);
    gradients.backward(total)?;
    drop(recording);
    let mut slopes = variables.map(|variable| variable.as_detached_tensor());
    for (slope, variable) in slopes.iter_mut().zip(variables) {
        *slope = gradients.get(variable)?.map_or_else(|| variable.zeros_like(), Ok)?;
    }
    Ok(slopes)
}

/// The values of a column, `(rows, 1)`.
pub(super) fn column(tensor: &Tensor) -> Result<Vec<f64>> {
    let values: Vec<f32> = transfer::to_host(&tensor.detach().to_dtype(DType::F32)?)?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// The rows of `(rows, N)`.
pub(super) fn rows<const N: usize>(tensor: &Tensor) -> Result<Vec<[f64; N]>> {
    let values: Vec<f32> = transfer::to_host(&tensor.detach().to_dtype(DType::F32)?)?;
    Ok(values.as_chunks::<N>().0.iter().map(|row| row.map(f64::from)).collect())
}
