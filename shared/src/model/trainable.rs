//! The interface of models that can be trained.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use crate::Result;
use crate::item::Tensors;
use crate::train::Example;
use crate::weights::{Modules, Weights};

/// The loss of a batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loss {
    /// The loss, a float32 scalar that is differentiable with respect to the variables.
    pub value: Tensor,
    /// The number of terms that `value` is the mean of, such as the tokens with a label: the weight of this batch among
    /// several whose gradients are accumulated.
    pub terms: f64,
    /// Named parts of the loss, scalars with the reference's names, such as `loss_energy`.
    pub parts: BTreeMap<String, Tensor>,
}

impl Loss {
    /// A loss without parts that is the mean of `terms` terms.
    pub fn mean(value: Tensor, terms: f64) -> Self {
        Self { value, terms, parts: BTreeMap::new() }
    }

    /// The same with the part `name`.
    pub fn with_part(mut self, name: impl Into<String>, value: Tensor) -> Self {
        self.parts.insert(name.into(), value);
        self
    }
}

/// How examples become a batch.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Collation {
    /// Longer sequences are truncated to this number of tokens, and time series to this number of steps of context;
    /// `None` for the maximum of the model.
    pub max_length: Option<usize>,
    /// Whether only the completion or the turns of the assistant are learned, and not the prompt.
    pub mask_prompt: bool,
    /// Names of the classes, in order of their index; empty for those of the config.
    pub classes: Vec<String>,
    /// Statistics of the actions of the data set, as in `dataset_statistics.json`.
    pub statistics: Option<Value>,
    /// Steps that are forecast; `None` for the model's own number.
    pub horizon: Option<usize>,
    /// The seed of what is random in a batch: masked tokens, windows of time series. Another one for each batch.
    pub seed: u64,
}

/// A batch for [`Trainable::loss`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TrainingBatch {
    /// The inputs, with the argument names of the reference.
    pub inputs: Tensors,
    /// Number of tokens or time steps of the examples that were truncated.
    pub truncated: usize,
}

impl TrainingBatch {
    /// A batch without truncated examples.
    pub fn new(inputs: Tensors) -> Self {
        Self { inputs, truncated: 0 }
    }
}

/// A model that can be trained: one whose network can be built again from other weights, and that has a loss.
pub trait Trainable: Send + Sync {
    /// Builds the network again from `config`, canonical, and `weights`, as it was built when the model was opened.
    ///
    /// # Errors
    /// As opening the model.
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()>;

    /// The loss of the reference implementation on a batch, `inputs` with its argument names; integers are int64.
    /// `options` are arguments that are not tensors.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an input that is missing, unknown or of another shape, or an unknown
    /// option.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss>;

    /// The batch of `examples`, for [`loss`](Self::loss).
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for examples that the model does not learn from, with the kinds it does;
    /// [`NotFound`](crate::ErrorKind::NotFound) if the checkpoint has no tokenizer or processor.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch>;

    /// The path in the reference of a module, from its name in the checkpoint, by which adapters name it: the same by
    /// default, another where a release leaves out the prefix of the class or was renamed.
    fn modules(&self) -> Modules {
        Arc::new(str::to_string)
    }

    /// A regular expression of the tensors of the output head, by their names in the checkpoint.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if there is none.
    fn head(&self) -> Result<&'static str>;
}
