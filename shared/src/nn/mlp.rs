//! Multi-layer perceptron.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor};

use super::back::{self, numbers, out};
use super::{Activation, Incidence, Linear, host};
use crate::grad::Recorded;
use crate::kernels::{elementwise, memory, segments};
use crate::{Error, ErrorKind, Result, grad};

/// A multi-layer perceptron (MLP): linear layers with an activation between them. Cheap to clone.
///
/// On the CPU it is a single operation with its own backward pass, which stores only the activations that it needs.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use fauna_shared::nn::{Activation, Mlp};
/// use fauna_shared::{runtime::Runtime, weights::Weights};
/// let w = Weights::seeded(1, Runtime::cpu());
/// let mlp = Mlp::new(vec![w.linear("0", 3, 8)?, w.linear("1", 8, 2)?], Activation::Silu)?;
/// let x = Var::from_tensor(&Tensor::ones((5, 3), candle_core::DType::F32, &Device::Cpu)?)?;
/// let gradients = mlp.forward(x.as_tensor())?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&x).unwrap().dims(), [5, 3]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: Vec<Linear>,
    activation: Activation,
}

/// Features of the nodes at both ends of the edges, `(nodes, width)`, and the node of each edge.
type Joined<'a> = [(&'a Tensor, &'a Incidence); 2];

impl Mlp {
    /// Creates an MLP of `layers`, with `activation` after each but the last.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if there are no layers, or the outputs of one are not the inputs of the
    /// next.
    pub fn new(layers: Vec<Linear>, activation: Activation) -> Result<Self> {
        let fits = layers.windows(2).all(|pair| pair[0].weight().outputs() == pair[1].weight().inputs());
        match layers.is_empty() || !fits {
            true => Err(Error::unsupported(
                "an MLP needs at least one layer, each with as many inputs as the previous one has outputs",
            )),
            false => Ok(Self { layers, activation }),
        }
    }

    /// Applies the MLP to `x`, `(rows, inputs)`. Returns `(rows, outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.is_fixed() && (host::serves(x) || back::serves(x) && self.has_way_back()) {
            return grad::apply1(&x.contiguous()?, Alone { pass: Pass::of(self), keeps: x.track_op() });
        }
        self.finish(self.layers[0].forward(x)?)
    }

    /// [`forward`](Self::forward) of edge features `x`, `(edges, inputs)`, where the features of both nodes of each
    /// edge are added to the output of the first layer. `joined`: `(nodes, width)` each, where `width` is the number of
    /// outputs of the first layer. Returns `(edges, outputs)`.
    ///
    /// This equals an MLP over the concatenation of edge and node features, with the products of the node features
    /// computed once per node instead of once per edge.
    pub fn forward_joined(&self, x: &Tensor, joined: Joined) -> Result<Tensor> {
        let [(from, at_from), (to, at_to)] = joined;
        let tracked = [x, from, to].iter().any(|x| x.track_op());
        let on_host = [x, from, to].iter().all(|x| host::serves(x) || back::serves(x));
        if on_host && self.is_fixed() && (!tracked || self.has_way_back()) {
            let ends = [at_from.clone(), at_to.clone()];
            let wants = [x.track_op(), from.track_op(), to.track_op()];
            let op = Edges { pass: Pass::of(self), ends, wants };
            return grad::apply3(&x.contiguous()?, &from.contiguous()?, &to.contiguous()?, op);
        }
        let first = (self.layers[0].forward(x)? + at_from.gather(from)?)?;
        self.finish((first + at_to.gather(to)?)?)
    }

    /// Applies all layers after the first, by differentiable operations.
    fn finish(&self, mut x: Tensor) -> Result<Tensor> {
        for layer in &self.layers[1..] {
            x = layer.forward(&self.activation.forward(&x)?)?;
        }
        Ok(x)
    }

    /// Whether no parameter requires a gradient or has an adapter.
    fn is_fixed(&self) -> bool {
        self.layers
            .iter()
            .all(|layer| layer.weight().is_fixed() && !layer.bias().is_some_and(Tensor::track_op))
    }

    fn has_way_back(&self) -> bool {
        self.activation == Activation::Silu
    }

    fn outputs(&self) -> usize {
        self.layers[self.layers.len() - 1].weight().outputs()
    }
}

/// A forward pass, with the activations stored for the backward pass.
struct Pass {
    mlp: Mlp,
    /// Outputs of each layer but the last before the activation; empty before the forward and after the backward pass.
    kept: Mutex<Vec<Vec<f32>>>,
}

impl Pass {
    fn of(mlp: &Mlp) -> Self {
        Self { mlp: mlp.clone(), kept: Mutex::default() }
    }

    /// Forward pass of `x`, `(rows, inputs)`. `join` adds to the output of the first layer; `keeps` stores activations
    /// for a backward pass. Returns `(rows, outputs)`.
    fn forward(&self, x: &[f32], join: impl Fn(&mut [f32]) -> Result<()>, keeps: bool) -> Result<Vec<f32>> {
        let Mlp { layers, activation } = &self.mlp;
        let mut kept = Vec::new();
        let mut y = layers[0].weight().multiply_host(x, layers[0].bias(), None)?;
        join(&mut y)?;
        for layer in &layers[1..] {
            if keeps {
                kept.push(memory::copy(&y));
            }
            activation.apply(&mut y);
            y = layer.weight().multiply_host(&y, layer.bias(), None)?;
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(y)
    }

    /// Backward pass: the gradient with respect to the output of the first layer, from that with respect to the result,
    /// `(rows, outputs)`.
    fn back(&self, grad: &[f32]) -> Result<Vec<f32>> {
        let mut kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let layers = &self.mlp.layers;
        if kept.len() + 1 != layers.len() {
            let message = "the backward pass can run only once per forward pass";
            return Err(Error::new(ErrorKind::Compute, message));
        }
        let mut slope = memory::copy(grad);
        for layer in layers[1..].iter().rev() {
            slope = layer.weight().multiply_back_host(&slope)?;
            if let Some(before) = kept.pop() {
                elementwise::silu_backward(&before, &mut slope);
            }
        }
        Ok(slope)
    }
}

struct Alone {
    pass: Pass,
    keeps: bool,
}

impl Recorded for Alone {}

impl CustomOp1 for Alone {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = self.pass.forward(numbers(storage, layout)?, |_| Ok(()), self.keeps);
        let shape = (layout.dims()[0], self.pass.mlp.outputs());
        Ok((CpuStorage::F32(y.map_err(out)?), shape.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let slope = host::saved(grad, |grad| self.pass.back(grad)).and_then(|slope| slope).map_err(out)?;
        let back = self.pass.mlp.layers[0].weight().multiply_back_host(&slope).map_err(out)?;
        Tensor::from_vec(back, x.shape(), x.device()).map(Some)
    }
}

struct Edges {
    pass: Pass,
    ends: [Incidence; 2],
    /// Which of the three arguments require a gradient.
    wants: [bool; 3],
}

impl Recorded for Edges {}

impl CustomOp3 for Edges {
    fn name(&self) -> &'static str {
        "edge-mlp"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
        to: &CpuStorage,
        to_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = self.pass.mlp.layers[0].weight().outputs();
        let nodes = [(from, from_layout), (to, to_layout)];
        for ((_, layout), ends) in nodes.iter().zip(&self.ends) {
            if layout.dims() != [ends.nodes(), width] || x_layout.dims()[0] != ends.edges() {
                candle_core::bail!(
                    "an edge MLP of {} nodes, {} edges and width {width} got nodes of shape {:?} and edges of shape {:?}",
                    ends.nodes(),
                    ends.edges(),
                    layout.dims(),
                    x_layout.dims()
                );
            }
        }
        let [from, to] = nodes.map(|(storage, layout)| numbers(storage, layout));
        let nodes = [from?, to?];
        let join = |y: &mut [f32]| {
            for (nodes, ends) in nodes.iter().zip(&self.ends) {
                segments::add_gathered(nodes, width, ends.index(), y);
            }
            Ok(())
        };
        let keeps = self.wants.contains(&true);
        let y = self.pass.forward(numbers(x, x_layout)?, join, keeps).map_err(out)?;
        Ok((CpuStorage::F32(y), (x_layout.dims()[0], self.pass.mlp.outputs()).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let slope = host::saved(grad, |grad| self.pass.back(grad)).and_then(|slope| slope).map_err(out)?;
        let first = self.pass.mlp.layers[0].weight();
        let [wants_x, wants_from, wants_to] = self.wants;
        let to_x = match wants_x {
            true => {
                let back = first.multiply_back_host(&slope).map_err(out)?;
                Some(Tensor::from_vec(back, x.shape(), x.device())?)
            }
            false => None,
        };
        let slope = Tensor::from_vec(slope, (x.dim(0)?, first.outputs()), x.device())?;
        let nodes = |wanted: bool, ends: &Incidence| match wanted {
            true => ends.sum(&slope).map(Some).map_err(out),
            false => Ok(None),
        };
        Ok((to_x, nodes(wants_from, &self.ends[0])?, nodes(wants_to, &self.ends[1])?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::generate::Rng;
    use crate::runtime::Runtime;
    use crate::weights::Weights;

    fn noise(rows: usize, width: usize, seed: u64) -> Tensor {
        let mut random = Rng::new(seed, 0);
        let values = (0..rows * width).map(|_| (2.0 * random.uniform() - 1.0) as f32).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    fn mlp(depth: usize, activation: Activation) -> Mlp {
        let w = Weights::seeded(3, Runtime::cpu());
        let widths = [5, 33, 40, 7];
        let layers = (0..depth).map(|i| w.linear(&i.to_string(), widths[i], widths[i + 1]).unwrap());
        Mlp::new(layers.collect(), activation).unwrap()
    }

    /// The same with the operations of candle.
    fn plain(mlp: &Mlp, first: Tensor) -> Tensor {
        let mut x = first;
        for layer in &mlp.layers[1..] {
            let weight = layer.weight().tensor().unwrap().t().unwrap();
            x = mlp.activation.forward(&x).unwrap().matmul(&weight).unwrap();
            x = x.broadcast_add(layer.bias().unwrap()).unwrap();
        }
        x
    }

    fn plain_first(mlp: &Mlp, x: &Tensor) -> Tensor {
        let weight = mlp.layers[0].weight().tensor().unwrap().t().unwrap();
        x.matmul(&weight).unwrap().broadcast_add(mlp.layers[0].bias().unwrap()).unwrap()
    }

    #[test]
    fn forward_and_gradient_agree_with_candle() {
        for (depth, activation) in
            [(1, Activation::Silu), (2, Activation::Silu), (3, Activation::Silu), (3, Activation::GeluTanh)]
        {
            let mlp = mlp(depth, activation);
            let x = Var::from_tensor(&noise(37, 5, 1)).unwrap();
            let wanted = plain(&mlp, plain_first(&mlp, x.as_tensor()));
            let tracked = mlp.forward(x.as_tensor()).unwrap();
            assert!(difference(&tracked, &wanted) < 1e-5);
            assert!(difference(&mlp.forward(&x.as_tensor().detach()).unwrap(), &wanted) < 1e-5);
            let slope = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, plain) = (slope(&tracked), slope(&wanted));
            assert!(difference(ours.get(&x).unwrap(), plain.get(&x).unwrap()) < 1e-4, "depth {depth}");
        }
    }

    #[test]
    fn forward_joined_agrees_with_an_mlp_over_gathered_features() {
        let mlp = mlp(3, Activation::Silu);
        let ends = |seed: u32| (0..50).map(|e| (e * e + seed * e) % 9).collect::<Vec<u32>>();
        let [from, to] = [1, 3].map(|seed| Incidence::new(ends(seed), 9, &Device::Cpu).unwrap());
        let vars = [noise(50, 5, 1), noise(9, 33, 2), noise(9, 33, 3)].map(|x| Var::from_tensor(&x).unwrap());
        let [x, a, b] = vars.each_ref().map(Var::as_tensor);
        let gathered = |ends: &Incidence, nodes: &Tensor| {
            let index = Tensor::new(ends.index(), &Device::Cpu).unwrap();
            nodes.index_select(&index, 0).unwrap()
        };
        let first = (plain_first(&mlp, x) + gathered(&from, a)).unwrap();
        let wanted = plain(&mlp, (first + gathered(&to, b)).unwrap());
        let ours = mlp.forward_joined(x, [(a, &from), (b, &to)]).unwrap();
        assert!(difference(&ours, &wanted) < 1e-5);
        let slopes = |y: &Tensor| {
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            vars.each_ref().map(|var| grads.get(var).unwrap().clone())
        };
        for (ours, plain) in slopes(&ours).iter().zip(&slopes(&wanted)) {
            assert!(difference(ours, plain) < 1e-4);
        }
        assert!(mlp.forward_joined(x, [(b, &from), (&noise(8, 33, 1), &to)]).is_err());
    }
}
