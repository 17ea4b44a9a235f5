//! Loading weights by name and shape, similar to candle's `VarBuilder`.
//!
//! Missing tensors and tensors of a wrong shape are recorded and replaced by placeholders, so that one load reports all
//! problems at once; [`Weights::finish`] returns them as one error. The same loading code also runs with random weights
//! from a seed, and without any weights to list the tensors and count the parameters of a config.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{Bytes, Checkpoint, StorageType, StoredTensor};
use crate::error::nearest;
use crate::item::Tensors;
use crate::kernels::matmul::{Compute, Elem, Layout};
use crate::nn::{Matrix, blocks, host};
use crate::progress::{Reporter, Task, Unit};
use crate::runtime::{Precision, Runtime, kernels_serve};
use crate::{Error, ErrorKind, Result, transfer};

mod adapters;
mod experts;
mod fresh;
mod stack;
mod variables;

pub(crate) use adapters::Attached;
pub use adapters::RowOrder;
use adapters::{Adapters, Layer};
pub use stack::Piece;
use variables::Training;
pub use variables::{Fresh, Lora, Modules, Select, Variables};

/// Number of problems after which a load is aborted, for configs with an absurd number of layers.
const ENOUGH_PROBLEMS: usize = 1000;

/// Maximum number of tensors of a config without a checkpoint.
const MOST_TENSORS: usize = 100_000;

/// Minimum size in bytes of a copied tensor whose mapped pages are released.
const LARGE: usize = 1 << 20;

/// How a tensor of a checkpoint is renamed on loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// The name is kept.
    Keep,
    /// The tensor gets this name.
    To(String),
    /// The tensor is split along its first axis; entry `i` gets the name `{before}{i}{after}`, as for stacked layers.
    Entries {
        /// The part of the name before the index.
        before: String,
        /// The part of the name after the index.
        after: String,
    },
    /// The tensor is ignored, for example a buffer without weights.
    Ignore,
}

impl Name {
    /// Applies `rename` to `name` without the optional `prefix`, such as the base model prefix of a model with a head.
    ///
    /// ```
    /// use fauna_shared::weights::Name;
    /// let rename = |name: &str| Name::without("clip.", name, |_| Name::Keep);
    /// assert_eq!(rename("clip.logit_scale"), Name::To("logit_scale".into()));
    /// assert_eq!(rename("logit_scale"), Name::Keep);
    /// ```
    pub fn without(prefix: &str, name: &str, rename: impl FnOnce(&str) -> Self) -> Self {
        let Some(plain) = name.strip_prefix(prefix) else { return rename(name) };
        match rename(plain) {
            Self::Keep => Self::To(plain.to_string()),
            renamed => renamed,
        }
    }

    /// Whether `name` is a buffer that older checkpoints contain and models compute: the inverse frequencies of a
    /// rotary embedding, or position ids. The reference implementation ignores both.
    ///
    /// ```
    /// use fauna_shared::weights::Name;
    /// assert!(Name::is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq"));
    /// assert!(Name::is_buffer("position_ids") && !Name::is_buffer("decomposition_ids"));
    /// ```
    pub fn is_buffer(name: &str) -> bool {
        ["rotary_emb.inv_freq", "position_ids"]
            .into_iter()
            .filter_map(|buffer| name.strip_suffix(buffer))
            .any(|place| place.is_empty() || place.ends_with('.'))
    }
}

/// The weights below a name prefix of a checkpoint. Cheap to clone; [`at`](Weights::at) extends the prefix.
///
/// ```
/// use fauna_shared::{runtime::Runtime, weights::Weights};
/// let weights = Weights::seeded(7, Runtime::cpu());
/// let norm = weights.at("encoder").at("layer.0").layer_norm("norm", 8, 1e-5)?;
/// assert_eq!(weights.finish()?.parameters, 16);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    prefix: String,
}

struct Shared {
    origin: Arc<Origin>,
    runtime: Runtime,
    training: Option<Training>,
    adapters: Option<Arc<Adapters>>,
    ledger: Mutex<Ledger>,
    progress: Reporter,
    /// The load as its progress shows it, until it ends.
    task: Mutex<Option<Box<dyn Task>>>,
}

enum Origin {
    Files {
        tensors: BTreeMap<String, Entry>,
        label: PathBuf,
        /// Whether the names of the file are those of GGUF and not of the release.
        is_gguf: bool,
    },
    Seed(u64),
    Fresh(Fresh),
    Nothing,
}

#[derive(Clone)]
struct Entry {
    stored: StoredTensor,
    /// Name in the file.
    official: String,
}

#[derive(Default)]
struct Ledger {
    read: BTreeMap<String, Vec<usize>>,
    /// Use of the matrices in `read`.
    matrices: BTreeMap<String, MatrixUse>,
    /// Names that need not be read.
    skipped: BTreeSet<String>,
    /// Those of them that the model does not use under another name either.
    unused: BTreeSet<String>,
    /// Names that are missing in the file, and their expected shapes.
    missing: BTreeMap<String, Vec<usize>>,
    /// Names whose shapes differ: shape in the file, expected shape.
    misshaped: BTreeMap<String, (Vec<usize>, Vec<usize>)>,
    /// Names that are not bytes as expected, and their types in the file.
    mistyped: BTreeMap<String, StorageType>,
    /// Names of packed tensors, and their numbers of weights.
    packed: BTreeMap<String, u64>,
    /// Tied tables and their heads.
    tied: BTreeMap<String, String>,
    /// Number of placeholders returned for missing expert matrices.
    stand_ins: usize,
}

/// The use of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixUse {
    /// Linear layer, stored as `[outputs, inputs]`.
    Linear,
    /// Linear layer, stored as `[inputs, outputs]` (`Conv1D` of transformers).
    TransposedLinear,
    /// Embedding table, stored as `[count, hidden_size]`.
    Embedding,
    /// Stacked linear layers of experts, stored as `[count, inputs, outputs]`; block quantized as
    /// `[count, outputs, inputs]`.
    Experts,
}

impl MatrixUse {
    /// The format for a matrix with `inputs` inputs when weights are quantized to `kind`; `None` if the inputs are not
    /// a multiple of the block size. Embedding tables are quantized to 8 bits.
    pub fn format(self, kind: GgmlDType, inputs: usize) -> Option<GgmlDType> {
        match self {
            Self::Linear | Self::TransposedLinear | Self::Experts => blocks::fitting(kind, inputs),
            Self::Embedding => blocks::fitting(GgmlDType::Q8_0, inputs),
        }
    }

    /// The number of inputs of a matrix, or of each matrix of a stack, that is stored in `shape` and not block
    /// quantized; `None` if the shape is invalid.
    pub fn inputs(self, shape: &[usize]) -> Option<usize> {
        match (self, shape) {
            (Self::Linear | Self::Embedding, [_, inputs])
            | (Self::TransposedLinear, [inputs, _])
            | (Self::Experts, [_, inputs, _]) => Some(*inputs),
            _ => None,
        }
    }
}

/// The tensors of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inventory {
    /// Names and shapes, sorted by name.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Matrices that may be block quantized, and their use.
    pub matrices: BTreeMap<String, MatrixUse>,
    /// Packed tensors (such as MXFP4), and their numbers of weights.
    pub packed: BTreeMap<String, u64>,
    /// Embedding tables that are output heads too: the name of the table's weight, and that of the head.
    pub tied: Vec<(String, String)>,
    /// Number of parameters.
    pub parameters: u64,
}

impl Weights {
    /// The weights of `checkpoint`, with tensors renamed by `rename`.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if two tensors get the same name; those of [`Runtime::kernels`].
    pub fn open(checkpoint: &Checkpoint, rename: impl Fn(&str) -> Name, runtime: Runtime) -> Result<Self> {
        Runtime::kernels()?;
        let label = label_of(checkpoint);
        let mut tensors = BTreeMap::new();
        for official in checkpoint.names() {
            let Some(stored) = checkpoint.get(official) else { continue };
            let whole =
                |name: String| vec![(name, Entry { stored: stored.clone(), official: official.to_string() })];
            let entries = match rename(official) {
                Name::Keep => whole(official.to_string()),
                Name::To(name) => whole(name),
                Name::Entries { before, after } => {
                    let entries = entries_of(official, stored).map_err(|error| error.at(&label))?;
                    let entry = |(i, stored): (usize, StoredTensor)| {
                        (
                            format!("{before}{i}{after}"),
                            Entry { stored, official: format!("{official}[{i}]") },
                        )
                    };
                    entries.into_iter().enumerate().map(entry).collect()
                }
                Name::Ignore => continue,
            };
            for (name, entry) in entries {
                if let Some(other) = tensors.insert(name.clone(), entry) {
                    let message = format!("{} and {official} are both renamed to {name}", other.official);
                    return Err(Error::new(ErrorKind::Mismatch, message).at(&label));
                }
            }
        }
        let is_gguf = checkpoint.metadata().get("general.architecture").and_then(|value| value.as_str());
        // Files of `fauna quantize` have the names of the release.
        let is_gguf = is_gguf.is_some_and(|name| name != "fauna");
        Ok(Self::new(Origin::Files { tensors, label, is_gguf }, runtime))
    }

    /// Random weights for tests: each tensor is generated from `seed` and its name.
    pub fn seeded(seed: u64, runtime: Runtime) -> Self {
        Self::new(Origin::Seed(seed), runtime)
    }

    /// Initial values of a model that is trained from nothing.
    pub fn fresh(fresh: Fresh, runtime: Runtime) -> Self {
        Self::new(Origin::Fresh(fresh), runtime)
    }

    /// A checkpoint without tensors, named `label` in messages: all tensors are missing.
    pub fn empty(label: impl Into<PathBuf>, runtime: Runtime) -> Self {
        Self::new(Origin::Files { tensors: BTreeMap::new(), label: label.into(), is_gguf: false }, runtime)
    }

    /// No weights: tensors have shapes but no data, as on the meta device of PyTorch. A load only records the
    /// [`Inventory`].
    pub fn meta() -> Self {
        Self::new(Origin::Nothing, Runtime::cpu())
    }

    fn new(origin: Origin, runtime: Runtime) -> Self {
        Self::of(Arc::new(origin), runtime, None, None)
    }

    /// Weights of which none has been read.
    fn of(
        origin: Arc<Origin>,
        runtime: Runtime,
        adapters: Option<Arc<Adapters>>,
        training: Option<Training>,
    ) -> Self {
        let shared = Shared {
            origin,
            runtime,
            training,
            adapters,
            ledger: Mutex::default(),
            progress: Reporter::default(),
            task: Mutex::default(),
        };
        Self { shared: Arc::new(shared), prefix: String::new() }
    }

    /// The same tensors, of which none has been read, for `training`.
    fn reread(&self, training: Option<Training>) -> Self {
        let Shared { origin, runtime, adapters, .. } = &*self.shared;
        let prefix = self.prefix.clone();
        Self { prefix, ..Self::of(origin.clone(), runtime.clone(), adapters.clone(), training) }
    }

    fn adapters(&self) -> Option<&Adapters> {
        self.shared.adapters.as_deref()
    }

    /// Whether the checkpoint lacks the tensor `path`, or has it in another shape, or there is none.
    fn is_missing(&self, path: &str) -> bool {
        let ledger = self.ledger();
        self.is_meta() || ledger.missing.contains_key(path) || ledger.misshaped.contains_key(path)
    }

    fn origin(&self) -> &Origin {
        &self.shared.origin
    }

    fn training(&self) -> Option<&Training> {
        self.shared.training.as_ref()
    }

    /// The same, before anything is read, with the bytes of its tensors reported to `progress` as they are read. Where
    /// that cancels, the next tensor is [`Cancelled`](ErrorKind::Cancelled).
    pub fn with_progress(mut self, progress: &Reporter) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            let task = match &*shared.origin {
                Origin::Files { tensors, .. } if !tensors.is_empty() => {
                    let bytes = tensors.values().map(|entry| entry.stored.bytes.len() as u64).sum();
                    Some(progress.begin("loading", Unit::Bytes, Some(bytes)))
                }
                _ => None,
            };
            (shared.progress, shared.task) = (progress.clone(), Mutex::new(task));
        }
        self
    }

    /// The weights below the prefix extended by `name`; the empty string is this prefix.
    pub fn at(&self, name: &str) -> Self {
        Self { shared: self.shared.clone(), prefix: self.path(name) }
    }

    /// The weights of entry `index` of the list `name`: `at_index("h", 3)` is `at("h.3")`.
    pub fn at_index(&self, name: &str, index: usize) -> Self {
        self.at(&format!("{name}.{index}"))
    }

    /// Whether the checkpoint has a tensor at or below `name`. Returns `otherwise` if there is no checkpoint (random
    /// weights or inventory).
    pub fn has(&self, name: &str, otherwise: bool) -> bool {
        match self.origin() {
            Origin::Files { tensors, .. } => below(tensors, &self.path(name)).next().is_some(),
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => otherwise,
        }
    }

    /// Whether the checkpoint has both tensors `name` and `other`, and they differ.
    pub fn differ(&self, name: &str, other: &str) -> bool {
        let Origin::Files { tensors, .. } = self.origin() else { return false };
        let stored = |name: &str| Some(&tensors.get(&self.path(name))?.stored);
        match (stored(name), stored(other)) {
            (Some(a), Some(b)) => {
                let (bytes, others): (&[u8], &[u8]) = (&a.bytes, &b.bytes);
                a.storage != b.storage
                    || a.shape != b.shape
                    || (bytes.as_ptr() != others.as_ptr() && bytes != others)
            }
            _ => false,
        }
    }

    /// The shape of the tensor `name` in the checkpoint; `None` if it is missing or there is no checkpoint.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        match self.origin() {
            Origin::Files { tensors, .. } => Some(&tensors.get(&self.path(name))?.stored.shape),
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => None,
        }
    }

    /// Ignores the tensors at or below `name`, which the model does not use, such as another head. Adapters of them
    /// change nothing.
    pub fn skip(&self, name: &str) {
        if let Origin::Files { tensors, .. } = self.origin() {
            let path = self.path(name);
            let names: Vec<String> = below(tensors, &path).map(|(name, _)| name.clone()).collect();
            let mut ledger = self.ledger();
            ledger.skipped.extend(names.iter().cloned());
            ledger.unused.extend(names);
        }
    }

    /// Ignores the tensors at or below `name`, which are a copy of others, such as a tied embedding table.
    pub fn skip_copy(&self, name: &str) {
        if let Origin::Files { tensors, .. } = self.origin() {
            let path = self.path(name);
            self.ledger().skipped.extend(below(tensors, &path).map(|(name, _)| name.clone()));
        }
    }

    /// Whether there are no weights, and a load only records the [`Inventory`].
    pub fn is_meta(&self) -> bool {
        matches!(self.origin(), Origin::Nothing)
    }

    /// The runtime the weights are loaded for.
    pub fn runtime(&self) -> &Runtime {
        &self.shared.runtime
    }

    /// Whether the weights are quantized or bfloat16, in the file or by the runtime, so that the KV cache may be in
    /// half precision ([`Cache::with_half`](crate::attention::Cache::with_half)).
    pub fn half_cache(&self) -> bool {
        let runtime = self.runtime();
        let in_blocks = match self.origin() {
            Origin::Files { tensors, .. } => {
                tensors.values().any(|entry| matches!(entry.stored.storage, StorageType::Block(_)))
            }
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => false,
        };
        let kept = in_blocks && !runtime.dequantize();
        kept || runtime.quantize().is_some() || runtime.precision() == Precision::Bf16
    }

    /// Loads the tensor `name` of `shape`, dense, on the device, in the dtype of activations. For norms, biases and
    /// position tables; for linear layers use [`matrix`](Weights::matrix).
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let path = self.path(name);
        if let Some(variable) = self.variable(&path, shape)? {
            return Ok(variable.to_dtype(self.runtime().activations())?);
        }
        let found = self.look_up(&path, shape)?;
        let tensor = self.frozen(&path, || self.dense(&path, found, shape))?;
        match shape.len() > 1 && !matches!(found, Found::Nothing) {
            true => self.merged(tensor, &path),
            false => Ok(tensor),
        }
    }

    /// The tensor `path` of `shape` on the device, in the dtype of activations.
    fn dense(&self, path: &str, found: Found, shape: &[usize]) -> Result<Tensor> {
        let runtime = self.runtime();
        let values = match found {
            Found::Stored(stored) => {
                let values = widen(stored)?;
                // Only the copy is used from here on.
                if stored.bytes.len() >= LARGE {
                    stored.bytes.release();
                }
                values
            }
            Found::Seed(seed) => seeded_values(seed, path, shape)?,
            Found::Fresh(fresh) => fresh::values(fresh, path, shape)?,
            Found::Nothing => {
                return Ok(Tensor::zeros((), runtime.activations(), runtime.device())?.broadcast_as(shape)?);
            }
        };
        Ok(Tensor::from_vec(values, shape, runtime.device())?.to_dtype(runtime.activations())?)
    }

    /// Loads the matrix `name` of shape `[outputs, inputs]`, in the format of the file or of the runtime.
    pub fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::Linear, outputs, inputs)
    }

    /// Loads the matrix `name` stored as `[inputs, outputs]`, or, if block quantized (blocks are along the inputs), as
    /// `[outputs, inputs]`.
    pub fn matrix_transposed(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::TransposedLinear, outputs, inputs)
    }

    /// Loads the embedding table `name` of shape `[count, hidden_size]`. It is never quantized below 8 bits.
    pub fn table(&self, name: &str, count: usize, hidden_size: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::Embedding, count, hidden_size)
    }

    /// Loads the tensor `name` of `shape` as a matrix of shape `[shape[0], product of the other axes]`, for a
    /// convolution whose stride equals its kernel size. It is mapped and never quantized.
    pub(crate) fn unfolded(&self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let path = self.path(name);
        let (outputs, inputs) = (shape[0], shape[1..].iter().fold(1, |all: usize, n| all.saturating_mul(*n)));
        if let Some(variable) = self.variable(&path, shape)? {
            return Matrix::variable(variable.reshape((outputs, inputs))?, Layout::OutIn, self.compute());
        }
        let Some(stored) = self.stored(&path, shape)? else { return Ok(Matrix::absent(outputs, inputs)) };
        let stored = StoredTensor { shape: vec![outputs, inputs], ..stored };
        let matrix = self.place_stored(&stored, MatrixUse::Linear, Layout::OutIn, (outputs, inputs), None)?;
        if !self.has_updates(&path, Layer::Conv) {
            return Ok(matrix);
        }
        let all = (0..outputs, 0..outputs);
        let updates = self.updates(&path, Layer::Conv, shape, all, None, &|| matrix.as_dense())?;
        matrix.with_updates(updates, false)
    }

    /// Finishes the load.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) with all tensors that are missing, have another shape, or are in the file but
    /// not in the model; those of [`Runtime::kernels`].
    pub fn finish(&self) -> Result<Inventory> {
        Runtime::kernels()?;
        self.check_adapters()?;
        self.task().take();
        let ledger = self.ledger();
        if let Origin::Files { tensors, label, .. } = self.origin() {
            let unread: Vec<&Entry> = tensors
                .iter()
                .filter(|(name, _)| {
                    // What an adapter adds is checked with the adapters: another file may have the module.
                    !(ledger.read.contains_key(*name)
                        || ledger.skipped.contains(*name)
                        || ledger.misshaped.contains_key(*name)
                        || self.is_added(name))
                })
                .map(|(_, entry)| entry)
                .collect();
            if ledger.problems() > 0 || !unread.is_empty() {
                return Err(ledger.report(tensors, &unread).at(label));
            }
        }
        let weights = |(name, shape): (&String, &Vec<usize>)| match ledger.packed.get(name) {
            Some(weights) => *weights,
            None => count(shape),
        };
        let parameters = ledger.read.iter().map(weights).fold(0, u64::saturating_add);
        let tensors = ledger.read.clone().into_iter().collect();
        let (matrices, packed) = (ledger.matrices.clone(), ledger.packed.clone());
        let tied = ledger.tied.clone().into_iter().collect();
        Ok(Inventory { tensors, matrices, packed, tied, parameters })
    }

    /// Records that the table `table` is the output head `head` too.
    pub(crate) fn record_tied(&self, table: &str, head: &str) {
        let (table, head) = (self.path(table), self.path(head));
        self.ledger().tied.insert(table, head);
    }

    fn path(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}.{name}", self.prefix),
        }
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.shared.ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn task(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn Task>>> {
        self.shared.task.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn in_blocks(&self, path: &str) -> bool {
        match self.origin() {
            Origin::Files { tensors, .. } => {
                tensors.get(path).is_some_and(|entry| matches!(entry.stored.storage, StorageType::Block(_)))
            }
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => false,
        }
    }

    /// Records that the tensor `path` is read.
    fn record(&self, path: &str, shape: &[usize]) {
        self.ledger().read.insert(path.to_string(), shape.to_vec());
    }

    /// [`look_up`](Self::look_up), with initial values for a tensor that a checkpoint does not have.
    fn look_up_or_fresh(&self, path: &str, expected: &[usize], fresh: Option<Fresh>) -> Result<Found<'_>> {
        match (self.origin(), fresh) {
            (Origin::Files { tensors, .. }, Some(fresh)) if !tensors.contains_key(path) => {
                self.record(path, expected);
                Ok(Found::Fresh(fresh))
            }
            _ => self.look_up(path, expected),
        }
    }

    /// Looks up the tensor `path` and records the result.
    fn look_up(&self, path: &str, expected: &[usize]) -> Result<Found<'_>> {
        self.shared.progress.check()?;
        let mut ledger = self.ledger();
        match self.origin() {
            Origin::Nothing | Origin::Seed(_) | Origin::Fresh(_) if ledger.read.len() >= MOST_TENSORS => {
                Err(Error::unsupported(format!("the config has more than {MOST_TENSORS} tensors")))
            }
            Origin::Nothing => {
                ledger.read.insert(path.to_string(), expected.to_vec());
                Ok(Found::Nothing)
            }
            Origin::Seed(seed) => {
                ledger.read.insert(path.to_string(), expected.to_vec());
                Ok(Found::Seed(*seed))
            }
            Origin::Fresh(fresh) => {
                ledger.read.insert(path.to_string(), expected.to_vec());
                Ok(Found::Fresh(*fresh))
            }
            Origin::Files { tensors, label, .. } => match tensors.get(path) {
                Some(entry) if entry.stored.shape == expected => {
                    if let Some(task) = &*self.task() {
                        task.advance(entry.stored.bytes.len() as u64);
                    }
                    ledger.read.insert(path.to_string(), expected.to_vec());
                    Ok(Found::Stored(&entry.stored))
                }
                other => {
                    match other {
                        Some(entry) => {
                            let shapes = (entry.stored.shape.clone(), expected.to_vec());
                            ledger.misshaped.insert(path.to_string(), shapes);
                        }
                        None => {
                            ledger.missing.insert(path.to_string(), expected.to_vec());
                        }
                    }
                    if ledger.problems() >= ENOUGH_PROBLEMS {
                        return Err(ledger.report(tensors, &[]).at(label));
                    }
                    Ok(Found::Nothing)
                }
            },
        }
    }

    /// The stored tensor `path`, or random values in the same form; `None` if it is missing, which is recorded, or
    /// there are no weights.
    fn stored(&self, path: &str, shape: &[usize]) -> Result<Option<StoredTensor>> {
        match self.look_up(path, shape)? {
            Found::Nothing => Ok(None),
            found => self.stored_of(found, path, shape).map(Some),
        }
    }

    /// The tensor that was found, or random values in the same form.
    fn stored_of(&self, found: Found, path: &str, shape: &[usize]) -> Result<StoredTensor> {
        Ok(match found {
            Found::Stored(stored) => stored.clone(),
            Found::Seed(seed) => in_floats(&seeded_values(seed, path, shape)?, shape),
            Found::Fresh(fresh) => in_floats(&fresh::values(fresh, path, shape)?, shape),
            Found::Nothing => return Err(Error::input(format!("{path} has no values"))),
        })
    }

    fn place(&self, name: &str, matrix: MatrixUse, outputs: usize, inputs: usize) -> Result<Matrix> {
        let path = self.path(name);
        let layout = match matrix {
            MatrixUse::TransposedLinear if !self.in_blocks(&path) => Layout::InOut,
            _ => Layout::OutIn,
        };
        let shape = match layout {
            Layout::OutIn => [outputs, inputs],
            Layout::InOut => [inputs, outputs],
        };
        let quantize = self.runtime().quantize().and_then(|kind| matrix.format(kind, inputs));
        self.ledger().matrices.insert(path.clone(), matrix);
        if let Some(variable) = self.variable(&path, &shape)? {
            return Matrix::variable(variable, layout, self.compute());
        }
        let found = self.look_up(&path, &shape)?;
        if matches!(found, Found::Nothing) {
            return Ok(Matrix::absent(outputs, inputs));
        }
        let place = || {
            let stored = self.stored_of(found, &path, &shape)?;
            Ok(vec![self.place_stored(&stored, matrix, layout, (outputs, inputs), quantize)?])
        };
        let placed = self.frozen_matrices(&path, place)?;
        let placed = placed.into_iter().next().unwrap_or_else(|| Matrix::absent(outputs, inputs));
        self.adapted(placed, &path, matrix.into())
    }

    /// Loads a stored matrix for the runtime.
    fn place_stored(
        &self,
        stored: &StoredTensor,
        matrix: MatrixUse,
        layout: Layout,
        shape: (usize, usize),
        quantize: Option<GgmlDType>,
    ) -> Result<Matrix> {
        match kernels_serve(self.runtime().device()) {
            true => self.place_on_host(stored, layout, shape, quantize),
            false => self.place_on_device(stored, matrix, layout, shape, quantize),
        }
    }

    /// The compute type of matrix multiplications on the CPU.
    fn compute(&self) -> Compute {
        match self.runtime().precision() {
            Precision::Bf16 => Compute::Bf16,
            Precision::F32 | Precision::F16 => Compute::F32,
        }
    }

    fn place_on_host(
        &self,
        stored: &StoredTensor,
        layout: Layout,
        shape: (usize, usize),
        quantize: Option<GgmlDType>,
    ) -> Result<Matrix> {
        let (runtime, compute) = (self.runtime(), self.compute());
        match (stored.storage, quantize) {
            (StorageType::Block(kind), _) if !runtime.dequantize() => {
                return Matrix::blocks(stored.bytes.clone(), kind, shape);
            }
            (StorageType::Block(_), _) => {}
            (_, Some(kind)) => {
                let bytes = quantized(stored, layout, shape, kind)?;
                return Matrix::blocks(bytes, kind, shape);
            }
            (StorageType::F32, None) if compute == Compute::F32 => {
                return Ok(Matrix::dense(stored.bytes.clone(), Elem::F32, layout, compute, shape));
            }
            (StorageType::F16, None) if compute == Compute::F32 => {
                return Ok(Matrix::dense(stored.bytes.clone(), Elem::F16, layout, compute, shape));
            }
            (StorageType::BF16, None) => {
                return Ok(Matrix::dense(stored.bytes.clone(), Elem::Bf16, layout, compute, shape));
            }
            _ => {}
        }
        let values = widen(stored)?;
        stored.bytes.release();
        match compute {
            Compute::F32 => Ok(Matrix::dense(floats(&values), Elem::F32, layout, compute, shape)),
            Compute::Bf16 => Ok(Matrix::dense(bfloats(&values), Elem::Bf16, layout, compute, shape)),
        }
    }

    fn place_on_device(
        &self,
        stored: &StoredTensor,
        matrix: MatrixUse,
        layout: Layout,
        shape: (usize, usize),
        quantize: Option<GgmlDType>,
    ) -> Result<Matrix> {
        let device = self.runtime().device();
        let blocks = match (stored.storage, quantize) {
            (StorageType::Block(kind), _) if !self.runtime().dequantize() => {
                Some((kind, stored.bytes.clone()))
            }
            (StorageType::Block(_), _) | (_, None) => None,
            (_, Some(kind)) => Some((kind, quantized(stored, layout, shape, kind)?)),
        };
        if let Some((kind, bytes)) = blocks {
            let storage = QStorage::from_data(std::borrow::Cow::Borrowed(&bytes[..]), device, kind)?;
            let rows = (matrix == MatrixUse::Embedding).then_some(bytes);
            return Matrix::device_blocks(QTensor::new(storage, shape)?, rows);
        }
        let values = Tensor::from_vec(widen(stored)?, stored.shape.clone(), &Device::Cpu)?
            .to_dtype(self.runtime().activations())?;
        let values = match layout {
            Layout::OutIn => values,
            Layout::InOut => values.t()?.contiguous()?,
        };
        Matrix::device(values.to_device(device)?)
    }
}

/// `values` as a stored tensor of `shape`.
fn in_floats(values: &[f32], shape: &[usize]) -> StoredTensor {
    StoredTensor { storage: StorageType::F32, shape: shape.to_vec(), bytes: floats(values) }
}

/// Splits the tensor `official` along its first axis, without copying.
pub(crate) fn entries_of(official: &str, stored: &StoredTensor) -> Result<Vec<StoredTensor>> {
    let whole =
        || Error::new(ErrorKind::Mismatch, format!("{official} of shape {:?} cannot be split", stored.shape));
    let (count, shape) = stored.shape.split_first().ok_or_else(whole)?;
    let length = stored.storage.byte_len(shape).filter(|length| *length > 0).ok_or_else(whole)?;
    let entry = |i: usize| {
        let bytes = stored.bytes.slice(i * length..(i + 1) * length).ok_or_else(whole)?;
        Ok(StoredTensor { storage: stored.storage, shape: shape.to_vec(), bytes })
    };
    (0..*count).map(entry).collect()
}

/// The name of a checkpoint in messages: its file, or the folder of its shards.
fn label_of(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint.files() {
        [file] => file.clone(),
        files => files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).to_path_buf(),
    }
}

/// The entries named `path` or beginning with `path.`.
fn below<'a>(
    tensors: &'a BTreeMap<String, Entry>,
    path: &str,
) -> impl Iterator<Item = (&'a String, &'a Entry)> {
    tensors
        .range(path.to_string()..)
        .take_while({
            let path = path.to_string();
            move |(name, _)| name.starts_with(&path)
        })
        .filter({
            let length = path.len();
            move |(name, _)| length == 0 || matches!(name.as_bytes().get(length), None | Some(b'.'))
        })
}

#[derive(Clone, Copy)]
enum Found<'a> {
    Stored(&'a StoredTensor),
    Seed(u64),
    Fresh(Fresh),
    Nothing,
}

impl Ledger {
    fn problems(&self) -> usize {
        self.missing.len() + self.misshaped.len() + self.mistyped.len()
    }

    /// The error with all problems, at most five lines of each kind.
    fn report(&self, tensors: &BTreeMap<String, Entry>, unread: &[&Entry]) -> Error {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let mut counts = Vec::new();
        if !self.missing.is_empty() {
            counts.push(format!("{} tensor{} missing", self.missing.len(), plural(self.missing.len())));
        }
        if !self.misshaped.is_empty() {
            counts.push(format!("{} of another shape", self.misshaped.len()));
        }
        if !self.mistyped.is_empty() {
            counts.push(format!("{} of another type", self.mistyped.len()));
        }
        if !unread.is_empty() {
            counts.push(format!("{} that this model does not have", unread.len()));
        }
        let mut lines = String::new();
        for (name, expected) in self.missing.iter().take(5) {
            let _ = writeln!(lines, "missing  {name}  {expected:?}");
            let unread = unread.iter().map(|entry| entry.official.as_str());
            if let Some(near) = nearest(name, unread).first() {
                let _ = writeln!(lines, "         (the file has {near})");
            }
        }
        more(&mut lines, self.missing.len());
        for (name, (found, expected)) in self.misshaped.iter().take(5) {
            let official = tensors.get(name).map_or(name.as_str(), |entry| &entry.official);
            let _ =
                writeln!(lines, "shape    {official}  {found:?} in the file, {expected:?} from the config");
        }
        more(&mut lines, self.misshaped.len());
        for (name, found) in self.mistyped.iter().take(5) {
            let official = tensors.get(name).map_or(name.as_str(), |entry| &entry.official);
            let _ = writeln!(lines, "type     {official}  {found} in the file, expected bytes");
        }
        more(&mut lines, self.mistyped.len());
        for entry in unread.iter().take(5) {
            let _ = writeln!(lines, "unread   {}  {:?}", entry.official, entry.stored.shape);
        }
        more(&mut lines, unread.len());
        let first = match counts.is_empty() {
            true => "the checkpoint does not match its config".to_string(),
            false => counts.join(", "),
        };
        Error::new(ErrorKind::Mismatch, first).hint(lines.trim_end())
    }
}

fn more(lines: &mut String, total: usize) {
    if total > 5 {
        let _ = writeln!(lines, "         and {} more", total - 5);
    }
}

fn count(shape: &[usize]) -> u64 {
    shape.iter().map(|n| *n as u64).fold(1, u64::saturating_mul)
}

/// Converts the elements of `stored` to float32, row-major; quantized blocks are dequantized.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for element types that are not supported for weights.
pub fn widen(stored: &StoredTensor) -> Result<Vec<f32>> {
    let elements = stored.shape.iter().product();
    let bytes = &stored.bytes[..];
    let mut values = vec![0f32; elements];
    match stored.storage {
        StorageType::F32 => host::widen(Elem::F32, bytes, &mut values),
        StorageType::F16 => host::widen(Elem::F16, bytes, &mut values),
        StorageType::BF16 => host::widen(Elem::Bf16, bytes, &mut values),
        StorageType::Block(kind) => blocks::dequantize(kind, bytes, &mut values)?,
        StorageType::F64 => {
            for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*raw) as f32;
            }
        }
        other => {
            return Err(Error::unsupported(format!("weights stored as {other:?} are not implemented")));
        }
    }
    Ok(values)
}

/// Loads all tensors of a file of inputs or outputs onto the CPU: integers as int64, floats as float32.
///
/// # Errors
/// As [`Checkpoint::open`], and for unsupported element types.
pub fn tensors(path: &Path) -> Result<Tensors> {
    let file = Checkpoint::open(path)?;
    let tensor = |(name, stored): (&str, &StoredTensor)| match values(stored) {
        Ok(tensor) => Ok((name.to_string(), tensor)),
        Err(error) => Err(error.context(name).at(path)),
    };
    file.iter().map(tensor).collect()
}

fn values(stored: &StoredTensor) -> Result<Tensor> {
    let raw = |dtype| Tensor::from_raw_buffer(&stored.bytes, dtype, &stored.shape, &Device::Cpu);
    Ok(match stored.storage {
        StorageType::I64 => raw(DType::I64)?,
        StorageType::I32 => raw(DType::I32)?.to_dtype(DType::I64)?,
        StorageType::U8 | StorageType::Bool => raw(DType::U8)?.to_dtype(DType::I64)?,
        _ => Tensor::from_vec(widen(stored)?, stored.shape.as_slice(), &Device::Cpu)?,
    })
}

/// `values` as float32 bytes.
fn floats(values: &[f32]) -> Bytes {
    Bytes::filled(4 * values.len(), |out| {
        for (raw, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *raw = value.to_le_bytes();
        }
    })
}

/// `values` as bfloat16 bytes.
fn bfloats(values: &[f32]) -> Bytes {
    Bytes::filled(2 * values.len(), |out| {
        for (raw, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *raw = half::bf16::from_f32(*value).to_le_bytes();
        }
    })
}

/// Quantizes a matrix of `shape` `(outputs, inputs)` to blocks of `kind`, and releases its mapped pages.
pub(crate) fn quantized(
    stored: &StoredTensor,
    layout: Layout,
    shape: (usize, usize),
    kind: GgmlDType,
) -> Result<Bytes> {
    let (outputs, inputs) = shape;
    let mut values = widen(stored)?;
    stored.bytes.release();
    if layout == Layout::InOut {
        values = transfer::to_host(&Tensor::from_vec(values, (inputs, outputs), &Device::Cpu)?.t()?)?;
    }
    blocks::quantize(kind, &values)
}

/// Uniform random values in ±0.05 (around 1 for vectors named `weight`, which are norms), determined by seed and name.
fn seeded_values(seed: u64, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (elements, mut values) = reserve(path, shape)?;
    let centre = if shape.len() == 1 && path.ends_with("weight") { 1.0 } else { 0.0 };
    let value = |bits: u64| {
        let unit = (bits >> 40) as f32 / (1u64 << 24) as f32;
        centre + (unit - 0.5) * 0.1
    };
    values.extend(seeded_bits(seed, path).map(value).take(elements));
    Ok(values)
}

/// Number of elements of `shape`, and a vector with capacity for them.
fn reserve<T>(path: &str, shape: &[usize]) -> Result<(usize, Vec<T>)> {
    let elements: usize = shape
        .iter()
        .try_fold(1usize, |product, n| product.checked_mul(*n))
        .ok_or_else(|| Error::input(format!("{path} of shape {shape:?} is too large")))?;
    let mut values = Vec::new();
    values.try_reserve_exact(elements).map_err(|e| {
        Error::input(format!("{path} of shape {shape:?} does not fit in memory")).caused_by(e)
    })?;
    Ok((elements, values))
}

/// Random bits determined by seed and name: SplitMix64 (Steele et al. 2014).
fn seeded_bits(seed: u64, path: &str) -> impl Iterator<Item = u64> {
    let mut state = path.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
