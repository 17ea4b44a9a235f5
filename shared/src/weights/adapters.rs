//! Adapters over weights: read ones, and those that are trained.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor};

use super::{Entry, MatrixUse, Name, Origin, Weights};
use crate::adapter::{Adapter, Kind, LoraTensors};
use crate::checkpoint::StoredTensor;
use crate::error::first_five;
use crate::kernels::matmul::Layout;
use crate::nn::Matrix;
use crate::nn::low_rank::LowRank;
use crate::{Error, ErrorKind, Result};

/// The kind of layer that a weight belongs to, as adapters tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Linear,
    Embedding,
    Conv,
}

impl From<MatrixUse> for Layer {
    fn from(matrix: MatrixUse) -> Self {
        match matrix {
            MatrixUse::Embedding => Self::Embedding,
            MatrixUse::Linear | MatrixUse::TransposedLinear | MatrixUse::Experts => Self::Linear,
        }
    }
}

/// The adapters of a model.
#[derive(Default)]
pub(super) struct Adapters {
    /// The updates of each weight, by its path, with the scale of their adapter.
    updates: BTreeMap<String, Vec<(LoraTensors, f64)>>,
    /// The tensors of the checkpoint that adapters replace, by path; `None` where it has none.
    replaced: BTreeMap<String, Option<StoredTensor>>,
    /// The order of rows in which the checkpoint stores some weights.
    rows: Option<RowOrder>,
    /// The paths of weights whose updates were used.
    used: Mutex<BTreeSet<String>>,
}

/// The rows of the weight at a path in the order of the checkpoint, as indices in the order of the adapter; `None` if
/// they are the same.
pub type RowOrder = Arc<dyn Fn(&str, usize) -> Option<Vec<u32>> + Send + Sync>;

impl Weights {
    /// The same, before anything is read, with `adapters` and their scales. `rename` renames the tensors of the
    /// checkpoint, and so the modules of adapters; `rows` orders the rows of their updates.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for an adapter over a tensor that the model loads in parts;
    /// [`Mismatch`](ErrorKind::Mismatch) if an adapter replaces a tensor by one of another shape.
    pub fn with_adapters(
        self,
        adapters: &[(Adapter, f64)],
        rename: impl Fn(&str) -> Name,
        rows: Option<RowOrder>,
    ) -> Result<Self> {
        if adapters.is_empty() {
            return Ok(self);
        }
        let path = |name: &str| match rename(name) {
            Name::Keep => Ok(name.to_string()),
            Name::To(path) => Ok(path),
            Name::Entries { .. } | Name::Ignore => Err(Error::unsupported(format!(
                "an adapter of {name}, which this model does not load as it is"
            ))),
        };
        let mut held = Adapters { rows, ..Adapters::default() };
        let mut saved = BTreeMap::new();
        for (adapter, scale) in adapters {
            for (module, update) in adapter.modules() {
                let path = path(&format!("{module}.weight"))?;
                held.updates.entry(path).or_default().push((update.clone(), *scale));
            }
            for (name, tensor) in adapter.saved() {
                saved.insert(path(name)?, tensor.clone());
            }
        }
        Ok(self.replacing(saved, held))
    }

    /// The same with the tensors `saved` in place of those of the checkpoint.
    fn replacing(self, saved: BTreeMap<String, StoredTensor>, mut held: Adapters) -> Self {
        let origin = match self.origin() {
            Origin::Files { tensors, label, is_gguf } => {
                let mut tensors = tensors.clone();
                for (path, stored) in saved {
                    let old = tensors.get(&path);
                    let official = old.map_or_else(|| path.clone(), |entry| entry.official.clone());
                    held.replaced.insert(path.clone(), old.map(|entry| entry.stored.clone()));
                    tensors.insert(path, Entry { stored, official });
                }
                Arc::new(Origin::Files { tensors, label: label.clone(), is_gguf: *is_gguf })
            }
            _ => self.shared.origin.clone(),
        };
        Self::of(origin, self.runtime().clone(), Some(Arc::new(held)), None)
    }

    /// The tensor of the checkpoint at `path` that an adapter replaces.
    pub(super) fn replaced(&self, path: &str) -> Option<&StoredTensor> {
        self.adapters()?.replaced.get(path)?.as_ref()
    }

    /// The table `name` of `[count, width]` as the checkpoint has it, if an adapter replaces it.
    pub(crate) fn unadapted(&self, name: &str, count: usize, width: usize) -> Result<Option<Matrix>> {
        let Some(stored) = self.replaced(&self.path(name)) else { return Ok(None) };
        let quantize = self.runtime().quantize().and_then(|kind| MatrixUse::Embedding.format(kind, width));
        let shape = (count, width);
        self.place_stored(stored, MatrixUse::Embedding, Layout::OutIn, shape, quantize).map(Some)
    }

    /// `matrix`, the output head with the weights of the embedding table, with the updates of the head `name`.
    pub(crate) fn adapted_head(&self, matrix: Matrix, name: &str) -> Result<Matrix> {
        self.adapted(matrix, &self.path(name), Layer::Linear)
    }

    /// `matrix`, at `path` in the checkpoint, with its updates.
    pub(super) fn adapted(&self, matrix: Matrix, path: &str, layer: Layer) -> Result<Matrix> {
        if !self.has_updates(path, layer) {
            return Ok(matrix);
        }
        let shape = [matrix.outputs(), matrix.inputs()];
        let (whole, weight): (_, &dyn Fn() -> Result<Tensor>) = match layer {
            Layer::Embedding => (0..matrix.inputs(), &|| Ok(matrix.as_dense()?.t()?)),
            _ => (0..matrix.outputs(), &|| matrix.as_dense()),
        };
        let updates = self.updates(path, layer, &shape, (whole.clone(), whole), None, weight)?;
        matrix.with_updates(updates, layer == Layer::Embedding)
    }

    /// Whether the weight at `path` has updates.
    pub(super) fn has_updates(&self, path: &str, layer: Layer) -> bool {
        self.adapters().is_some_and(|adapters| adapters.updates.contains_key(path))
            || self.trained_module(path, layer).is_some()
    }

    /// The updates of the weight at `path`: of its rows `taken`, which become the rows `placed` of the matrix. `inputs`
    /// are the columns of the matrix if it has only some. `shape` is that of the whole weight, `(outputs, inputs,
    /// kernel…)` or `(count, hidden_size)`; `weight` is the whole weight, `(rows, inputs)`.
    pub(super) fn updates(
        &self,
        path: &str,
        layer: Layer,
        shape: &[usize],
        (taken, placed): (Range<usize>, Range<usize>),
        inputs: Option<Range<usize>>,
        weight: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Vec<LowRank>> {
        let device = self.runtime().device();
        let mut updates = Vec::new();
        for factors in self.factors(path, layer, shape, weight)? {
            let b = factors.b.flatten_from(1)?;
            if taken.end > b.dim(0)? {
                return Err(misfit(path, &factors.a, &b));
            }
            let part = |x: &Tensor| Ok::<_, Error>(x.narrow(0, taken.start, taken.len())?);
            let a = factors.a.flatten_from(1)?;
            let a = match &inputs {
                Some(columns) if columns.end <= a.dim(1)? => {
                    a.narrow(1, columns.start, columns.len())?.contiguous()?
                }
                Some(_) => return Err(misfit(path, &a, &b)),
                None => a,
            };
            let update = LowRank {
                a: a.to_device(device)?,
                b: part(&b)?.to_device(device)?,
                bias: factors.bias.as_ref().map(part).transpose()?,
                scale: factors.scale,
                rows: placed.clone(),
                gain: None,
            };
            updates.push(match (&factors.magnitude, &inputs) {
                (None, _) => update,
                (Some(magnitude), None) => update.with_magnitude(&part(magnitude)?, &part(&weight()?)?)?,
                (Some(_), Some(_)) => {
                    let message =
                        format!("an adapter with DoRA over {path}, which this model loads by columns");
                    return Err(Error::unsupported(message));
                }
            });
        }
        Ok(updates)
    }

    /// The factors of all updates of the weight at `path`.
    fn factors(
        &self,
        path: &str,
        layer: Layer,
        shape: &[usize],
        weight: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Vec<Factors>> {
        let device = self.runtime().device();
        let order = self.adapters().and_then(|adapters| adapters.rows.clone());
        let ordered = |x: Tensor| -> Result<Tensor> {
            match order.as_ref().and_then(|rows| rows(path, x.dims()[0])) {
                Some(order) => Ok(x.index_select(&Tensor::new(order, device)?, 0)?),
                None => Ok(x),
            }
        };
        let mut factors = Vec::new();
        if let Some((adapters, updates)) = self.adapters().and_then(|a| Some((a, a.updates.get(path)?))) {
            adapters.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(path.to_string());
            for (update, scale) in updates {
                let is_embedding = layer == Layer::Embedding;
                if is_embedding != (update.kind() == Kind::Embedding) {
                    let message = format!("the update of {} is of another kind of module", update.module());
                    return Err(Error::new(ErrorKind::Mismatch, message).hint(OTHER_BASE));
                }
                factors.push(Factors {
                    a: update.a(device)?,
                    b: ordered(update.b(device)?)?,
                    bias: update.bias(device)?.map(ordered).transpose()?,
                    magnitude: update.magnitude(device)?.map(ordered).transpose()?,
                    scale: scale * update.scaling(),
                });
            }
        }
        if let Some(trained) = self.trained_factors(path, layer, shape, weight)? {
            let Factors { b, bias, magnitude, .. } = &trained;
            factors.push(Factors {
                b: ordered(b.clone())?,
                bias: bias.clone().map(ordered).transpose()?,
                magnitude: magnitude.clone().map(ordered).transpose()?,
                ..trained
            });
        }
        Ok(factors)
    }

    /// `tensor`, at `path` in the checkpoint, with its updates added: for convolutions and embedding tables that are
    /// read as tensors.
    pub(super) fn merged(&self, tensor: Tensor, path: &str) -> Result<Tensor> {
        let layer = match tensor.rank() {
            2 => Layer::Embedding,
            _ => Layer::Conv,
        };
        if !self.has_updates(path, layer) {
            return Ok(tensor);
        }
        let base = tensor.to_dtype(DType::F32)?.flatten_from(1)?;
        let rows = |x: &Tensor| match layer {
            Layer::Embedding => x.t()?.contiguous(),
            _ => Ok(x.clone()),
        };
        let weight = rows(&base)?;
        let (outputs, inputs) = weight.dims2()?;
        let mut total = weight.clone();
        let all = 0..outputs;
        let shape = tensor.dims();
        for update in self.updates(path, layer, shape, (all.clone(), all), None, &|| Ok(weight.clone()))? {
            if update.a.dims()[1] != inputs || update.b.dims()[0] != outputs {
                return Err(misfit(path, &update.a, &update.b));
            }
            let change = (update.b.matmul(&update.a)? * update.scale)?;
            total = match &update.gain {
                None => (total + change)?,
                Some(gain) => {
                    let gain = gain.reshape((outputs, 1))?;
                    ((total + weight.broadcast_mul(&(&gain - 1.0)?)?)? + change.broadcast_mul(&gain)?)?
                }
            };
        }
        Ok(rows(&total)?.reshape(tensor.shape())?.to_dtype(tensor.dtype())?)
    }

    /// Checks that all updates belong to weights that were read.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) with the modules of adapters that this model does not have.
    pub(super) fn check_adapters(&self) -> Result<()> {
        let Some(adapters) = self.adapters() else { return Ok(()) };
        let used = adapters.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let unused = adapters.updates.iter().filter(|(path, _)| !used.contains(*path));
        let unused: Vec<&str> = unused.flat_map(|(_, updates)| updates).map(|(u, _)| u.module()).collect();
        match unused.len() {
            0 => Ok(()),
            count => Err(Error::new(
                ErrorKind::Mismatch,
                format!("the adapter has updates of {count} modules that this model does not have"),
            )
            .hint(first_five(unused))
            .hint(OTHER_BASE)),
        }
    }
}

const OTHER_BASE: &str = "the adapter belongs to another base model";

/// The factors of an update, float32.
pub(super) struct Factors {
    /// `(rank, inputs)`, or with the axes of a kernel.
    pub a: Tensor,
    /// `(outputs, rank)`, or with axes of length 1.
    pub b: Tensor,
    /// `(outputs)`.
    pub bias: Option<Tensor>,
    /// `(outputs)`.
    pub magnitude: Option<Tensor>,
    /// The factor of the update.
    pub scale: f64,
}

fn misfit(path: &str, a: &Tensor, b: &Tensor) -> Error {
    let (a, b) = (a.dims(), b.dims());
    let message = format!("{path}: factors A {a:?} and B {b:?} of an adapter do not fit the weight");
    Error::new(ErrorKind::Mismatch, message).hint(OTHER_BASE)
}
