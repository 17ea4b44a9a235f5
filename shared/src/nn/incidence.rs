//! Gather and segment sum between the nodes and edges of a graph.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Shape, Tensor};

use super::back::{self, numbers, out};
use super::host;
use crate::grad::Recorded;
use crate::kernels::{memory, segments};
use crate::runtime::kernels_take;
use crate::{Error, ErrorKind, Result, grad};

/// The node at one end of each edge of a graph (one row of PyTorch Geometric's `edge_index`). Cheap to clone.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fauna_shared::nn::Incidence;
/// let senders = Incidence::new(vec![0, 0, 2], 3, &Device::Cpu)?;
/// let edges = Tensor::new(&[[1f32], [2.0], [4.0]], &Device::Cpu)?;
/// assert_eq!(senders.sum(&edges)?.to_vec2::<f32>()?, [[3.0], [0.0], [4.0]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Incidence(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    index: Vec<u32>,
    /// The edges, sorted by node.
    order: Vec<u32>,
    /// Start of the edges of each node in `order`, and the end of the last ones.
    starts: Vec<u32>,
    /// `index` as a tensor on the device.
    tensor: Tensor,
}

impl Incidence {
    /// Creates an incidence from `index`, `(edges)`: `index[e]` is the node of edge `e`, below `nodes`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if an index is not below `nodes`.
    pub fn new(index: Vec<u32>, nodes: usize, device: &Device) -> Result<Self> {
        if let Some(wrong) = index.iter().find(|i| **i as usize >= nodes) {
            return Err(Error::input(format!(
                "an edge has the node {wrong}, expected an index below {nodes}"
            )));
        }
        let mut starts = vec![0u32; nodes + 1];
        index.iter().for_each(|i| starts[*i as usize + 1] += 1);
        for i in 0..nodes {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut order = vec![0u32; index.len()];
        for (e, i) in index.iter().enumerate() {
            let place = &mut next[*i as usize];
            order[*place as usize] = e as u32;
            *place += 1;
        }
        let tensor = Tensor::from_slice(&index, index.len(), device)?;
        Ok(Self(Arc::new(Ends { index, order, starts, tensor })))
    }

    /// Returns the number of edges.
    pub fn edges(&self) -> usize {
        self.0.index.len()
    }

    /// Returns the number of nodes.
    pub fn nodes(&self) -> usize {
        self.0.starts.len() - 1
    }

    /// Returns the node of each edge, `(edges)`.
    pub fn index(&self) -> &[u32] {
        &self.0.index
    }

    /// Gathers the features of the node of each edge: `(nodes, width)` to `(edges, width)`.
    pub fn gather(&self, nodes: &Tensor) -> Result<Tensor> {
        self.expect(nodes, self.nodes())?;
        if host::serves(nodes) || back::serves(nodes) {
            return grad::apply1(&nodes.contiguous()?, Gather(self.clone()));
        }
        Ok(nodes.index_select(&self.0.tensor, 0)?)
    }

    /// Sums the features of the edges of each node: `(edges, width)` to `(nodes, width)`.
    pub fn sum(&self, edges: &Tensor) -> Result<Tensor> {
        self.expect(edges, self.edges())?;
        if host::serves(edges) || back::serves(edges) {
            return grad::apply1(&edges.contiguous()?, Sum(self.clone()));
        }
        let nodes = Tensor::zeros((self.nodes(), edges.dim(1)?), edges.dtype(), edges.device())?;
        Ok(nodes.index_add(&self.0.tensor, edges, 0)?)
    }

    /// [`sum`](Self::sum) of `edges`, `(edges, width)`, each multiplied by `scale`, `(edges, 1)`. Returns `(nodes,
    /// width)`.
    pub fn sum_scaled(&self, edges: &Tensor, scale: &Tensor) -> Result<Tensor> {
        self.expect(edges, self.edges())?;
        self.expect(scale, self.edges())?;
        if kernels_take(edges) && kernels_take(scale) {
            return grad::apply2(&edges.contiguous()?, &scale.contiguous()?, ScaledSum(self.clone()));
        }
        self.sum(&edges.broadcast_mul(scale)?)
    }

    fn expect(&self, x: &Tensor, rows: usize) -> Result<()> {
        match x.dims() {
            [found, _] if *found == rows => Ok(()),
            dims => Err(Error::new(
                ErrorKind::Compute,
                format!(
                    "expected {rows} rows for {} nodes and {} edges, found {dims:?}",
                    self.nodes(),
                    self.edges()
                ),
            )),
        }
    }

    fn summed(&self, x: &[f32], width: usize, scale: Option<&[f32]>) -> Vec<f32> {
        let mut sums = memory::zeros(self.nodes() * width);
        segments::sums(x, width, scale, &self.0.order, &self.0.starts, &mut sums);
        sums
    }
}

struct Gather(Incidence);

impl Recorded for Gather {}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (nodes, width) = (numbers(storage, layout)?, layout.dims()[1]);
        let mut edges = memory::zeros(self.0.edges() * width);
        segments::add_gathered(nodes, width, self.0.index(), &mut edges);
        Ok((CpuStorage::F32(edges), (self.0.edges(), width).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.0.sum(grad).map(Some).map_err(out)
    }
}

struct Sum(Incidence);

impl Recorded for Sum {}

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        "segment-sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = layout.dims()[1];
        let sums = self.0.summed(numbers(storage, layout)?, width, None);
        Ok((CpuStorage::F32(sums), (self.0.nodes(), width).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.0.gather(grad).map(Some).map_err(out)
    }
}

struct ScaledSum(Incidence);

impl Recorded for ScaledSum {}

impl CustomOp2 for ScaledSum {
    fn name(&self) -> &'static str {
        "scaled-segment-sum"
    }

    fn cpu_fwd(
        &self,
        edges: &CpuStorage,
        layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = layout.dims()[1];
        let scale = numbers(scale, scale_layout)?;
        let sums = self.0.summed(numbers(edges, layout)?, width, Some(scale));
        Ok((CpuStorage::F32(sums), (self.0.nodes(), width).into()))
    }

    fn bwd(
        &self,
        edges: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let width = edges.dim(1)?;
        let (mut to_edges, mut to_scale) =
            (memory::zeros(edges.elem_count()), memory::zeros(scale.elem_count()));
        let mut work = |grad: &[f32], x: &[f32], scale: &[f32]| {
            segments::sums_backward(grad, width, self.0.index(), (x, scale), &mut to_edges, &mut to_scale);
        };
        host::saved(grad, |grad| host::saved(edges, |x| host::saved(scale, |scale| work(grad, x, scale))))
            .and_then(|done| done)
            .and_then(|done| done)
            .map_err(out)?;
        let device = edges.device();
        Ok((
            Some(Tensor::from_vec(to_edges, edges.shape(), device)?),
            Some(Tensor::from_vec(to_scale, scale.shape(), device)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::generate::Rng;

    fn noise(rows: usize, width: usize, seed: u64) -> Tensor {
        let mut random = Rng::new(seed, 0);
        let values = (0..rows * width).map(|_| (2.0 * random.uniform() - 1.0) as f32).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    /// A graph with an isolated node, and a node with many edges.
    fn ends() -> Incidence {
        let index = (0..500u32).map(|e| [0, 1, 1, 1, 3, 4, 6][(e * e % 7) as usize]).collect();
        Incidence::new(index, 7, &Device::Cpu).unwrap()
    }

    #[test]
    fn gather_and_sums_agree_with_candle_and_so_do_their_gradients() {
        let ends = ends();
        for width in [1, 5, 64] {
            let (nodes, edges) = (noise(7, width, 1), noise(500, width, 2));
            let (scale, pull) = (noise(500, 1, 3), noise(7, width, 4));
            let vars = [&nodes, &edges, &scale].map(|x| Var::from_tensor(x).unwrap());
            let [n, e, s] = vars.each_ref().map(Var::as_tensor);
            let index = &ends.0.tensor;
            let zero = nodes.zeros_like().unwrap();
            let ours = [ends.gather(n).unwrap(), ends.sum(e).unwrap(), ends.sum_scaled(e, s).unwrap()];
            let plain = [
                n.index_select(index, 0).unwrap(),
                zero.index_add(index, e, 0).unwrap(),
                zero.index_add(index, &e.broadcast_mul(s).unwrap(), 0).unwrap(),
            ];
            for (ours, plain) in ours.iter().zip(&plain) {
                assert!(difference(ours, plain) < 1e-5);
            }
            let slopes = |[gathered, sum, scaled]: [Tensor; 3]| {
                let total = (gathered * noise(500, width, 5)).unwrap().sum_all().unwrap();
                let total = (total + (sum * &pull).unwrap().sum_all().unwrap()).unwrap();
                let total = (total + (scaled * &pull).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
                let grads = total.backward().unwrap();
                vars.each_ref().map(|var| grads.get(var).unwrap().clone())
            };
            for (ours, plain) in slopes(ours).iter().zip(&slopes(plain)) {
                assert!(difference(ours, plain) < 1e-4, "width {width}");
            }
        }
    }

    #[test]
    fn invalid_nodes_and_rows_of_another_graph_are_rejected() {
        assert!(Incidence::new(vec![0, 3], 3, &Device::Cpu).is_err());
        let ends = ends();
        assert!(ends.gather(&noise(6, 2, 1)).is_err() && ends.sum(&noise(499, 2, 1)).is_err());
        assert!(ends.sum_scaled(&noise(500, 2, 1), &noise(1, 1, 1)).is_err());
        let empty = Incidence::new(Vec::new(), 2, &Device::Cpu).unwrap();
        let none = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(empty.sum(&none).unwrap().to_vec2::<f32>().unwrap(), [[0.0; 3]; 2]);
    }
}
