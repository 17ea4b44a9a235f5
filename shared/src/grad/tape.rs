//! A tape of operations with CPU kernels.
//!
//! While a [`Recording`] lives, the output of such an operation is a leaf for the tensor library, and the tape keeps what
//! its backward pass needs. That pass runs the tape from its end, and writes gradients into buffers of its own: the
//! library would allocate zeros for each and add to them. What lies between two recorded operations, such as a product of
//! tensors, goes through the graph of the library; views of a leaf, found by their storage, need none.
//!
//! With [recomputation](Recording::recomputing), the outputs between two residual sums are dropped, and computed again
//! from the first of both in the backward pass (Chen et al. 2016, arXiv 1604.06174, section 4).

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Storage, Tensor, TensorId,
};

use super::open;
use crate::kernels::{elementwise, memory};
use crate::nn::host;
use crate::runtime::kernels_take;
use crate::{Error, Result};

thread_local! {
    /// What this thread records.
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Records operations on this thread for the next backward pass, while it lives.
///
/// ```
/// use candle_core::{Device, Var};
/// use fauna_shared::grad::{Gradients, Recording};
/// use fauna_shared::nn::softmax;
/// let x = Var::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let mut gradients = Gradients::of([&x]);
/// let recording = Recording::new();
/// gradients.backward(&softmax(&x)?.sum_all()?)?;
/// drop(recording);
/// // Probabilities always sum to 1.
/// assert_eq!(gradients.get(&x)?.unwrap().to_vec2::<f32>()?, [[0.0, 0.0]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug)]
pub struct Recording {
    outer: Option<Tape>,
    /// It belongs to its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Recording {
    /// Starts an empty tape. One that this thread records already waits.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it changes what operations do")]
    pub fn new() -> Self {
        Self::of(Tape::default())
    }

    /// [`new`](Self::new) with recomputation of activations: of the outputs of operations, those of residual sums alone are
    /// kept. The gradients are the same to the bit; the backward pass takes the time of a forward pass longer.
    #[must_use]
    pub fn recomputing() -> Self {
        Self::of(Tape { recomputes: true, ..Tape::default() })
    }

    fn of(tape: Tape) -> Self {
        let outer = TAPE.replace(Some(tape));
        Self { outer, _thread: std::marker::PhantomData }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // The tape is dropped outside the borrow: its tensors may be large.
        drop(TAPE.replace(self.outer.take()));
    }
}

/// What a tape must know of an operation.
pub(crate) trait Recorded {
    /// Whether the backward pass reads the output.
    const READS_OUTPUT: bool = false;
    /// Whether the output is kept where others are computed again.
    const IS_KEPT: bool = false;
}

/// Recorded operations in their order.
#[derive(Default)]
struct Tape {
    nodes: Vec<Node>,
    /// The place in `nodes` of the operation that a leaf is the output of.
    ids: HashMap<TensorId, usize>,
    /// The same, by the address of the elements of a leaf that the tape holds.
    addresses: HashMap<usize, usize>,
    recomputes: bool,
    /// The place after the last operation whose output is kept.
    segment: usize,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Tape").field("operations", &self.nodes.len()).finish()
    }
}

struct Node {
    operation: Operation,
    inputs: Vec<Input>,
    /// The leaf; `None` if it was dropped, to be computed again.
    output: Option<Tensor>,
    shape: Shape,
    reads_output: bool,
    is_kept: bool,
    gradient: Slot,
}

/// An input of an operation.
#[derive(Clone)]
enum Input {
    /// All elements of a leaf in their order, in a shape of its own.
    Leaf { place: usize, shape: Shape },
    /// A view of a leaf.
    View { place: usize, tensor: Tensor },
    /// A variable, what has no gradient, or what other operations computed.
    Other(Tensor),
}

enum Operation {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
    /// Concatenation along an axis.
    Concat(usize),
}

/// The gradient of a leaf so far.
enum Slot {
    None,
    /// Row-major; nobody else reads it.
    Own(Vec<f32>),
    /// Of any layout; others may read it.
    Shared(Tensor),
}

/// Applies `operation` to `x`.
pub(crate) fn apply1<C>(x: &Tensor, operation: C) -> Result<Tensor>
where
    C: CustomOp1 + Recorded + Send + Sync + 'static,
{
    match records(&[x]) {
        true => record::<C>(Operation::One(Box::new(operation)), &[x]),
        false => Ok(x.apply_op1(operation)?),
    }
}

/// Applies `operation` to `x` and `y`.
pub(crate) fn apply2<C>(x: &Tensor, y: &Tensor, operation: C) -> Result<Tensor>
where
    C: CustomOp2 + Recorded + Send + Sync + 'static,
{
    match records(&[x, y]) {
        true => record::<C>(Operation::Two(Box::new(operation)), &[x, y]),
        false => Ok(x.apply_op2(y, operation)?),
    }
}

/// Applies `operation` to `x`, `y` and `z`.
pub(crate) fn apply3<C>(x: &Tensor, y: &Tensor, z: &Tensor, operation: C) -> Result<Tensor>
where
    C: CustomOp3 + Recorded + Send + Sync + 'static,
{
    match records(&[x, y, z]) {
        true => record::<C>(Operation::Three(Box::new(operation)), &[x, y, z]),
        false => Ok(x.apply_op3(y, z, operation)?),
    }
}

/// Concatenates `parts` along `axis`.
pub(crate) fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let fits = |part: &Tensor| kernels_take(part) && part.rank() > axis;
    match parts.iter().all(|part| fits(part)) && records(parts) {
        true => record::<Concat>(Operation::Concat(axis), parts),
        false => Ok(Tensor::cat(parts, axis)?),
    }
}

struct Concat;

impl Recorded for Concat {}

/// The elements of `parts` along `axis`, row-major, and their shape.
fn joined(parts: &[&Tensor], axis: usize) -> Result<(Vec<f32>, Shape)> {
    let [first, ..] = parts else {
        return Err(Error::new(crate::ErrorKind::Compute, "nothing to concatenate"));
    };
    let mut shape = first.dims().to_vec();
    shape[axis] = parts.iter().map(|part| part.dims()[axis]).sum();
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    let mut values = memory::zeros(shape.iter().product());
    let (row, mut start) = (shape[axis] * inner, 0);
    for part in parts {
        let length = part.dims()[axis] * inner;
        if part.elem_count() != outer * length {
            let message = format!("{:?} cannot be concatenated along axis {axis} to {shape:?}", part.dims());
            return Err(Error::new(crate::ErrorKind::Compute, message));
        }
        host::saved(part, |part| {
            let rows = values.chunks_exact_mut(row.max(1)).zip(part.chunks_exact(length.max(1)));
            rows.for_each(|(to, from)| to[start..start + length].copy_from_slice(from));
        })?;
        start += length;
    }
    Ok((values, shape.into()))
}

fn of_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::new(crate::ErrorKind::Compute, "a CPU kernel was given a tensor of another device")),
    }
}

/// Whether an operation on `xs` is recorded.
fn records(xs: &[&Tensor]) -> bool {
    TAPE.with_borrow(Option::is_some)
        && xs.iter().all(|x| x.device().is_cpu())
        && xs.iter().any(|x| x.track_op())
}

/// Runs `operation` on `xs`, and returns the leaf that holds its output.
fn record<C: Recorded>(operation: Operation, xs: &[&Tensor]) -> Result<Tensor> {
    let output = operation.forward(xs)?;
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            let inputs: Vec<Input> = xs.iter().map(|x| tape.input(x)).collect();
            tape.push(Node {
                operation,
                inputs,
                shape: output.shape().clone(),
                output: Some(output.clone()),
                reads_output: C::READS_OUTPUT,
                is_kept: C::IS_KEPT,
                gradient: Slot::None,
            });
            if C::IS_KEPT {
                tape.end_segment();
            }
        }
    });
    Ok(output)
}

/// The address of the storage of `x`, float32 on the CPU and not empty.
fn address(x: &Tensor) -> Option<usize> {
    let (storage, _) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) if !values.is_empty() => Some(values.as_ptr().addr()),
        _ => None,
    }
}

impl Tape {
    /// The place of the leaf that `x` is, or is a view of, and whether it is the leaf with all elements in their order.
    fn find(&self, x: &Tensor) -> Option<(usize, bool)> {
        if let Some(place) = self.ids.get(&x.id()) {
            return Some((*place, true));
        }
        if !x.track_op() || x.is_variable() || x.dtype() != DType::F32 {
            return None;
        }
        let place = *self.addresses.get(&address(x)?)?;
        let is_whole = x.is_contiguous() && x.elem_count() == self.nodes[place].shape.elem_count();
        Some((place, is_whole))
    }

    /// `x` as an input.
    fn input(&self, x: &Tensor) -> Input {
        match self.find(x) {
            Some((place, true)) => Input::Leaf { place, shape: x.shape().clone() },
            Some((place, false)) => Input::View { place, tensor: x.clone() },
            None => Input::Other(x.clone()),
        }
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.register(self.nodes.len() - 1);
    }

    /// Lets the leaf of the operation at `place` be found.
    fn register(&mut self, place: usize) {
        if let Some(output) = &self.nodes[place].output {
            self.ids.insert(output.id(), place);
            if let Some(address) = address(output) {
                self.addresses.insert(address, place);
            }
        }
    }

    /// Ends a segment with the last operation; with recomputation, the outputs of those before it are dropped. Their ids
    /// are kept, since the graph of the tensor library may lead to them.
    fn end_segment(&mut self) {
        let start = std::mem::replace(&mut self.segment, self.nodes.len());
        if self.recomputes {
            for node in self.nodes[start..].iter_mut().filter(|node| !node.is_kept) {
                if let Some(address) = node.output.take().as_ref().and_then(address) {
                    self.addresses.remove(&address);
                }
            }
        }
    }

    /// The values of an input.
    fn value(&mut self, input: &Input) -> Result<Tensor> {
        match input {
            Input::Leaf { place, shape } => Ok(self.output(*place)?.reshape(shape)?),
            Input::View { tensor, .. } | Input::Other(tensor) => Ok(tensor.clone()),
        }
    }

    /// The output of the operation at `place`, which is computed again if it was dropped.
    fn output(&mut self, place: usize) -> Result<Tensor> {
        if let Some(output) = &self.nodes[place].output {
            return Ok(output.clone());
        }
        let inputs = self.nodes[place].inputs.clone();
        let values = inputs.iter().map(|input| self.value(input)).collect::<Result<Vec<_>>>()?;
        let output = self.nodes[place].operation.forward(&values.iter().collect::<Vec<_>>())?;
        self.nodes[place].output = Some(output.clone());
        self.register(place);
        Ok(output)
    }

    /// Removes the last operation. Returns what its backward pass needs; `None` if no gradient led to it.
    fn pop(&mut self) -> Result<Option<Step>> {
        let Some(last) = self.nodes.last_mut() else { return Ok(None) };
        let gradient = std::mem::replace(&mut last.gradient, Slot::None).take(&last.shape)?;
        let step = match gradient {
            None => None,
            Some(gradient) => {
                let place = self.nodes.len() - 1;
                let inputs = self.nodes[place].inputs.clone();
                let values = inputs.iter().map(|input| self.value(input)).collect::<Result<_>>()?;
                let output = self.nodes[place].reads_output.then(|| self.output(place)).transpose()?;
                Some((gradient, values, output))
            }
        };
        let Some(Node { operation, inputs, output, .. }) = self.nodes.pop() else { return Ok(None) };
        if let Some(output) = &output {
            self.ids.remove(&output.id());
            if let Some(address) = address(output) {
                self.addresses.remove(&address);
            }
        }
        Ok(step.map(|(gradient, values, y)| Step { operation, inputs, values, y, gradient }))
    }
}

/// The backward pass of one operation.
struct Step {
    operation: Operation,
    inputs: Vec<Input>,
    values: Vec<Tensor>,
    /// The output, if it is read.
    y: Option<Tensor>,
    gradient: Tensor,
}

impl Slot {
    /// Adds `gradient`, of the leaf's shape.
    fn add(&mut self, gradient: &Tensor) -> Result<()> {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::Shared(gradient.clone()),
            Self::Own(mut sum) => {
                host::saved(gradient, |gradient| elementwise::add_to(gradient, &mut sum))?;
                Self::Own(sum)
            }
            Self::Shared(before) => {
                let mut sum = memory::zeros(gradient.elem_count());
                host::saved(&before, |x| host::saved(gradient, |y| elementwise::add(x, y, &mut sum)))??;
                Self::Own(sum)
            }
        };
        Ok(())
    }

    /// The buffer of `length` elements, and whether it holds a sum.
    fn buffer(&mut self, length: usize) -> Result<(&mut Vec<f32>, bool)> {
        let (values, is_sum) = match std::mem::replace(self, Self::None) {
            Self::None => (memory::zeros(length), false),
            Self::Own(values) => (values, true),
            Self::Shared(tensor) => (host::saved(&tensor, memory::copy)?, true),
        };
        *self = Self::Own(values);
        match self {
            Self::Own(values) => Ok((values, is_sum)),
            _ => unreachable!("it was just set"),
        }
    }

    /// The gradient of a leaf of `shape`; `None` if nothing led to it.
    fn take(self, shape: &Shape) -> Result<Option<Tensor>> {
        Ok(match self {
            Self::None => None,
            Self::Own(values) => Some(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?),
            Self::Shared(tensor) => Some(tensor.reshape(shape)?.contiguous()?),
        })
    }
}

/// Adds `gradient`, row-major, to the elements of `to` that a view with `layout` shows.
fn add_to_view(to: &mut [f32], layout: &Layout, gradient: &[f32]) {
    let (dims, stride) = (layout.dims(), layout.stride());
    // Axes at the end that lie together are one run.
    let mut run = 1;
    let mut rest = dims.len();
    while rest > 0 && (stride[rest - 1] == run || dims[rest - 1] == 1) {
        rest -= 1;
        run *= dims[rest];
    }
    let mut index = vec![0; rest];
    for part in gradient.chunks_exact(run.max(1)) {
        let start: usize =
            layout.start_offset() + index.iter().zip(stride).map(|(i, s)| i * s).sum::<usize>();
        to[start..start + run].iter_mut().zip(part).for_each(|(to, new)| *to += new);
        for axis in (0..rest).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Lets `write` write the gradient of `x` into the buffer of the leaf that it is. Returns false, and calls nothing, if it is
/// none.
pub(super) fn deliver(x: &Tensor, write: impl FnOnce(&mut [f32], bool)) -> Result<bool> {
    // The slot is taken out, so that `write` may look at the tape.
    let found = TAPE.with_borrow_mut(|tape| match tape {
        Some(tape) => match tape.find(x) {
            Some((place, true)) => {
                Some((place, std::mem::replace(&mut tape.nodes[place].gradient, Slot::None)))
            }
            _ => None,
        },
        None => None,
    });
    let Some((place, mut slot)) = found else { return Ok(false) };
    let (values, accumulate) = slot.buffer(x.elem_count())?;
    write(values, accumulate);
    add_at(place, |node| {
        node.gradient = slot;
        Ok(())
    })?;
    Ok(true)
}

/// Adds to the gradient of the leaf at `place`.
fn add_at(place: usize, add: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    TAPE.with_borrow_mut(|tape| match tape.as_mut().and_then(|tape| tape.nodes.get_mut(place)) {
        Some(node) => add(node),
        None => {
            Err(Error::new(crate::ErrorKind::Compute, "a gradient of an operation that has passed it on"))
        }
    })
}

/// Adds `gradient` to that of `input`.
fn give(input: &Input, gradient: &Tensor) -> Result<()> {
    let x = match input {
        Input::Leaf { place, .. } => return add_at(*place, |node| node.gradient.add(gradient)),
        Input::View { place, tensor } => {
            return add_at(*place, |node| {
                let (values, _) = node.gradient.buffer(node.shape.elem_count())?;
                host::saved(gradient, |gradient| add_to_view(values, tensor.layout(), gradient))
            });
        }
        Input::Other(x) => x,
    };
    if open(|gradients| gradients.add_one(x.id(), gradient))? || x.is_variable() || !x.track_op() {
        return Ok(());
    }
    distribute(&x.apply_op1(Seed(gradient.clone()))?.backward()?)
}

/// Adds the gradients in `store`, which the tensor library computed, to those of the leaves and of the variables.
fn distribute(store: &GradStore) -> Result<()> {
    for id in store.get_ids() {
        let Some(gradient) = store.get_id(*id) else { continue };
        let place = TAPE.with_borrow(|tape| tape.as_ref().and_then(|tape| tape.ids.get(id).copied()));
        match place {
            Some(place) => add_at(place, |node| node.gradient.add(&gradient.detach()))?,
            None => drop(open(|gradients| gradients.add_one(*id, gradient))?),
        }
    }
    Ok(())
}

/// Runs the tape of this thread from its end, from the gradients of what `loss`, a scalar, was computed from.
pub(super) fn run(loss: &Tensor) -> Result<()> {
    let recorded = TAPE.with_borrow(|tape| tape.as_ref().and_then(|tape| tape.find(loss)));
    match recorded {
        Some((place, _)) => {
            let ones = loss.ones_like()?;
            add_at(place, |node| node.gradient.add(&ones))?;
        }
        None => distribute(&loss.backward()?)?,
    }
    let rest = || TAPE.with_borrow(|tape| tape.as_ref().is_some_and(|tape| !tape.nodes.is_empty()));
    while rest() {
        let step = TAPE.with_borrow_mut(|tape| tape.as_mut().map_or(Ok(None), Tape::pop))?;
        let Some(Step { operation, inputs, values, y, gradient }) = step else { continue };
        // An operation that does not read its output is given another tensor of the same shape.
        let made = operation.backward(&values, y.as_ref().unwrap_or(&gradient), &gradient)?;
        drop((gradient, values, y));
        for (input, made) in inputs.iter().zip(made) {
            if let Some(made) = made {
                give(input, &made)?;
            }
        }
    }
    Ok(())
}

impl Operation {
    /// A new leaf with the output for `xs`.
    fn forward(&self, xs: &[&Tensor]) -> Result<Tensor> {
        let (storage, shape) = match (self, xs) {
            (Self::One(operation), [x]) => {
                let (x, layout) = x.storage_and_layout();
                operation.cpu_fwd(of_cpu(&x)?, layout)?
            }
            (Self::Two(operation), [x, y]) => {
                let ((a, a_layout), (b, b_layout)) = (x.storage_and_layout(), y.storage_and_layout());
                operation.cpu_fwd(of_cpu(&a)?, a_layout, of_cpu(&b)?, b_layout)?
            }
            (Self::Three(operation), [x, y, z]) => {
                let ((a, a_layout), (b, b_layout)) = (x.storage_and_layout(), y.storage_and_layout());
                let (c, c_layout) = z.storage_and_layout();
                operation.cpu_fwd(of_cpu(&a)?, a_layout, of_cpu(&b)?, b_layout, of_cpu(&c)?, c_layout)?
            }
            (Self::Concat(axis), parts) => {
                let (values, shape) = joined(parts, *axis)?;
                (CpuStorage::F32(values), shape)
            }
            _ => unreachable!("an operation is recorded with its inputs"),
        };
        Ok(Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true))
    }

    /// The gradients of the inputs that were not delivered.
    fn backward(&self, inputs: &[Tensor], y: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(match (self, inputs) {
            (Self::One(operation), [a]) => vec![operation.bwd(a, y, gradient)?],
            (Self::Two(operation), [a, b]) => <[_; 2]>::from(operation.bwd(a, b, y, gradient)?).into(),
            (Self::Three(operation), [a, b, c]) => {
                <[_; 3]>::from(operation.bwd(a, b, c, y, gradient)?).into()
            }
            (Self::Concat(axis), parts) => {
                let mut start = 0;
                let mut of = |part: &Tensor| -> Result<Option<Tensor>> {
                    let length = part.dims()[*axis];
                    let piece = gradient.narrow(*axis, start, length)?;
                    start += length;
                    Ok(Some(piece))
                };
                parts.iter().map(&mut of).collect::<Result<_>>()?
            }
            _ => unreachable!("an operation is recorded with its inputs"),
        })
    }
}

/// Takes a tensor to a scalar whose gradient is that of the tensor.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};

    use super::*;
    use crate::grad::Gradients;
    use crate::nn::{Activation, add, softmax};

    fn noise(shape: impl Into<Shape>, seed: f32) -> Var {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The gradients of `variables` by `loss`: by the graph of the tensor library, by a tape, and by one that computes
    /// activations again.
    fn gradients(variables: &[&Var], loss: impl Fn() -> Result<Tensor>) -> [Vec<Vec<f32>>; 3] {
        [None, Some(false), Some(true)].map(|recomputes| {
            let _recording = recomputes.map(|recomputes| match recomputes {
                true => Recording::recomputing(),
                false => Recording::new(),
            });
            let mut gradients = Gradients::of(variables.iter().copied());
            gradients.backward(&loss().unwrap()).unwrap();
            let of = |variable: &&Var| {
                let gradient = gradients.get(variable).unwrap().unwrap();
                gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            variables.iter().map(of).collect()
        })
    }

    fn assert_alike([graph, tape, again]: &[Vec<Vec<f32>>; 3]) {
        assert_eq!(tape, again, "recomputation changes no bit");
        for (graph, tape) in graph.iter().zip(tape) {
            for (graph, tape) in graph.iter().zip(tape) {
                assert!((graph - tape).abs() < 1e-5 * graph.abs().max(1.0), "{graph} by the graph, {tape}");
            }
        }
    }

    #[test]
    fn views_of_recorded_outputs_have_the_gradients_of_the_graph() {
        let x = noise((2, 3, 8), 0.1);
        let seen = gradients(&[&x], || {
            let y = Activation::Silu.forward(&x)?;
            let half = y.narrow(D::Minus1, 2, 4)?.transpose(0, 1)?;
            let wide = y.narrow(1, 1, 1)?.broadcast_as((2, 5, 8))?;
            let all = crate::grad::concat(
                &[&y.reshape((6, 8))?, x.reshape((6, 8))?.as_ref(), &y.reshape((6, 8))?],
                1,
            )?;
            let sums = [Activation::GeluErf.forward(&half)?, softmax(&wide.contiguous()?)?, softmax(&all)?];
            let mut total = (y.sqr()?.sum_all()? * 0.5)?;
            for sum in sums {
                total = (total + sum.sqr()?.sum_all()?)?;
            }
            Ok(total)
        });
        assert_alike(&seen);
    }

    #[test]
    fn what_the_tensor_library_computes_between_recorded_operations_has_gradients() {
        let (x, scale) = (noise((4, 6), 0.3), noise(6, 0.7));
        let seen = gradients(&[&x, &scale], || {
            let mut y = x.as_tensor().clone();
            for _ in 0..3 {
                let scaled = Activation::Tanh.forward(&y)?.broadcast_mul(&scale)?;
                // Read twice, once through a view.
                let parts = (Activation::Silu.forward(&scaled)? + softmax(&scaled.t()?)?.t()?)?;
                y = add(&y, &parts.contiguous()?)?;
            }
            Ok(y.sqr()?.mean_all()?)
        });
        assert_alike(&seen);
    }

    #[test]
    fn a_loss_that_is_recorded_itself_starts_the_backward_pass() {
        let x = noise((1, 1), 0.4);
        let seen = gradients(&[&x], || Ok(Activation::Silu.forward(&x)?.reshape(())?));
        assert_alike(&seen);
        assert!(seen[0][0][0] != 0.0);
    }

    #[test]
    fn recomputation_holds_the_outputs_of_sums_alone() {
        let x = noise((4, 6), 0.9);
        let held = |recording: Recording| {
            let mut y = x.as_tensor().clone();
            for _ in 0..5 {
                y = add(&y, &Activation::Tanh.forward(&Activation::Silu.forward(&y).unwrap()).unwrap())
                    .unwrap();
            }
            let held = TAPE.with_borrow(|tape| {
                tape.as_ref().unwrap().nodes.iter().filter(|node| node.output.is_some()).count()
            });
            drop(recording);
            held
        };
        assert_eq!((held(Recording::new()), held(Recording::recomputing())), (15, 5));
    }

    #[test]
    fn a_tape_ends_with_its_recording() {
        let x = noise((2, 2), 0.2);
        let outer = Recording::new();
        let y = softmax(&x).unwrap();
        drop(Recording::new());
        let operations = || TAPE.with_borrow(|tape| tape.as_ref().map(|tape| tape.nodes.len()));
        assert_eq!(operations(), Some(1));
        drop(outer);
        assert_eq!(operations(), None);
        // Without a tape, the graph leads back.
        let z = softmax(&x).unwrap();
        assert!(z.track_op() && !z.is_variable() && y.is_variable());
    }
}
