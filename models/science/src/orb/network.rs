//! The backbone: encoder and message passing. `MoleculeGNS` in the reference.

use candle_core::{DType, Device, Tensor};
use fauna_shared::Result;
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, Mlp, RmsNorm, add, concat};
use fauna_shared::weights::{MatrixUse, Piece, Weights};

use super::features::{DescribedEdges, EdgeFeatures};
use super::{Architecture, Config, Graph};

/// Number of rows of the element embedding; the first is not used.
const ELEMENTS: usize = 119;

/// Loads an MLP of `depth` hidden layers and an output layer: `mlp.NN-0`, `mlp.NN-1`, …
pub(super) fn load_mlp(
    w: &Weights,
    activation: Activation,
    (inputs, hidden, outputs): (usize, usize, usize),
    depth: usize,
) -> Result<Mlp> {
    let width = |layer: usize| if layer == 0 { inputs } else { hidden };
    let layers = (0..=depth).map(|layer| {
        let outputs = if layer == depth { outputs } else { hidden };
        w.linear(&format!("mlp.NN-{layer}"), width(layer), outputs)
    });
    Mlp::new(layers.collect::<Result<_>>()?, activation)
}

/// The norm after an MLP of the backbone. Both kinds are stored as `layer_norm`.
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        match c.architecture {
            Architecture::V2 => Ok(Self::Layer(w.layer_norm("layer_norm", c.latent_dim, 1e-5)?)),
            // Without an epsilon PyTorch takes that of float32.
            _ => Ok(Self::Rms(w.rms_norm("layer_norm", c.latent_dim, f64::from(f32::EPSILON))?)),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// An MLP followed by a norm.
struct NormedMlp {
    mlp: Mlp,
    norm: Norm,
}

impl NormedMlp {
    fn load(c: &Config, w: &Weights, inputs: usize) -> Result<Self> {
        let widths = (inputs, c.base_mlp_hidden_dim, c.latent_dim);
        Ok(Self { mlp: load_mlp(w, c.activation, widths, c.base_mlp_depth)?, norm: Norm::load(c, w)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.mlp.forward(x)?)
    }
}

/// The MLP over an edge concatenated with its sender and receiver. The part of the nodes in the first layer is computed per
/// node, not per edge.
struct EdgeMlp {
    mlp: Mlp,
    sender: Linear,
    receiver: Linear,
    norm: Norm,
}

impl EdgeMlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, hidden, depth) = (c.latent_dim, c.base_mlp_hidden_dim, c.base_mlp_depth);
        let outputs = |layer: usize| if layer == depth { width } else { hidden };
        let first = w.at("mlp.NN-0");
        let mut parts = first.columns("weight", outputs(0), &[width; 3])?.into_iter();
        let bias = first.tensor("bias", &[outputs(0)])?;
        let mut part = |bias| parts.next().map(|matrix| Linear::new(matrix, bias));
        let parts = [part(Some(bias)), part(None), part(None)];
        let [Some(edge), Some(sender), Some(receiver)] = parts else {
            return Err(fauna_shared::Error::unsupported("an edge has two ends"));
        };
        let mut layers = vec![edge];
        for layer in 1..=depth {
            layers.push(w.linear(&format!("mlp.NN-{layer}"), hidden, outputs(layer))?);
        }
        Ok(Self { mlp: Mlp::new(layers, c.activation)?, sender, receiver, norm: Norm::load(c, w)? })
    }

    fn forward(&self, graph: &Graph, nodes: &Tensor, edges: &Tensor) -> Result<Tensor> {
        let (from, to) = (self.sender.forward(nodes)?, self.receiver.forward(nodes)?);
        let ends = [(&from, &graph.senders), (&to, &graph.receivers)];
        self.norm.forward(&self.mlp.forward_joined(edges, ends)?)
    }
}

/// Embedding of total charge and spin multiplicity, as sines and cosines.
struct Conditioner {
    charge: Tensor,
    spin: Tensor,
}

impl Conditioner {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let frequencies = |name: &str| -> Result<Tensor> {
            let count = c.latent_dim / 4;
            Ok(w.at(name).tensor("W", &[count])?.unsqueeze(0)?)
        };
        Ok(Self { charge: frequencies("charge_embedding")?, spin: frequencies("spin_embedding")? })
    }

    /// `(structures, latent_dim)`.
    fn forward(&self, graph: &Graph) -> Result<Tensor> {
        let of = |value: fn(&super::Structure) -> Option<f64>| -> Result<Tensor> {
            let values = graph.structures.iter().map(|structure| value(structure).unwrap_or(0.0) as f32);
            let device = self.charge.device();
            Ok(Tensor::from_vec(values.collect(), (graph.structures.len(), 1), device)?)
        };
        let (charges, spins) = (of(|structure| structure.charge)?, of(|structure| structure.spin)?);
        // A multiplicity of 0 is an unknown spin.
        let known = spins.ne(0f32)?.to_dtype(DType::F32)?;
        let spins = waves(&spins, &self.spin)?.broadcast_mul(&known)?;
        Ok(Tensor::cat(&[&waves(&charges, &self.charge)?, &spins], 1)?)
    }
}

/// `sin(2π w q)`, then `cos(2π w q)`.
fn waves(values: &Tensor, frequencies: &Tensor) -> Result<Tensor> {
    let turns = ((values.broadcast_mul(frequencies)? * 2.0)? * std::f64::consts::PI)?;
    Ok(Tensor::cat(&[&turns.sin()?, &turns.cos()?], 1)?)
}

/// A message-passing layer: `AttentionInteractionNetwork` in the reference.
pub(super) struct Interaction {
    cond_node_proj: Option<Linear>,
    /// Gates of an edge for its receiver and its sender.
    gates: Linear,
    edge_mlp: EdgeMlp,
    node_mlp: NormedMlp,
}

impl Interaction {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let width = c.latent_dim;
        let weights = ["_receive_attn.weight", "_send_attn.weight"].map(|name| Piece::whole(name, 1));
        let biases = ["_receive_attn.bias", "_send_attn.bias"].map(|name| Piece::whole(name, 1));
        let gates = w.stack(MatrixUse::Linear, &weights, width)?;
        Ok(Self {
            cond_node_proj: match c.is_conditioned() {
                true => Some(w.linear("_cond_node_proj", width, width)?),
                false => None,
            },
            gates: Linear::new(gates, Some(w.stack_bias(&biases)?)),
            edge_mlp: EdgeMlp::load(c, &w.at("_edge_mlp"))?,
            node_mlp: NormedMlp::load(c, &w.at("_node_mlp"), 3 * width)?,
        })
    }

    pub(super) fn forward(
        &self,
        graph: &Graph,
        state: HiddenStates,
        given: &LayerInputs,
    ) -> Result<HiddenStates> {
        let nodes = match (&self.cond_node_proj, given.condition) {
            (Some(projection), Some(condition)) => {
                (state.nodes + graph.owners.gather(&projection.forward(condition)?)?)?
            }
            _ => state.nodes,
        };
        let gates = Activation::Sigmoid.forward(&self.gates.forward(&state.edges)?)?;
        let gates = gates.broadcast_mul(given.envelope)?;
        let new = self.edge_mlp.forward(graph, &nodes, &state.edges)?;
        let received = graph.receivers.sum_scaled(&new, &gates.narrow(1, 0, 1)?.contiguous()?)?;
        let sent = graph.senders.sum_scaled(&new, &gates.narrow(1, 1, 1)?.contiguous()?)?;
        let heard = self.node_mlp.forward(&concat(&[&nodes, &received, &sent], 1)?)?;
        Ok(HiddenStates { nodes: add(&nodes, &heard)?, edges: add(&state.edges, &new)? })
    }
}

/// Hidden states of nodes and edges.
#[derive(Clone)]
pub(super) struct HiddenStates {
    pub nodes: Tensor,
    pub edges: Tensor,
}

/// Inputs of all layers.
pub(super) struct LayerInputs<'a> {
    pub envelope: &'a Tensor,
    pub condition: Option<&'a Tensor>,
}

/// The backbone.
pub(super) struct MoleculeGns {
    atom_emb: Embedding,
    edge_features: EdgeFeatures,
    conditioner: Option<Conditioner>,
    node_fn: NormedMlp,
    edge_fn: NormedMlp,
    gnn_stacks: Vec<Interaction>,
    device: Device,
}

impl MoleculeGns {
    pub(super) fn load(c: &Config, w: &Weights) -> Result<Self> {
        let edge_features = match c.architecture {
            Architecture::V2 => EdgeFeatures::gaussian(w)?,
            _ => EdgeFeatures::bessel(w)?,
        };
        let encoder = w.at("_encoder");
        let model = Self {
            atom_emb: w.embedding("atom_emb.embeddings", ELEMENTS, c.latent_dim)?,
            conditioner: match c.is_conditioned() {
                true => Some(Conditioner::load(c, &w.at("conditioner"))?),
                false => None,
            },
            node_fn: NormedMlp::load(c, &encoder.at("_node_fn"), c.latent_dim)?,
            edge_fn: NormedMlp::load(c, &encoder.at("_edge_fn"), edge_features.width())?,
            gnn_stacks: (0..c.num_message_passing_steps)
                .map(|layer| Interaction::load(c, &w.at_index("gnn_stacks", layer)))
                .collect::<Result<_>>()?,
            device: w.runtime().device().clone(),
            edge_features,
        };
        // The decoder belongs to the denoising pretraining.
        w.skip("_decoder");
        Ok(model)
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn layers(&self) -> &[Interaction] {
        &self.gnn_stacks
    }

    /// The embedding of charge and spin, `(structures, latent_dim)`, of conditioned models.
    pub(super) fn condition(&self, graph: &Graph) -> Result<Option<Tensor>> {
        self.conditioner.as_ref().map(|conditioner| conditioner.forward(graph)).transpose()
    }

    /// The input of the first layer, and the envelope of the edges `vectors`.
    pub(super) fn encode(&self, graph: &Graph, vectors: &Tensor) -> Result<(HiddenStates, Tensor)> {
        let DescribedEdges { features, envelope } = self.edge_features.describe(vectors)?;
        let nodes = self.node_fn.forward(&self.atom_emb.forward(&graph.numbers)?)?;
        Ok((HiddenStates { nodes, edges: self.edge_fn.forward(&features)? }, envelope))
    }

    /// The last hidden states of the nodes, `(nodes, latent_dim)`, of a graph with the edge `vectors`, `(edges, 3)`.
    pub(super) fn forward(&self, graph: &Graph, vectors: &Tensor) -> Result<Tensor> {
        let condition = self.condition(graph)?;
        let (mut state, envelope) = self.encode(graph, vectors)?;
        let given = LayerInputs { envelope: &envelope, condition: condition.as_ref() };
        for layer in &self.gnn_stacks {
            state = layer.forward(graph, state, &given)?;
        }
        Ok(state.nodes)
    }
}
