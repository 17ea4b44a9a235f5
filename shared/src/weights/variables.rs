//! Weights as variables, for training.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{Device, Tensor, Var};
use regex::Regex;

use super::{Found, Origin, Weights, widen};
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

    /// The variable of the tensor `path` of `shape`, float32, if it is trained.
    pub(super) fn variable(&self, path: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some(training) = self.training() else { return Ok(None) };
        let variables = &training.variables;
        let name = self.official(path);
        if !variables.select.takes(&name) {
            return Ok(None);
        }
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

    /// The name in the file of the tensor `path`.
    pub(super) fn official(&self, path: &str) -> String {
        match self.origin() {
            Origin::Files { tensors, .. } => {
                tensors.get(path).map_or_else(|| path.to_string(), |entry| entry.official.clone())
            }
            Origin::Seed(_) | Origin::Fresh(_) | Origin::Nothing => path.to_string(),
        }
    }
}

fn frozen_blocks(name: &str) -> Error {
    Error::unsupported(format!("{name} is stored in quantized blocks, which cannot be trained"))
        .hint("train a LoRA adapter over it, or dequantize the weights when they are loaded")
}
