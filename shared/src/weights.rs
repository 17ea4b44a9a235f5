//! The one reader a model file asks for its tensors: by path, by shape, by the official names.
//!
//! Whatever is missing or misshaped is noted and an empty stand-in handed out, so that one load reports every problem
//! at once; [`Weights::finish`] turns the notes into one error. The same walk over a seed makes test weights, and
//! over nothing it counts parameters before a download.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{Bytes, Checkpoint, Storage, Stored};
use crate::error::nearest;
use crate::item::Tensors;
use crate::kernels::matmul::{Compute, Elem, Layout};
use crate::nn::{Matrix, blocks, host};
use crate::progress::{Reporter, Task, Unit};
use crate::runtime::{Precision, Runtime, kernels_serve};
use crate::{Error, ErrorKind, Result};

mod experts;
mod stack;

pub use stack::Piece;

/// Problems after which a load stops looking for more: a config that promises a million layers must not keep it busy.
const ENOUGH_PROBLEMS: usize = 1000;

/// Tensors after which a config without a checkpoint is not believed.
const MOST_TENSORS: usize = 100_000;

/// Bytes of a copied tensor whose pages are worth giving back.
const LARGE: usize = 1 << 20;

/// What a file's tensor is called here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// By its own name.
    Keep,
    /// By the name the model file uses.
    To(String),
    /// Entry `i` of its first axis by `before`, `i` and `after`: layers that a release keeps in one stack.
    Entries {
        /// What stands before the number.
        before: String,
        /// What follows it.
        after: String,
    },
    /// Not at all: a buffer that carries no weights (say why where the table is written).
    Ignore,
}

impl Name {
    /// What `rename` calls `name` once `prefix` is off, if it has it: the name of the base model inside a model with a
    /// head, which the reference takes or leaves.
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

    /// Whether `name` is of a buffer that older releases hold and every network computes for itself: the frequencies of
    /// a rotary embedding, counted positions. The reference passes over both, wherever they stand.
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

/// A place in a checkpoint. Cheap to clone; [`at`](Weights::at) descends.
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
    origin: Origin,
    runtime: Runtime,
    ledger: Mutex<Ledger>,
    progress: Reporter,
    /// The load as its progress shows it, until it ends.
    task: Mutex<Option<Box<dyn Task>>>,
}

enum Origin {
    Files { tensors: BTreeMap<String, Entry>, label: PathBuf },
    Seed(u64),
    Nothing,
}

struct Entry {
    stored: Stored,
    /// What the file calls it.
    official: String,
}

#[derive(Default)]
struct Ledger {
    read: BTreeMap<String, Vec<usize>>,
    /// What the matrices among them are for.
    matrices: BTreeMap<String, MatrixUse>,
    /// Names left unread on purpose.
    skipped: BTreeSet<String>,
    /// Names asked for that the file lacks, and the shapes wanted.
    missing: BTreeMap<String, Vec<usize>>,
    /// Names whose shapes differ: in the file, wanted.
    misshaped: BTreeMap<String, (Vec<usize>, Vec<usize>)>,
    /// Names that should be bytes, and what the file holds.
    mistyped: BTreeMap<String, Storage>,
    /// Names of bytes that hold weights, and how many.
    packed: BTreeMap<String, u64>,
    /// Matrices handed out in place of those that a stack should hold.
    stand_ins: usize,
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixUse {
    /// It multiplies activations; stored `[outputs, inputs]`.
    Map,
    /// It multiplies activations; stored `[inputs, outputs]`.
    TransposedMap,
    /// Its rows are looked up; stored `[count, width]`.
    Table,
    /// It is a stack of maps; stored `[count, inputs, outputs]`, in blocks `[count, outputs, inputs]`.
    Experts,
}

impl MatrixUse {
    /// The format a matrix of so many `inputs` is brought to when weights are wanted in `kind`; none if its rows fill
    /// no block. Tables never go below 8 bits.
    pub fn format(self, kind: GgmlDType, inputs: usize) -> Option<GgmlDType> {
        match self {
            Self::Map | Self::TransposedMap | Self::Experts => blocks::fitting(kind, inputs),
            Self::Table => blocks::fitting(GgmlDType::Q8_0, inputs),
        }
    }

    /// The inputs of a matrix, or of each of a stack, that is stored in `shape` and not in blocks; none if that is no
    /// shape of one.
    pub fn inputs(self, shape: &[usize]) -> Option<usize> {
        match (self, shape) {
            (Self::Map | Self::Table, [_, inputs])
            | (Self::TransposedMap, [inputs, _])
            | (Self::Experts, [_, inputs, _]) => Some(*inputs),
            _ => None,
        }
    }
}

/// What a load walked over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Names and shapes, by name.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Those among them that may be stored in blocks, and what they are for.
    pub matrices: BTreeMap<String, MatrixUse>,
    /// Those among them that are bytes of a format of the release's own, and how many weights each holds.
    pub packed: BTreeMap<String, u64>,
    /// Weights in all of them.
    pub parameters: u64,
}

impl Weights {
    /// Over the tensors of `checkpoint`, each under the name that `rename` gives it.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if two tensors end up under one name; those of
    /// [`Runtime::kernels`].
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
                    let entry = |(i, stored): (usize, Stored)| {
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
                    let message = format!("{} and {official} are both {name}", other.official);
                    return Err(Error::new(ErrorKind::Mismatch, message).at(&label));
                }
            }
        }
        Ok(Self::new(Origin::Files { tensors, label }, runtime))
    }

    /// Test weights: every tensor is made from `seed` and its own name, small and never zero.
    pub fn seeded(seed: u64, runtime: Runtime) -> Self {
        Self::new(Origin::Seed(seed), runtime)
    }

    /// Of a release that holds no weights, called `label` in messages: whatever is asked for is missing.
    pub fn none(label: impl Into<PathBuf>, runtime: Runtime) -> Self {
        Self::new(Origin::Files { tensors: BTreeMap::new(), label: label.into() }, runtime)
    }

    /// No weights at all: a load over it is an inventory.
    pub fn nothing() -> Self {
        Self::new(Origin::Nothing, Runtime::cpu())
    }

    fn new(origin: Origin, runtime: Runtime) -> Self {
        Self::reporting(origin, runtime, Reporter::default(), None)
    }

    fn reporting(origin: Origin, runtime: Runtime, progress: Reporter, task: Option<Box<dyn Task>>) -> Self {
        let task = Mutex::new(task);
        let shared = Shared { origin, runtime, ledger: Mutex::default(), progress, task };
        Self { shared: Arc::new(shared), prefix: String::new() }
    }

    /// The same, before anything is read, with the bytes of its tensors reported to `progress` as they are read. Where
    /// that cancels, the next tensor is [`Cancelled`](ErrorKind::Cancelled).
    pub fn with_progress(self, progress: &Reporter) -> Self {
        let shared = match Arc::try_unwrap(self.shared) {
            Ok(shared) => shared,
            Err(shared) => return Self { shared, prefix: self.prefix },
        };
        let task = match &shared.origin {
            Origin::Files { tensors, .. } if !tensors.is_empty() => {
                let bytes = tensors.values().map(|entry| entry.stored.bytes.len() as u64).sum();
                Some(progress.begin("loading", Unit::Bytes, Some(bytes)))
            }
            _ => None,
        };
        Self::reporting(shared.origin, shared.runtime, progress.clone(), task)
    }

    /// The place `name` below this one; `""` is this one.
    pub fn at(&self, name: &str) -> Self {
        Self { shared: self.shared.clone(), prefix: self.path(name) }
    }

    /// The place of entry `index` of the list `name`: `at_index("h", 3)` is `h.3`.
    pub fn at_index(&self, name: &str, index: usize) -> Self {
        self.at(&format!("{name}.{index}"))
    }

    /// Whether the checkpoint has any tensor at or below `name`. Where there is no checkpoint (a seed, an inventory),
    /// `otherwise` is the answer.
    pub fn has(&self, name: &str, otherwise: bool) -> bool {
        match &self.shared.origin {
            Origin::Files { tensors, .. } => below(tensors, &self.path(name)).next().is_some(),
            Origin::Seed(_) | Origin::Nothing => otherwise,
        }
    }

    /// Whether the checkpoint holds the tensors `name` and `other`, and they differ.
    pub fn differ(&self, name: &str, other: &str) -> bool {
        let Origin::Files { tensors, .. } = &self.shared.origin else { return false };
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

    /// The shape of the tensor `name` in the checkpoint, if it is there. Where there is no checkpoint, none.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        match &self.shared.origin {
            Origin::Files { tensors, .. } => Some(&tensors.get(&self.path(name))?.stored.shape),
            Origin::Seed(_) | Origin::Nothing => None,
        }
    }

    /// Leaves what the file may hold at or below `name` unread on purpose: a copy of a tied table, a head this
    /// network does not have.
    pub fn skip(&self, name: &str) {
        if let Origin::Files { tensors, .. } = &self.shared.origin {
            let path = self.path(name);
            self.ledger().skipped.extend(below(tensors, &path).map(|(name, _)| name.clone()));
        }
    }

    /// Whether a load over these is an inventory: there is nothing to read.
    pub fn is_nothing(&self) -> bool {
        matches!(self.shared.origin, Origin::Nothing)
    }

    /// What everything here is loaded for.
    pub fn runtime(&self) -> &Runtime {
        &self.shared.runtime
    }

    /// Whether these have so few bits, in the file or as the runtime wants them, that keys and values may be kept in
    /// half precision ([`Cache::with_half`](crate::attention::Cache::with_half)).
    pub fn half_cache(&self) -> bool {
        let runtime = self.runtime();
        let in_blocks = match &self.shared.origin {
            Origin::Files { tensors, .. } => {
                tensors.values().any(|entry| matches!(entry.stored.storage, Storage::Block(_)))
            }
            Origin::Seed(_) | Origin::Nothing => false,
        };
        let kept = in_blocks && !runtime.dequantize();
        kept || runtime.quantize().is_some() || runtime.precision() == Precision::Bf16
    }

    /// The tensor `name`, dense, in the type of activations, on the device. For norms, biases and tables that enter
    /// arithmetic directly; matrices that multiply activations are [`matrix`](Weights::matrix).
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let path = self.path(name);
        let runtime = self.runtime();
        let values = match self.ask(&path, shape)? {
            Found::Stored(stored) => {
                let values = widen(stored)?;
                // The copy is what is used from here on.
                if stored.bytes.len() >= LARGE {
                    stored.bytes.release();
                }
                values
            }
            Found::Seed(seed) => seeded_values(seed, &path, shape)?,
            Found::Nothing => {
                return Ok(Tensor::zeros((), runtime.activations(), runtime.device())?.broadcast_as(shape)?);
            }
        };
        Ok(Tensor::from_vec(values, shape, runtime.device())?.to_dtype(runtime.activations())?)
    }

    /// The matrix `name` of `[outputs, inputs]`, as stored, or as the runtime wants weights stored.
    pub fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::Map, outputs, inputs)
    }

    /// The matrix `name` that the file holds as `[inputs, outputs]`; in blocks, which run along the inputs, as
    /// `[outputs, inputs]`.
    pub fn matrix_transposed(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::TransposedMap, outputs, inputs)
    }

    /// The matrix `name` of `[count, width]` whose rows are looked up. Quantising never takes it below 8 bits.
    pub fn table(&self, name: &str, count: usize, width: usize) -> Result<Matrix> {
        self.place(name, MatrixUse::Table, count, width)
    }

    /// The tensor `name` of `shape` as a matrix whose inputs are all axes but the first: a convolution that looks at
    /// each place once. It is read where it lies and never quantised.
    pub(crate) fn unfolded(&self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let path = self.path(name);
        let (outputs, inputs) = (shape[0], shape[1..].iter().fold(1, |all: usize, n| all.saturating_mul(*n)));
        let Some(stored) = self.stored(&path, shape)? else { return Ok(Matrix::absent(outputs, inputs)) };
        let stored = Stored { shape: vec![outputs, inputs], ..stored };
        self.place_stored(&stored, MatrixUse::Map, Layout::OutIn, (outputs, inputs), None)
    }

    /// Ends the load.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) with every tensor that is missing, of another shape, or was never asked for;
    /// those of [`Runtime::kernels`].
    pub fn finish(&self) -> Result<Inventory> {
        Runtime::kernels()?;
        self.task().take();
        let ledger = self.ledger();
        if let Origin::Files { tensors, label } = &self.shared.origin {
            let unread: Vec<&Entry> = tensors
                .iter()
                .filter(|(name, _)| {
                    !(ledger.read.contains_key(*name)
                        || ledger.skipped.contains(*name)
                        || ledger.misshaped.contains_key(*name))
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
        Ok(Inventory { tensors, matrices, packed, parameters })
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
        match &self.shared.origin {
            Origin::Files { tensors, .. } => {
                tensors.get(path).is_some_and(|entry| matches!(entry.stored.storage, Storage::Block(_)))
            }
            Origin::Seed(_) | Origin::Nothing => false,
        }
    }

    /// Looks `path` up and notes what was found.
    fn ask(&self, path: &str, wanted: &[usize]) -> Result<Found<'_>> {
        self.shared.progress.check()?;
        let mut ledger = self.ledger();
        match &self.shared.origin {
            Origin::Nothing | Origin::Seed(_) if ledger.read.len() >= MOST_TENSORS => {
                Err(Error::unsupported(format!("the config asks for more than {MOST_TENSORS} tensors")))
            }
            Origin::Nothing => {
                ledger.read.insert(path.to_string(), wanted.to_vec());
                Ok(Found::Nothing)
            }
            Origin::Seed(seed) => {
                ledger.read.insert(path.to_string(), wanted.to_vec());
                Ok(Found::Seed(*seed))
            }
            Origin::Files { tensors, label } => match tensors.get(path) {
                Some(entry) if entry.stored.shape == wanted => {
                    if let Some(task) = &*self.task() {
                        task.advance(entry.stored.bytes.len() as u64);
                    }
                    ledger.read.insert(path.to_string(), wanted.to_vec());
                    Ok(Found::Stored(&entry.stored))
                }
                other => {
                    match other {
                        Some(entry) => {
                            let shapes = (entry.stored.shape.clone(), wanted.to_vec());
                            ledger.misshaped.insert(path.to_string(), shapes);
                        }
                        None => {
                            ledger.missing.insert(path.to_string(), wanted.to_vec());
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

    /// What is at `path`, as a file holds it or would hold it; none if it is missing, which is noted, or there is nothing
    /// to read.
    fn stored(&self, path: &str, shape: &[usize]) -> Result<Option<Stored>> {
        Ok(match self.ask(path, shape)? {
            Found::Nothing => None,
            Found::Stored(stored) => Some(stored.clone()),
            Found::Seed(seed) => {
                let bytes = floats(&seeded_values(seed, path, shape)?);
                Some(Stored { storage: Storage::F32, shape: shape.to_vec(), bytes })
            }
        })
    }

    fn place(&self, name: &str, matrix: MatrixUse, outputs: usize, inputs: usize) -> Result<Matrix> {
        let path = self.path(name);
        let layout = match matrix {
            MatrixUse::TransposedMap if !self.in_blocks(&path) => Layout::InOut,
            _ => Layout::OutIn,
        };
        let shape = match layout {
            Layout::OutIn => [outputs, inputs],
            Layout::InOut => [inputs, outputs],
        };
        let quantize = self.runtime().quantize().and_then(|kind| matrix.format(kind, inputs));
        self.ledger().matrices.insert(path.clone(), matrix);
        let Some(stored) = self.stored(&path, &shape)? else { return Ok(Matrix::absent(outputs, inputs)) };
        self.place_stored(&stored, matrix, layout, (outputs, inputs), quantize)
    }

    /// The matrix in `stored` where the runtime wants it.
    fn place_stored(
        &self,
        stored: &Stored,
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

    /// What the CPU's products are computed in.
    fn compute(&self) -> Compute {
        match self.runtime().precision() {
            Precision::Bf16 => Compute::Bf16,
            Precision::F32 | Precision::F16 => Compute::F32,
        }
    }

    fn place_on_host(
        &self,
        stored: &Stored,
        layout: Layout,
        shape: (usize, usize),
        quantize: Option<GgmlDType>,
    ) -> Result<Matrix> {
        let (runtime, compute) = (self.runtime(), self.compute());
        match (stored.storage, quantize) {
            (Storage::Block(kind), _) if !runtime.dequantize() => {
                return Matrix::blocks(stored.bytes.clone(), kind, shape);
            }
            (Storage::Block(_), _) => {}
            (_, Some(kind)) => {
                let bytes = quantized(stored, layout, shape, kind)?;
                return Matrix::blocks(bytes, kind, shape);
            }
            (Storage::F32, None) if compute == Compute::F32 => {
                return Ok(Matrix::dense(stored.bytes.clone(), Elem::F32, layout, compute, shape));
            }
            (Storage::F16, None) if compute == Compute::F32 => {
                return Ok(Matrix::dense(stored.bytes.clone(), Elem::F16, layout, compute, shape));
            }
            (Storage::BF16, None) => {
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
        stored: &Stored,
        matrix: MatrixUse,
        layout: Layout,
        shape: (usize, usize),
        quantize: Option<GgmlDType>,
    ) -> Result<Matrix> {
        let device = self.runtime().device();
        let blocks = match (stored.storage, quantize) {
            (Storage::Block(kind), _) if !self.runtime().dequantize() => Some((kind, stored.bytes.clone())),
            (Storage::Block(_), _) | (_, None) => None,
            (_, Some(kind)) => Some((kind, quantized(stored, layout, shape, kind)?)),
        };
        if let Some((kind, bytes)) = blocks {
            let storage = QStorage::from_data(std::borrow::Cow::Borrowed(&bytes[..]), device, kind)?;
            let rows = (matrix == MatrixUse::Table).then_some(bytes);
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

/// The entries of the first axis of `stored`, called `official` in its file, where they lie.
pub(crate) fn entries_of(official: &str, stored: &Stored) -> Result<Vec<Stored>> {
    let whole = || Error::new(ErrorKind::Mismatch, format!("{official} {:?} is no stack", stored.shape));
    let (count, shape) = stored.shape.split_first().ok_or_else(whole)?;
    let length = stored.storage.byte_len(shape).filter(|length| *length > 0).ok_or_else(whole)?;
    let entry = |i: usize| {
        let bytes = stored.bytes.slice(i * length..(i + 1) * length).ok_or_else(whole)?;
        Ok(Stored { storage: stored.storage, shape: shape.to_vec(), bytes })
    };
    (0..*count).map(entry).collect()
}

/// What to call a checkpoint in messages: its file, or the folder of its shards.
fn label_of(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint.files() {
        [file] => file.clone(),
        files => files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).to_path_buf(),
    }
}

/// The entries called `path`, or `path.` and more.
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

enum Found<'a> {
    Stored(&'a Stored),
    Seed(u64),
    Nothing,
}

impl Ledger {
    fn problems(&self) -> usize {
        self.missing.len() + self.misshaped.len() + self.mistyped.len()
    }

    /// Everything wrong, five lines a kind at most.
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
        for (name, wanted) in self.missing.iter().take(5) {
            let _ = writeln!(lines, "missing  {name}  {wanted:?}");
            let unread = unread.iter().map(|entry| entry.official.as_str());
            if let Some(near) = nearest(name, unread).first() {
                let _ = writeln!(lines, "         (the file has {near})");
            }
        }
        more(&mut lines, self.missing.len());
        for (name, (found, wanted)) in self.misshaped.iter().take(5) {
            let official = tensors.get(name).map_or(name.as_str(), |entry| &entry.official);
            let _ = writeln!(lines, "shape    {official}  {found:?} in the file, {wanted:?} from the config");
        }
        more(&mut lines, self.misshaped.len());
        for (name, found) in self.mistyped.iter().take(5) {
            let official = tensors.get(name).map_or(name.as_str(), |entry| &entry.official);
            let _ = writeln!(lines, "type     {official}  {found} in the file, bytes wanted");
        }
        more(&mut lines, self.mistyped.len());
        for entry in unread.iter().take(5) {
            let _ = writeln!(lines, "unread   {}  {:?}", entry.official, entry.stored.shape);
        }
        more(&mut lines, unread.len());
        let first = match counts.is_empty() {
            true => "the checkpoint and its config do not fit each other".to_string(),
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

/// The elements of `stored` as float32, row-major.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for a type of element that is no weight.
pub fn widen(stored: &Stored) -> Result<Vec<f32>> {
    let elements = stored.shape.iter().product();
    let bytes = &stored.bytes[..];
    let mut values = vec![0f32; elements];
    match stored.storage {
        Storage::F32 => host::widen(Elem::F32, bytes, &mut values),
        Storage::F16 => host::widen(Elem::F16, bytes, &mut values),
        Storage::BF16 => host::widen(Elem::Bf16, bytes, &mut values),
        Storage::Block(kind) => blocks::dequantize(kind, bytes, &mut values)?,
        Storage::F64 => {
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

/// The tensors of a file that holds values, not weights: integers as int64, floats as float32, on the CPU.
///
/// # Errors
/// As [`Checkpoint::open`], and for elements that are no numbers of these kinds.
pub fn tensors(path: &Path) -> Result<Tensors> {
    let file = Checkpoint::open(path)?;
    let tensor = |(name, stored): (&str, &Stored)| match values(stored) {
        Ok(tensor) => Ok((name.to_string(), tensor)),
        Err(error) => Err(error.context(name).at(path)),
    };
    file.iter().map(tensor).collect()
}

fn values(stored: &Stored) -> Result<Tensor> {
    let raw = |dtype| Tensor::from_raw_buffer(&stored.bytes, dtype, &stored.shape, &Device::Cpu);
    Ok(match stored.storage {
        Storage::I64 => raw(DType::I64)?,
        Storage::I32 => raw(DType::I32)?.to_dtype(DType::I64)?,
        Storage::U8 | Storage::Bool => raw(DType::U8)?.to_dtype(DType::I64)?,
        _ => Tensor::from_vec(widen(stored)?, stored.shape.as_slice(), &Device::Cpu)?,
    })
}

/// `values` in memory of their own.
fn floats(values: &[f32]) -> Bytes {
    Bytes::filled(4 * values.len(), |room| {
        for (raw, value) in room.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *raw = value.to_le_bytes();
        }
    })
}

/// `values` rounded to bfloat16.
fn bfloats(values: &[f32]) -> Bytes {
    Bytes::filled(2 * values.len(), |room| {
        for (raw, value) in room.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *raw = half::bf16::from_f32(*value).to_le_bytes();
        }
    })
}

/// `stored` in blocks of `kind`, `(outputs, inputs)`; its pages are given back as they are done with.
pub(crate) fn quantized(
    stored: &Stored,
    layout: Layout,
    shape: (usize, usize),
    kind: GgmlDType,
) -> Result<Bytes> {
    let (outputs, inputs) = shape;
    let mut values = widen(stored)?;
    stored.bytes.release();
    if layout == Layout::InOut {
        values = Tensor::from_vec(values, (inputs, outputs), &Device::Cpu)?.t()?.flatten_all()?.to_vec1()?;
    }
    blocks::quantize(kind, &values)
}

/// Uniform values in ±0.05 (around 1 for vectors called weight, which are norms), a function of seed and name alone.
fn seeded_values(seed: u64, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (elements, mut values) = room(path, shape)?;
    let centre = if shape.len() == 1 && path.ends_with("weight") { 1.0 } else { 0.0 };
    let value = |bits: u64| {
        let unit = (bits >> 40) as f32 / (1u64 << 24) as f32;
        centre + (unit - 0.5) * 0.1
    };
    values.extend(seeded_bits(seed, path).map(value).take(elements));
    Ok(values)
}

/// How many elements `shape` has, and room for them.
fn room<T>(path: &str, shape: &[usize]) -> Result<(usize, Vec<T>)> {
    let elements: usize = shape
        .iter()
        .try_fold(1usize, |product, n| product.checked_mul(*n))
        .ok_or_else(|| Error::input(format!("{path} of {shape:?} is too large to make")))?;
    let mut values = Vec::new();
    values
        .try_reserve_exact(elements)
        .map_err(|e| Error::input(format!("{path} of {shape:?} does not fit in memory")).caused_by(e))?;
    Ok((elements, values))
}

/// Random bits, a function of seed and name alone: SplitMix64 (Steele et al. 2014).
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
