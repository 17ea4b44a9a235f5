//! A tape of operations with CPU kernels.
//!
//! While a [`Recording`] lives, the output of such an operation is a leaf for the tensor library, and the tape keeps what
//! its backward pass needs. That pass runs the tape from its end, and writes gradients into buffers of its own: the
//! library would allocate zeros for each and add to them. What lies between two recorded operations, such as a sum of
//! tensors, goes through the graph of the library; views of a leaf, found by their storage, need none.

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
        let outer = TAPE.replace(Some(Tape::default()));
        Self { outer, _thread: std::marker::PhantomData }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // The tape is dropped outside the borrow: its tensors may be large.
        drop(TAPE.replace(self.outer.take()));
    }
}

/// Recorded operations in their order.
#[derive(Default)]
struct Tape {
    nodes: Vec<Node>,
    /// The place in `nodes` of the operation that a leaf is the output of.
    ids: HashMap<TensorId, usize>,
    /// The same, by the address of the leaf's elements.
    addresses: HashMap<usize, usize>,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Tape").field("operations", &self.nodes.len()).finish()
    }
}

struct Node {
    operation: Operation,
    inputs: Vec<Tensor>,
    output: Tensor,
    gradient: Slot,
}

enum Operation {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
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
    C: CustomOp1 + Send + Sync + 'static,
{
    if !records(&[x]) {
        return Ok(x.apply_op1(operation)?);
    }
    let (storage, shape) = {
        let (storage, layout) = x.storage_and_layout();
        operation.cpu_fwd(of_cpu(&storage)?, layout)?
    };
    Ok(record(Operation::One(Box::new(operation)), &[x], storage, shape))
}

/// Applies `operation` to `x` and `y`.
pub(crate) fn apply2<C>(x: &Tensor, y: &Tensor, operation: C) -> Result<Tensor>
where
    C: CustomOp2 + Send + Sync + 'static,
{
    if !records(&[x, y]) {
        return Ok(x.apply_op2(y, operation)?);
    }
    let (storage, shape) = {
        let ((a, a_layout), (b, b_layout)) = (x.storage_and_layout(), y.storage_and_layout());
        operation.cpu_fwd(of_cpu(&a)?, a_layout, of_cpu(&b)?, b_layout)?
    };
    Ok(record(Operation::Two(Box::new(operation)), &[x, y], storage, shape))
}

/// Applies `operation` to `x`, `y` and `z`.
pub(crate) fn apply3<C>(x: &Tensor, y: &Tensor, z: &Tensor, operation: C) -> Result<Tensor>
where
    C: CustomOp3 + Send + Sync + 'static,
{
    if !records(&[x, y, z]) {
        return Ok(x.apply_op3(y, z, operation)?);
    }
    let (storage, shape) = {
        let ((a, a_layout), (b, b_layout)) = (x.storage_and_layout(), y.storage_and_layout());
        let (c, c_layout) = z.storage_and_layout();
        operation.cpu_fwd(of_cpu(&a)?, a_layout, of_cpu(&b)?, b_layout, of_cpu(&c)?, c_layout)?
    };
    Ok(record(Operation::Three(Box::new(operation)), &[x, y, z], storage, shape))
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

/// The leaf that holds the output of `operation`.
fn record(operation: Operation, inputs: &[&Tensor], storage: CpuStorage, shape: Shape) -> Tensor {
    let output = Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true);
    let inputs = inputs.iter().map(|x| (*x).clone()).collect();
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            let place = tape.nodes.len();
            tape.ids.insert(output.id(), place);
            if let Some(address) = address(&output) {
                tape.addresses.insert(address, place);
            }
            tape.nodes.push(Node { operation, inputs, output: output.clone(), gradient: Slot::None });
        }
    });
    output
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
        let is_whole = x.is_contiguous() && x.elem_count() == self.nodes[place].output.elem_count();
        Some((place, is_whole))
    }

    /// Removes the last operation.
    fn pop(&mut self) -> Option<Node> {
        let node = self.nodes.pop()?;
        self.ids.remove(&node.output.id());
        if let Some(address) = address(&node.output) {
            self.addresses.remove(&address);
        }
        Some(node)
    }
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
    let found = TAPE.with_borrow_mut(|tape| {
        let node = tape.as_mut().and_then(|tape| match tape.find(x) {
            Some((place, true)) => tape.nodes.get_mut(place),
            _ => None,
        })?;
        Some((node.output.id(), std::mem::replace(&mut node.gradient, Slot::None)))
    });
    let Some((leaf, mut slot)) = found else { return Ok(false) };
    let (values, accumulate) = slot.buffer(x.elem_count())?;
    write(values, accumulate);
    TAPE.with_borrow_mut(|tape| {
        let node = tape.as_mut().and_then(|tape| tape.nodes.get_mut(*tape.ids.get(&leaf)?));
        if let Some(node) = node {
            node.gradient = slot;
        }
    });
    Ok(true)
}

/// Adds `gradient` to that of `x`, an input of an operation.
fn give(x: &Tensor, gradient: &Tensor) -> Result<()> {
    let is_leaf = TAPE.with_borrow_mut(|tape| -> Result<bool> {
        let Some(tape) = tape else { return Ok(false) };
        let Some((place, is_whole)) = tape.find(x) else { return Ok(false) };
        let node = &mut tape.nodes[place];
        if is_whole {
            return node.gradient.add(gradient).map(|()| true);
        }
        let (values, _) = node.gradient.buffer(node.output.elem_count())?;
        host::saved(gradient, |gradient| add_to_view(values, x.layout(), gradient))?;
        Ok(true)
    })?;
    if is_leaf || open(|gradients| gradients.add_one(x.id(), gradient))? || x.is_variable() || !x.track_op() {
        return Ok(());
    }
    distribute(&x.apply_op1(Seed(gradient.clone()))?.backward()?)
}

/// Adds the gradients in `store`, which the tensor library computed, to those of the leaves and of the variables.
fn distribute(store: &GradStore) -> Result<()> {
    for id in store.get_ids() {
        let Some(gradient) = store.get_id(*id) else { continue };
        let is_leaf = TAPE.with_borrow_mut(|tape| {
            let node = tape.as_mut().and_then(|tape| tape.nodes.get_mut(*tape.ids.get(id)?));
            node.map(|node| node.gradient.add(&gradient.detach())).transpose()
        })?;
        if is_leaf.is_none() {
            open(|gradients| gradients.add_one(*id, gradient))?;
        }
    }
    Ok(())
}

/// Runs the tape of this thread from its end, from the gradients of what `loss`, a scalar, was computed from.
pub(super) fn run(loss: &Tensor) -> Result<()> {
    match TAPE.with_borrow(|tape| tape.as_ref().is_some_and(|tape| tape.find(loss).is_some())) {
        true => give(loss, &loss.ones_like()?)?,
        false => distribute(&loss.backward()?)?,
    }
    while let Some(node) = TAPE.with_borrow_mut(|tape| tape.as_mut().and_then(Tape::pop)) {
        let Node { operation, inputs, output, gradient } = node;
        let Some(gradient) = gradient.take(output.shape())? else { continue };
        let made = operation.backward(&inputs, &output, &gradient)?;
        drop((gradient, output));
        for (x, made) in inputs.iter().zip(made) {
            if let Some(made) = made {
                give(x, &made)?;
            }
        }
    }
    Ok(())
}

impl Operation {
    /// The gradients of the inputs that were not delivered.
    fn backward(&self, inputs: &[Tensor], y: &Tensor, gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        Ok(match (self, inputs) {
            (Self::One(operation), [a]) => [operation.bwd(a, y, gradient)?, None, None],
            (Self::Two(operation), [a, b]) => {
                let (to_a, to_b) = operation.bwd(a, b, y, gradient)?;
                [to_a, to_b, None]
            }
            (Self::Three(operation), [a, b, c]) => operation.bwd(a, b, c, y, gradient)?.into(),
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
