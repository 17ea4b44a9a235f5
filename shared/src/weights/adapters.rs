//! Adapters over weights: read ones, and those that are trained.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

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

/// The adapters of a release, and what of them its weights have used.
#[derive(Default)]
pub(crate) struct Attached {
    adapters: Vec<(Adapter, f64)>,
    /// The modules with updates that were used, and the replaced tensors that were read, by their names in the adapter.
    used: Mutex<BTreeSet<String>>,
}

impl Attached {
    /// `adapters` with their scales, of which nothing has been used.
    pub(crate) fn new(adapters: Vec<(Adapter, f64)>) -> Self {
        Self { adapters, used: Mutex::default() }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// The adapters with their scales.
    pub(crate) fn adapters(&self) -> &[(Adapter, f64)] {
        &self.adapters
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Checks that all updates and replaced tensors were used.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) with the modules and tensors that this model does not have.
    pub(crate) fn check(&self) -> Result<()> {
        let used = self.used();
        let unused = |names: BTreeSet<&String>| -> Vec<String> {
            names.into_iter().filter(|name| !used.contains(*name)).cloned().collect()
        };
        let adapters = || self.adapters.iter().map(|(adapter, _)| adapter);
        let modules = unused(adapters().flat_map(|adapter| adapter.modules().keys()).collect());
        let saved = unused(adapters().flat_map(|adapter| adapter.saved().keys()).collect());
        let (what, names) = match (modules.is_empty(), saved.is_empty()) {
            (true, true) => return Ok(()),
            (false, _) => (format!("updates of {} modules", modules.len()), modules),
            (true, false) => (format!("{} tensors", saved.len()), saved),
        };
        let message = format!("the adapter has {what} that this model does not have");
        Err(Error::new(ErrorKind::Mismatch, message).hint(first_five(names)).hint(OTHER_BASE))
    }
}

/// The adapters over the weights of a file.
#[derive(Default, Clone)]
pub(super) struct Adapters {
    /// The updates of each weight, by its path, with the scale of their adapter.
    updates: BTreeMap<String, Vec<(LoraTensors, f64)>>,
    /// The tensors of the checkpoint that adapters replace, by path; `None` where it has none.
    replaced: BTreeMap<String, Option<StoredTensor>>,
    /// The names in the adapter of the tensors that were put into the checkpoint, by path.
    saved: BTreeMap<String, String>,
    /// The order of rows in which the checkpoint stores some weights.
    rows: Option<RowOrder>,
    /// All that the release has, in any of its files.
    attached: Arc<Attached>,
    /// Whether the file is one of several of the release, which need not use all updates.
    is_part: bool,
}

impl Adapters {
    /// Whether the weight at `path` has updates.
    pub(super) fn has_update(&self, path: &str) -> bool {
        self.updates.contains_key(path)
    }
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
        self.attach(&Arc::new(Attached::new(adapters.to_vec())), rename, rows)
    }

    /// [`with_adapters`](Self::with_adapters) of a release.
    pub(crate) fn attach(
        self,
        attached: &Arc<Attached>,
        rename: impl Fn(&str) -> Name,
        rows: Option<RowOrder>,
    ) -> Result<Self> {
        let path = |name: &str| match rename(name) {
            Name::Keep => Ok(Some(name.to_string())),
            Name::To(path) => Ok(Some(path)),
            Name::Ignore => Ok(None),
            Name::Entries { .. } => Err(Error::unsupported(format!(
                "an adapter of {name}, which this model does not load as it is"
            ))),
        };
        let held = Adapters { rows, ..Adapters::default() };
        self.holding(attached, held, path)
    }

    /// [`attach`](Self::attach) to one of the files of a release: with the updates of the modules whose weights it has,
    /// and its own tensors replaced. `rename` gives the paths of those in other files as [`Name::Ignore`].
    pub(crate) fn attach_to_part(
        self,
        attached: &Arc<Attached>,
        rename: impl Fn(&str) -> Name,
    ) -> Result<Self> {
        let Origin::Files { tensors, .. } = self.origin() else { return Ok(self) };
        let known: BTreeSet<String> = tensors.keys().cloned().collect();
        let path = |name: &str| {
            Ok(match rename(name) {
                Name::Keep => Some(name.to_string()),
                Name::To(path) => Some(path),
                Name::Entries { .. } | Name::Ignore => None,
            }
            .filter(|path| known.contains(path)))
        };
        self.holding(attached, Adapters { is_part: true, ..Adapters::default() }, path)
    }

    /// The same, before anything is read, without the updates and replaced tensors at or below `name`: of a module that
    /// another file of the release has in place of this one.
    pub fn without_adapters_at(&self, name: &str) -> Self {
        let Some(adapters) = self.adapters() else { return self.clone() };
        let top = self.path(name);
        let is_outside = |path: &str| path != top && !is_below(path, &top);
        let mut held = adapters.clone();
        held.updates.retain(|path, _| is_outside(path));
        held.saved.retain(|path, _| is_outside(path));
        let origin = match self.origin() {
            Origin::Files { tensors, label, is_gguf } => {
                let mut tensors = tensors.clone();
                for (path, old) in held.replaced.iter().filter(|(path, _)| !is_outside(path)) {
                    match (tensors.get_mut(path), old) {
                        (Some(entry), Some(stored)) => entry.stored = stored.clone(),
                        _ => _ = tensors.remove(path),
                    }
                }
                Arc::new(Origin::Files { tensors, label: label.clone(), is_gguf: *is_gguf })
            }
            _ => self.shared.origin.clone(),
        };
        held.replaced.retain(|path, _| is_outside(path));
        self.task().take();
        let weights =
            Self::of(origin, self.runtime().clone(), Some(Arc::new(held)), self.training().cloned());
        Self { prefix: self.prefix.clone(), ..weights.with_progress(&self.shared.progress) }
    }

    /// Whether the tensor at `path` is one of an adapter that the checkpoint does not have.
    pub(super) fn is_added(&self, path: &str) -> bool {
        self.adapters().is_some_and(|adapters| matches!(adapters.replaced.get(path), Some(None)))
    }

    /// The same with the updates and tensors that have a path.
    fn holding(
        self,
        attached: &Arc<Attached>,
        mut held: Adapters,
        path: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<Self> {
        if attached.is_empty() {
            return Ok(self);
        }
        held.attached = attached.clone();
        let mut saved = BTreeMap::new();
        for (adapter, scale) in attached.adapters() {
            for (module, update) in adapter.modules() {
                if let Some(path) = path(&format!("{module}.weight"))? {
                    held.updates.entry(path).or_default().push((update.clone(), *scale));
                }
            }
            for (name, tensor) in adapter.saved() {
                match path(name)? {
                    Some(path) => {
                        held.saved.insert(path.clone(), name.clone());
                        saved.insert(path, tensor.clone());
                    }
                    None if held.is_part => {}
                    // What is ignored in a checkpoint: a buffer, or a copy under another name.
                    None => _ = attached.used().insert(name.clone()),
                }
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

    /// Whether an adapter has the tensor `name` in full.
    pub(crate) fn is_replaced(&self, name: &str) -> bool {
        self.adapters().is_some_and(|adapters| adapters.replaced.contains_key(&self.path(name)))
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

    /// Refuses to train the tensor `name` at `path` in full, if an adapter that was read updates it.
    pub(super) fn refuse_adapted(&self, path: &str, name: &str) -> Result<()> {
        match self.adapters().is_some_and(|adapters| adapters.has_update(path)) {
            false => Ok(()),
            true => Err(Error::unsupported(format!("{name} has an adapter, and is to be trained in full"))
                .hint("merge the adapter into the model first: fauna merge")),
        }
    }

    /// Whether the weight at `path` has updates.
    pub(super) fn has_updates(&self, path: &str, layer: Layer) -> bool {
        self.adapters().is_some_and(|adapters| adapters.has_update(path))
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
                return Err(misfit(path, shape, &factors.a, &b));
            }
            let part = |x: &Tensor| Ok::<_, Error>(x.narrow(0, taken.start, taken.len())?);
            let a = factors.a.flatten_from(1)?;
            let a = match &inputs {
                Some(columns) if columns.end <= a.dim(1)? => {
                    a.narrow(1, columns.start, columns.len())?.contiguous()?
                }
                Some(_) => return Err(misfit(path, shape, &a, &b)),
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

    /// The updates of the embedding table at `path`, of `shape`: of its rows `taken`, which become the rows `placed` of
    /// one table of `count` rows.
    pub(super) fn table_updates(
        &self,
        path: &str,
        shape: [usize; 2],
        (taken, placed): (Range<usize>, Range<usize>),
        count: usize,
    ) -> Result<Vec<LowRank>> {
        let mut updates = Vec::new();
        let weight = || Err(stacked_dora(path));
        for Factors { a, b, magnitude, scale, .. } in self.factors(path, Layer::Embedding, &shape, &weight)? {
            if magnitude.is_some() {
                return Err(stacked_dora(path));
            }
            if a.dims() != [b.dim(1)?, shape[0]] || b.dim(0)? != shape[1] {
                return Err(misfit(path, &shape, &a, &b));
            }
            // The other rows have an update of zero.
            let a = a.narrow(1, taken.start, taken.len())?;
            let a = a.pad_with_zeros(1, placed.start, count - placed.end)?;
            updates.push(LowRank { a, b, bias: None, scale, rows: 0..shape[1], gain: None });
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
            for (update, scale) in updates {
                adapters.attached.used().insert(update.module().to_string());
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

    /// `tensor`, the weight `name` as the model computes it from others, such as by weight normalization, with its
    /// updates added.
    pub(crate) fn adapted_tensor(&self, tensor: Tensor, name: &str) -> Result<Tensor> {
        self.merged(tensor, &self.path(name))
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
                return Err(misfit(path, shape, &update.a, &update.b));
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

    /// Checks that all updates belong to weights that were read, or that the model does not use.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) with the modules of adapters that this model does not have.
    pub(super) fn check_adapters(&self) -> Result<()> {
        let Some(adapters) = self.adapters() else { return Ok(()) };
        {
            let (ledger, mut used) = (self.ledger(), adapters.attached.used());
            let unread = adapters.updates.iter().filter(|(path, _)| ledger.unused.contains(*path));
            used.extend(unread.flat_map(|(_, updates)| updates).map(|(u, _)| u.module().to_string()));
            let is_seen = |path: &str| {
                ledger.read.contains_key(path)
                    || ledger.skipped.contains(path)
                    || ledger.misshaped.contains_key(path)
            };
            // A tensor of the checkpoint that is neither read nor skipped is an error of its own.
            let seen = adapters.saved.iter().filter(|(path, _)| !self.is_added(path) || is_seen(path));
            used.extend(seen.map(|(_, name)| name.clone()));
        }
        match adapters.is_part {
            true => Ok(()),
            false => adapters.attached.check(),
        }
    }
}

/// Whether `path` is of a module or tensor below the module `top`.
fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| top.is_empty() || rest.starts_with('.'))
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

fn stacked_dora(path: &str) -> Error {
    Error::unsupported(format!(
        "an adapter with DoRA over {path}, which this model loads as a part of a table"
    ))
}

fn misfit(path: &str, shape: &[usize], a: &Tensor, b: &Tensor) -> Error {
    let (a, b) = (a.dims(), b.dims());
    let message =
        format!("{path}: factors A {a:?} and B {b:?} of an adapter do not fit the weight {shape:?}");
    Error::new(ErrorKind::Mismatch, message).hint(OTHER_BASE)
}
