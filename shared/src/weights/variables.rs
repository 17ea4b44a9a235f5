//! Weights as variables, for training.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{D, DType, Device, Tensor, Var};
use regex::Regex;

use super::adapters::{Factors, Layer};
use super::{Found, Origin, Weights, widen};
use crate::adapter::{AdapterConfig, Selection, TargetModules};
use crate::checkpoint::StorageType;
use crate::nn::Matrix;
use crate::{Error, ErrorKind, Result};

/// Which tensors of a model are trained, by their names in the checkpoint.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Select {
    /// None: all weights are frozen.
    #[default]
    None,
    /// All.
    All,
    /// Those with a name in which one of the expressions matches.
    Matching(Vec<Regex>),
}

impl Select {
    /// The tensors with a name in which the regular expression `pattern` matches.
    ///
    /// ```
    /// use fauna_shared::weights::Select;
    /// let head = Select::matching(r"^(classifier|score)\.")?;
    /// assert!(head.takes("classifier.weight") && !head.takes("encoder.classifier.weight"));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if `pattern` is no regular expression.
    pub fn matching(pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern)
            .map_err(|e| Error::input(format!("\"{pattern}\" is not a regular expression")).caused_by(e))?;
        Ok(Self::Matching(vec![regex]))
    }

    /// Whether the tensor `name` is trained.
    pub fn takes(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.is_match(name)),
        }
    }
}

/// The trained tensors of a model: float32 variables, by their names in the checkpoint. [`Weights::with_variables`]
/// reads a model with them.
///
/// ```
/// use std::sync::Arc;
/// use fauna_shared::runtime::Runtime;
/// use fauna_shared::weights::{Select, Variables, Weights};
/// let weights = Weights::seeded(7, Runtime::cpu());
/// let variables = Arc::new(Variables::new(Select::matching("weight")?));
/// let norm = weights.with_variables(&variables, true).layer_norm("norm", 4, 1e-5)?;
/// assert_eq!(variables.names(), ["norm.weight"]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Variables {
    select: Select,
    /// Whether selected tensors that the checkpoint lacks get initial values.
    fresh: Option<Fresh>,
    /// The adapter that is trained.
    lora: Option<Lora>,
    of: Mutex<BTreeMap<String, Var>>,
    frozen: Mutex<Frozen>,
}

/// How tensors are initialized that no checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fresh {
    /// The seed of the random values.
    pub seed: u64,
    /// The standard deviation of matrices and embeddings (`initializer_range`); `None` for uniform values within one
    /// over the square root of the number of inputs, the default of torch.
    pub deviation: Option<f64>,
}

/// The path in the reference of a module, from its name in the checkpoint.
pub type Modules = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A LoRA adapter that is trained.
#[derive(Clone)]
#[non_exhaustive]
pub struct Lora {
    /// Its config.
    pub config: AdapterConfig,
    /// The modules that it targets.
    selection: Selection,
    /// The tensors of the output head, which `all-linear` leaves out.
    head: Regex,
    /// The seed of the initial factors.
    seed: u64,
    /// The path in the reference of each module of the checkpoint.
    modules: Modules,
}

impl Lora {
    /// An adapter with `config`, whose initial factors are drawn by `seed`. `head` matches the tensors of the output
    /// head, which `all-linear` leaves out; `modules` gives the path in the reference of a module of the checkpoint.
    ///
    /// # Errors
    /// Those of the patterns of `config`; [`Input`](ErrorKind::Input) if a number of `config` is out of range, or `head`
    /// is no regular expression.
    pub fn new(config: AdapterConfig, head: &str, seed: u64, modules: Modules) -> Result<Self> {
        config.check().map_err(|error| Error::input(error.message()))?;
        let selection = Selection::new(&config)?;
        let head = Regex::new(head).map_err(|e| Error::input(format!("head \"{head}\"")).caused_by(e))?;
        Ok(Self { config, selection, head, seed, modules })
    }

    /// The path in the reference of the module `name` of the checkpoint.
    pub(crate) fn module(&self, name: &str) -> String {
        (self.modules)(name)
    }

    /// The path of the module of `name`, a weight used as `layer`, if the adapter targets it.
    fn targets(&self, name: &str, layer: Layer) -> Option<String> {
        let module = (self.modules)(name.strip_suffix(".weight")?);
        let all = matches!(self.config.target_modules, None | Some(TargetModules::AllLinear));
        let left_out = all && (layer != Layer::Linear || self.head.is_match(name));
        (!left_out && self.selection.targets(&module).unwrap_or(false)).then_some(module)
    }
}

impl std::fmt::Debug for Lora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lora").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Frozen tensors that are computed from the checkpoint, kept from one load to the next.
#[derive(Debug, Default)]
struct Frozen {
    tensors: BTreeMap<String, Tensor>,
    matrices: BTreeMap<String, Vec<Matrix>>,
}

impl Variables {
    /// The variables that `select` takes, read from the checkpoint by the first load.
    pub fn new(select: Select) -> Self {
        Self { select, ..Self::default() }
    }

    /// The same with initial values for selected tensors that the checkpoint does not have, such as a new head.
    pub fn with_fresh(self, fresh: Fresh) -> Self {
        Self { fresh: Some(fresh), ..self }
    }

    /// The same with a LoRA adapter, whose factors are variables.
    pub fn with_lora(self, lora: Lora) -> Self {
        Self { lora: Some(lora), ..self }
    }

    /// The choice of the weights that are trained in full.
    pub fn select(&self) -> &Select {
        &self.select
    }

    /// The adapter that is trained.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The same choice of weights, none of which has been read.
    pub(crate) fn clone_empty(&self) -> Self {
        Self { select: self.select.clone(), fresh: self.fresh, ..Self::default() }
    }

    /// The names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The variables by name.
    pub fn all(&self) -> BTreeMap<String, Var> {
        self.lock().clone()
    }

    /// The variable `name`.
    pub fn get(&self, name: &str) -> Option<Var> {
        self.lock().get(name).cloned()
    }

    /// The number of trained parameters.
    pub fn parameters(&self) -> u64 {
        self.lock().values().map(|variable| variable.elem_count() as u64).sum()
    }

    /// The variable `name`, with the value of `value` if it is new.
    pub(super) fn insert_with(&self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<Var> {
        if let Some(variable) = self.get(name) {
            return Ok(variable);
        }
        let variable = Var::from_tensor(&value()?)?;
        Ok(self.lock().entry(name.to_string()).or_insert(variable).clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.of.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn frozen(&self) -> MutexGuard<'_, Frozen> {
        self.frozen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The variables of a load.
#[derive(Clone)]
pub(super) struct Training {
    variables: Arc<Variables>,
    /// Whether gradients are tracked.
    tracked: bool,
}

impl Weights {
    /// The same weights, to be read anew, where the tensors that `variables` selects are its variables. They require
    /// gradients if `tracked`, and else only have the values of the variables, for evaluation.
    pub fn with_variables(&self, variables: &Arc<Variables>, tracked: bool) -> Self {
        let training = Training { variables: variables.clone(), tracked };
        self.reread(Some(training))
    }

    /// The same weights, to be read anew, with the variables of `other`: for a model whose weights are assembled from
    /// several files, of which `other` are the first.
    pub fn with_variables_of(&self, other: &Self) -> Self {
        self.reread(other.training().cloned())
    }

    /// Loads the tensor `name` of `shape` that is not trained, such as wave numbers or the edges of classes: as
    /// [`tensor`](Weights::tensor), without a gradient. In a model with initial weights it has the values `initial`,
    /// row-major, and is written with the weights.
    ///
    /// ```
    /// use fauna_shared::runtime::Runtime;
    /// use fauna_shared::weights::{Fresh, Weights};
    /// let weights = Weights::fresh(Fresh { seed: 3, deviation: None }, Runtime::cpu());
    /// let edges = weights.constant("edges", &[3], || vec![0.0, 0.5, 1.0])?;
    /// assert_eq!(fauna_shared::transfer::to_host::<f32>(&edges)?, [0.0, 0.5, 1.0]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`tensor`](Weights::tensor), and if the number of values is not that of `shape`.
    pub fn constant(
        &self,
        name: &str,
        shape: &[usize],
        initial: impl FnOnce() -> Vec<f32>,
    ) -> Result<Tensor> {
        if !matches!(self.origin(), Origin::Fresh(_)) {
            return Ok(self.tensor(name, shape)?.detach());
        }
        let (path, runtime) = (self.path(name), self.runtime());
        let official = self.official(&path);
        let value = || -> Result<Tensor> { Ok(Tensor::from_vec(initial(), shape, runtime.device())?) };
        let value = match self.training() {
            Some(Training { variables, .. }) if variables.select.takes(&official) => {
                variables.insert_with(&official, value)?.as_detached_tensor()
            }
            _ => value()?,
        };
        self.record(&path, shape);
        Ok(value.to_dtype(runtime.activations())?)
    }

    /// The variable of the tensor `path` of `shape`, float32, if it is trained.
    pub(super) fn variable(&self, path: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some(training) = self.training() else { return Ok(None) };
        let variables = &training.variables;
        let name = self.official(path);
        if !variables.select.takes(&name) {
            return Ok(None);
        }
        self.refuse_adapted(path, &name)?;
        let device = self.runtime().device();
        let value = || -> Result<Option<Tensor>> {
            let values = match self.look_up_or_fresh(path, shape, variables.fresh)? {
                Found::Nothing => return Ok(None),
                Found::Seed(seed) => super::seeded_values(seed, path, shape)?,
                Found::Fresh(fresh) => super::fresh::values(fresh, path, shape)?,
                Found::Stored(stored) => {
                    let in_blocks = matches!(stored.storage, StorageType::Block(_));
                    if in_blocks && !self.runtime().dequantize() {
                        return Err(frozen_blocks(&name));
                    }
                    let values = widen(stored)?;
                    stored.bytes.release();
                    values
                }
            };
            Ok(Some(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?))
        };
        let variable = match variables.get(&name) {
            Some(variable) if variable.dims() == shape => {
                self.record(path, shape);
                variable
            }
            Some(variable) => {
                return Err(Error::new(
                    ErrorKind::Mismatch,
                    format!("{name} is a variable of shape {:?}, expected {shape:?}", variable.dims()),
                ));
            }
            None => match value()? {
                Some(value) => variables.insert_with(&name, || Ok(value))?,
                None => return Ok(None),
            },
        };
        Ok(Some(match training.tracked {
            true => variable.as_tensor().clone(),
            false => variable.as_detached_tensor(),
        }))
    }

    /// The path in the reference of the module of the weight at `path`, if a trained adapter targets it.
    pub(super) fn trained_module(&self, path: &str, layer: Layer) -> Option<String> {
        let lora = self.training()?.variables.lora.as_ref()?;
        lora.targets(&self.official(path), layer)
    }

    /// The factors of the trained update of the weight at `path`, of `shape`.
    pub(super) fn trained_factors(
        &self,
        path: &str,
        layer: Layer,
        shape: &[usize],
        weight: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Option<Factors>> {
        let Some(module) = self.trained_module(path, layer) else { return Ok(None) };
        let Some((training, lora)) = self.training().and_then(|t| Some((t, t.variables.lora.as_ref()?)))
        else {
            return Ok(None);
        };
        if self.is_missing(path) {
            return Ok(None);
        }
        let rank = lora.selection.rank(&module)?;
        check_rank(rank, &module, shape)?;
        let ones = vec![1; shape.len().saturating_sub(2)];
        let (names, a, b) = match layer {
            Layer::Embedding => {
                (["lora_embedding_A", "lora_embedding_B"], vec![rank, shape[0]], vec![shape[1], rank])
            }
            _ => (
                ["lora_A.weight", "lora_B.weight"],
                [&[rank], &shape[1..]].concat(),
                [&[shape[0], rank], &ones[..]].concat(),
            ),
        };
        let device = self.runtime().device();
        let factor = |end: &str, shape: &[usize], value: &dyn Fn(&str) -> Result<Tensor>| -> Result<Tensor> {
            let name = format!("{module}.{end}");
            let variable = training.variables.insert_with(&name, || Ok(value(&name)?.to_device(device)?))?;
            match (variable.dims() == shape, training.tracked) {
                (false, _) => Err(Error::new(
                    ErrorKind::Mismatch,
                    format!("{name} has shape {:?}, expected {shape:?}", variable.dims()),
                )),
                (true, true) => Ok(variable.as_tensor().clone()),
                (true, false) => Ok(variable.as_detached_tensor()),
            }
        };
        let zeros = |shape: &[usize]| Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
        let noise = |name: &str, shape: &[usize], deviation: Option<f64>| -> Result<Tensor> {
            let values = super::fresh::noise(Fresh { seed: lora.seed, deviation }, name, shape)?;
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        // As peft: the update is zero at first, and one factor is not.
        let (a, b) = match layer {
            Layer::Embedding => (
                factor(names[0], &a, &|_| zeros(&a))?,
                factor(names[1], &b, &|name| noise(name, &b, Some(1.0)))?,
            ),
            _ => {
                (factor(names[0], &a, &|name| noise(name, &a, None))?, factor(names[1], &b, &|_| zeros(&b))?)
            }
        };
        let outputs = b.dim(0)?;
        let bias = lora.config.lora_bias.then(|| factor("lora_B.bias", &[outputs], &|_| zeros(&[outputs])));
        let norms = |_: &str| Ok(weight()?.detach().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?);
        let magnitude = lora.config.use_dora.then(|| factor("lora_magnitude_vector", &[outputs], &norms));
        let scale = lora.selection.scaling(&module)?;
        Ok(Some(Factors { a, b, bias: bias.transpose()?, magnitude: magnitude.transpose()?, scale }))
    }

    /// Refuses to train the tensor `path`, which is packed.
    pub(super) fn refuse_packed(&self, path: &str) -> Result<()> {
        let name = self.official(path);
        match self.training().is_some_and(|training| training.variables.select.takes(&name)) {
            true => Err(frozen_blocks(&name)),
            false => Ok(()),
        }
    }

    /// The frozen tensor that `make` computes from the checkpoint, kept under `name` during training.
    pub(super) fn frozen(&self, name: &str, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let Some(training) = self.training() else { return make() };
        if let Some(tensor) = training.variables.frozen().tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = make()?;
        training.variables.frozen().tensors.insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }

    /// The frozen matrices that `make` computes from the checkpoint, kept under `name` during training.
    pub(super) fn frozen_matrices(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<Matrix>>,
    ) -> Result<Vec<Matrix>> {
        let Some(training) = self.training() else { return make() };
        if let Some(matrices) = training.variables.frozen().matrices.get(name) {
            return Ok(matrices.clone());
        }
        let matrices = make()?;
        training.variables.frozen().matrices.insert(name.to_string(), matrices.clone());
        Ok(matrices)
    }

    /// The name in the file of the tensor `path`; in GGUF files, that of the release.
    pub(super) fn official(&self, path: &str) -> String {
        match self.origin() {
            Origin::Files { is_gguf: true, .. } => path.to_string(),
            Origin::Files { tensors, .. } => {
                tensors.get(path).map_or_else(|| path.to_string(), |entry| entry.official.clone())
            }
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => path.to_string(),
        }
    }
}

fn frozen_blocks(name: &str) -> Error {
    Error::unsupported(format!(
        "{name} is stored in quantized blocks, as in GGUF files, which cannot be trained"
    ))
    .hint("train a LoRA adapter over it, or dequantize the weights when they are loaded")
}

/// Ranks that every layer may have, as in peft: of a small layer they are no lower than that of its weight.
const MODEST_RANK: usize = 64;

/// Refuses a `rank` whose factors have more rows or columns than the weight of `module`, of `shape`.
fn check_rank(rank: usize, module: &str, shape: &[usize]) -> Result<()> {
    let (outputs, inputs) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
    let most = MODEST_RANK.max(outputs).max(inputs);
    match rank <= most {
        true => Ok(()),
        false => Err(Error::input(format!(
            "rank {rank} does not fit {module}: its weight of shape {shape:?} has a rank of at most {}",
            outputs.min(inputs)
        ))
        .hint("LoRA is of a low rank: 4 to 64, mostly")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;

    #[test]
    fn a_selection_takes_names_in_which_one_expression_matches() {
        assert!(Select::All.takes("a.weight") && !Select::None.takes("a.weight"));
        let norms = Select::matching("norm").unwrap();
        assert!(norms.takes("layers.0.norm.weight") && !norms.takes("layers.0.weight"));
        let two = ["^a$", "^b$"].map(|pattern| Regex::new(pattern).unwrap());
        let two = Select::Matching(two.to_vec());
        assert!(two.takes("a") && two.takes("b") && !two.takes("ab"));
        assert_eq!(Select::matching("(").unwrap_err().kind(), ErrorKind::Input);
    }

    #[test]
    fn variables_are_read_once_and_are_tracked_only_if_asked() {
        let weights = Weights::seeded(7, Runtime::cpu());
        let variables = Arc::new(Variables::new(Select::matching("bias").unwrap()));
        let load =
            |tracked| weights.with_variables(&variables, tracked).variable("a.bias", &[3]).unwrap().unwrap();
        let (first, second) = (load(true), load(true));
        assert!(first.track_op() && first.id() == second.id() && !load(false).track_op());
        let changed = (variables.get("a.bias").unwrap().as_detached_tensor() + 1.0).unwrap();
        variables.get("a.bias").unwrap().set(&changed).unwrap();
        assert_eq!(load(false).to_vec1::<f32>().unwrap(), changed.to_vec1::<f32>().unwrap());
        let again = weights.with_variables(&variables, true);
        assert!(again.variable("a.weight", &[3]).unwrap().is_none());
        assert_eq!(again.variable("a.bias", &[4]).unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!((variables.names(), variables.parameters()), (vec!["a.bias".to_string()], 3));
    }

    #[test]
    fn an_adapter_out_of_range_is_refused() {
        let modules = || -> Modules { Arc::new(str::to_string) };
        let lora = |config| Lora::new(config, "^head$", 0, modules()).err().map(|error| error.to_string());
        assert_eq!(lora(AdapterConfig::default()), None);
        assert!(lora(AdapterConfig { r: 0, ..AdapterConfig::default() }).unwrap().contains("r: 0"));
        let alpha = AdapterConfig { lora_alpha: f64::NAN, ..AdapterConfig::default() };
        assert!(lora(alpha).unwrap().contains("lora_alpha"));
    }
}
