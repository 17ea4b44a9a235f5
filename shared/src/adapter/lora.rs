//! The factors of one module, and merging them into its weight.

use candle_core::{DType, Device, Tensor};

use super::config::Selection;
use crate::checkpoint::{Bytes, StorageType, StoredTensor};
use crate::weights::widen;
use crate::{Error, ErrorKind, Result, transfer};

/// The kind of module that an update belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A linear layer, of weight (out, in), or (in, out) in the Conv1D of GPT-2.
    Linear,
    /// An embedding, of weight (count, hidden).
    Embedding,
    /// A convolution over one, two or three axes, of weight (out, in, kernel…).
    Conv,
}

/// The tensors of a module's update, as stored.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kind of module.
    pub kind: Kind,
    /// The factor A: (r, in), (r, count) or (r, in, kernel…).
    pub a: StoredTensor,
    /// The factor B: (out, r), (hidden, r) or (out, r, 1…).
    pub b: StoredTensor,
    /// The bias of the update (`lora_bias`): (out).
    pub bias: Option<StoredTensor>,
    /// The norms of DoRA: (out), (hidden) or (1, out, 1…).
    pub magnitude: Option<StoredTensor>,
}

/// The low-rank update of one module: `scaling · B · A`
/// ([LoRA, Hu et al. 2021](https://arxiv.org/abs/2106.09685)), and with DoRA the norms of the updated weights.
#[derive(Debug, Clone)]
pub struct LoraTensors {
    module: String,
    parts: Parts,
    rank: usize,
    scaling: f64,
}

impl LoraTensors {
    /// The update of `module` with the rank and scale that `selection` gives it.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] with the module if shapes do not fit each other or the rank, and
    /// [`ErrorKind::Unsupported`] for element types other than floats.
    pub fn new(selection: &Selection, module: &str, parts: Parts) -> Result<Self> {
        let rank = check(selection, module, &parts).map_err(|error| error.context(module))?;
        let scaling = selection.scaling(module)?;
        Ok(Self { module: module.to_owned(), parts, rank, scaling })
    }

    /// The path of the module.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The kind of module.
    pub fn kind(&self) -> Kind {
        self.parts.kind
    }

    /// The tensors as stored.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The factor of the update: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// The shape of the weight that the update belongs to: (out, in), (count, hidden) or (out, in, kernel…).
    pub fn weight_shape(&self) -> Vec<usize> {
        let (a, b) = (&self.parts.a.shape, &self.parts.b.shape);
        match self.parts.kind {
            Kind::Embedding => vec![a[1], b[0]],
            Kind::Linear | Kind::Conv => std::iter::once(b[0]).chain(a[1..].iter().copied()).collect(),
        }
    }

    /// The factor A in float32: (r, in), (r, count) or (r, in, kernel…).
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the module if a value is not finite.
    pub fn a(&self, device: &Device) -> Result<Tensor> {
        self.load("A", &self.parts.a, device)
    }

    /// The factor B in float32: (out, r), (hidden, r) or (out, r, 1…).
    ///
    /// # Errors
    /// As [`LoraTensors::a`].
    pub fn b(&self, device: &Device) -> Result<Tensor> {
        self.load("B", &self.parts.b, device)
    }

    /// The bias of the update in float32, not yet scaled: (out).
    ///
    /// # Errors
    /// As [`LoraTensors::a`].
    pub fn bias(&self, device: &Device) -> Result<Option<Tensor>> {
        self.parts.bias.as_ref().map(|bias| self.load("bias", bias, device)).transpose()
    }

    /// The norms of DoRA in float32: (out) or (hidden).
    ///
    /// # Errors
    /// As [`LoraTensors::a`].
    pub fn magnitude(&self, device: &Device) -> Result<Option<Tensor>> {
        let load = |norms| Ok(self.load("magnitude", norms, device)?.flatten_all()?);
        self.parts.magnitude.as_ref().map(load).transpose()
    }

    fn load(&self, part: &str, stored: &StoredTensor, device: &Device) -> Result<Tensor> {
        let values = widen(stored).map_err(|error| error.context(&self.module))?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let message = format!("{}: the factor {part} of the adapter contains {value}", self.module);
            return Err(Error::new(ErrorKind::Format, message)
                .hint("the training of the adapter has diverged, or its file is damaged"));
        }
        Ok(Tensor::from_vec(values, stored.shape.as_slice(), device)?)
    }

    /// The update `scaling · B · A` in float32, in the shape of [`LoraTensors::weight_shape`]. The norms of DoRA, which
    /// depend on the weight, have no part in it.
    ///
    /// ```
    /// use fauna_shared::adapter::{AdapterConfig, Kind, LoraTensors, Parts, Selection, stored};
    /// use candle_core::{Device, Tensor};
    /// let config = AdapterConfig { r: 1, lora_alpha: 2.0, ..AdapterConfig::default() };
    /// let a = stored(&Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?)?;
    /// let b = stored(&Tensor::new(&[[10f32], [20.0]], &Device::Cpu)?)?;
    /// let parts = Parts { kind: Kind::Linear, a, b, bias: None, magnitude: None };
    /// let update = LoraTensors::new(&Selection::new(&config)?, "q_proj", parts)?;
    /// assert_eq!(update.delta(&Device::Cpu)?.to_vec2::<f32>()?, [[20., 40., 60.], [40., 80., 120.]]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LoraTensors::a`].
    pub fn delta(&self, device: &Device) -> Result<Tensor> {
        let transposed = self.parts.kind == Kind::Embedding;
        Ok(self.matrix(1.0, transposed, device)?.reshape(self.weight_shape())?)
    }

    /// `scale · scaling · B · A` as a matrix (out, in · kernel), or transposed.
    fn matrix(&self, scale: f64, transposed: bool, device: &Device) -> Result<Tensor> {
        let a = self.a(device)?.flatten_from(1)?;
        let b = self.b(device)?.flatten_from(1)?;
        let product = if transposed { a.t()?.matmul(&b.t()?)? } else { b.matmul(&a)? };
        Ok((product * (scale * self.scaling))?)
    }
}

/// Merges updates into the `weight` of a module, one after the other, each with a scale by which it is multiplied, as
/// `merge_and_unload` of peft does. `fan_in_fan_out` states that a linear layer stores its weight as (in, out), as the
/// Conv1D of GPT-2 does. The result is float32 in the shape of `weight`, on its device.
///
/// An update with DoRA scales the weight merged so far, with its own update, by `m / ‖W + scale · scaling · B · A‖` for
/// each output, where W is the weight before all updates.
///
/// # Errors
/// [`ErrorKind::Mismatch`] with the module if an update does not fit the weight; [`ErrorKind::Format`] if a factor or
/// the result is not finite.
pub fn merge(weight: &Tensor, fan_in_fan_out: bool, updates: &[(&LoraTensors, f64)]) -> Result<Tensor> {
    let Some((first, _)) = updates.first() else { return Ok(weight.to_dtype(DType::F32)?) };
    let transposed = match first.kind() {
        Kind::Linear => fan_in_fan_out,
        Kind::Embedding => true,
        Kind::Conv => false,
    };
    for (update, _) in updates {
        fits(update, weight.dims(), fan_in_fan_out)?;
    }
    let base = weight.to_dtype(DType::F32)?.flatten_from(1)?;
    let mut merged = base.clone();
    for (update, scale) in updates {
        let delta = update.matrix(*scale, transposed, base.device())?;
        merged = (merged + &delta)?;
        if let Some(magnitude) = update.magnitude(base.device())? {
            let inputs = usize::from(!transposed);
            let norm = (&base + delta)?.sqr()?.sum_keepdim(inputs)?.sqrt()?;
            merged = merged.broadcast_mul(&(magnitude.reshape(norm.shape())? / norm)?)?;
        }
    }
    finite(&merged, first.module())?;
    Ok(merged.reshape(weight.shape())?)
}

/// Adds the biases of updates to the `bias` (out) of a module, as [`merge`] does with the weight.
///
/// # Errors
/// As [`merge`].
pub fn merge_bias(bias: &Tensor, updates: &[(&LoraTensors, f64)]) -> Result<Tensor> {
    let mut merged = bias.to_dtype(DType::F32)?;
    for (update, scale) in updates {
        let Some(added) = update.bias(bias.device())? else { continue };
        if added.dims() != merged.dims() {
            let (module, found, wanted) = (update.module(), added.dims(), merged.dims());
            let message = format!("{module}: the adapter has a bias {found:?}, the base model {wanted:?}");
            return Err(Error::new(ErrorKind::Mismatch, message).hint(OTHER_BASE));
        }
        merged = (merged + (added * (scale * update.scaling()))?)?;
        finite(&merged, update.module())?;
    }
    Ok(merged)
}

const OTHER_BASE: &str = "the adapter belongs to another base model";

/// Checks that `update` fits a weight of shape `found`.
fn fits(update: &LoraTensors, found: &[usize], fan_in_fan_out: bool) -> Result<()> {
    let mut wanted = update.weight_shape();
    if fan_in_fan_out && update.kind() == Kind::Linear {
        wanted.reverse();
    }
    if wanted == found {
        return Ok(());
    }
    let module = update.module();
    let message = format!("{module}: the update of the adapter is {wanted:?}, the weight is {found:?}");
    let grouped = update.kind() == Kind::Conv && found.len() == wanted.len() && found[1] < wanted[1];
    Err(Error::new(ErrorKind::Mismatch, message).hint(
        if grouped && wanted[1].is_multiple_of(found[1].max(1)) {
            "updates of grouped convolutions are not supported"
        } else {
            OTHER_BASE
        },
    ))
}

/// Checks that all values are finite, on any device.
fn finite(values: &Tensor, module: &str) -> Result<()> {
    // Zero times a value that is not finite is not a number.
    let probe: f32 = transfer::scalar(&(values.detach() * 0.0)?.sum_all()?)?;
    if probe == 0.0 {
        return Ok(());
    }
    let message = format!("{module}: the weight with the adapter's update has values that are not finite");
    Err(Error::new(ErrorKind::Format, message).hint("use a smaller scale, or another adapter"))
}

/// Checks element types and shapes, and returns the rank.
fn check(selection: &Selection, module: &str, parts: &Parts) -> Result<usize> {
    let Parts { kind, a, b, bias, magnitude } = parts;
    for (name, tensor) in
        [("A", Some(a)), ("B", Some(b)), ("bias", bias.as_ref()), ("magnitude", magnitude.as_ref())]
    {
        let Some(tensor) = tensor else { continue };
        let floats = [StorageType::F64, StorageType::F32, StorageType::F16, StorageType::BF16];
        if !floats.contains(&tensor.storage) {
            let message = format!("the factor {name} has elements {}, expected floats", tensor.storage);
            return Err(Error::unsupported(message));
        }
        if tensor.storage.byte_len(&tensor.shape) != Some(tensor.bytes.len()) {
            let (bytes, shape) = (tensor.bytes.len(), &tensor.shape);
            return Err(Error::input(format!("the factor {name} has {bytes} bytes for the shape {shape:?}")));
        }
    }
    let (a, b) = (a.shape.as_slice(), b.shape.as_slice());
    let mismatch = |message: String| Err(Error::new(ErrorKind::Mismatch, message));
    let axes = match kind {
        Kind::Linear | Kind::Embedding => 2..=2,
        Kind::Conv => 3..=5,
    };
    if !axes.contains(&a.len()) || b.len() != a.len() || a.contains(&0) || b.contains(&0) {
        return mismatch(format!("factors A {a:?} and B {b:?}, expected {}", expected(*kind)))
            .map_err(|e| e.hint("was the adapter saved from a sharded model without gathering its parts?"));
    }
    let (rank, pattern) = selection.rank_by(module)?;
    if a[0] != rank {
        let source = pattern.map_or("r".to_owned(), |pattern| format!("rank_pattern {pattern:?}"));
        let message = format!("factor A {a:?} is of rank {}, the config says {rank} ({source})", a[0]);
        return mismatch(message).map_err(|e| match pattern {
            Some(_) => {
                e.hint("of several patterns that match, the first in the file counts, and peft sorts them")
            }
            None => e,
        });
    }
    if b[1] != rank && *kind == Kind::Conv && b[1] > 0 && rank.is_multiple_of(b[1]) {
        let message = format!("factor B {b:?} is of a convolution in {} groups", rank / b[1]);
        return Err(Error::unsupported(message).hint("updates of grouped convolutions are not supported"));
    }
    if b[1] != rank || b[2..].iter().any(|n| *n != 1) {
        return mismatch(format!("factor B {b:?} does not fit A {a:?}, expected {}", expected(*kind)));
    }
    let outputs = b[0];
    if let Some(bias) = bias.as_ref().filter(|bias| bias.shape != [outputs]) {
        return mismatch(format!("the bias is {:?}, expected [{outputs}]", bias.shape));
    }
    let is_vector = |shape: &[usize]| {
        shape == [outputs]
            || *kind == Kind::Conv
                && shape.len() == a.len()
                && shape[1] == outputs
                && shape.iter().product::<usize>() == outputs
    };
    if let Some(norms) = magnitude.as_ref().filter(|norms| !is_vector(&norms.shape)) {
        return mismatch(format!("the magnitudes of DoRA are {:?}, expected [{outputs}]", norms.shape));
    }
    Ok(rank)
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Linear => "(r, in) and (out, r)",
        Kind::Embedding => "(r, count) and (hidden, r)",
        Kind::Conv => "(r, in, kernel…) and (out, r, 1…)",
    }
}

/// `tensor` as float32, for [`Parts`] and [`Adapter::new`](super::Adapter::new).
///
/// # Errors
/// If it cannot be copied from its device.
pub fn stored(tensor: &Tensor) -> Result<StoredTensor> {
    let values: Vec<f32> = transfer::to_host(&tensor.to_dtype(DType::F32)?)?;
    let bytes = Bytes::filled(4 * values.len(), |out| {
        for (raw, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(&values) {
            *raw = value.to_le_bytes();
        }
    });
    Ok(StoredTensor { storage: StorageType::F32, shape: tensor.dims().to_vec(), bytes })
}
