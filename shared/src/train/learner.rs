//! A model with variables.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::Result;
use crate::grad::Gradients;
use crate::item::Tensors;
use crate::model::{Collation, Loss, Pipeline, Pretrained, TrainingBatch};
use crate::train::Example;
use crate::train::save::write_checkpoint;
use crate::weights::{Select, Variables};
use crate::zoo::{LoadOptions, Zoo};

/// A model that learns: its pipeline, and the variables among its weights. Each loss builds the network again from the
/// variables, so that everything a network computes from its weights when it is built is differentiable too.
pub struct Learner {
    pretrained: Pretrained,
    pipeline: Box<dyn Pipeline>,
    variables: Arc<Variables>,
}

impl Learner {
    /// Opens the model `source`, in which the tensors that `select` takes are trained.
    ///
    /// # Errors
    /// As [`Zoo::open`]; [`Unsupported`](crate::ErrorKind::Unsupported) if the model cannot be trained;
    /// [`Input`](crate::ErrorKind::Input) if `select` takes none of its tensors.
    pub fn open(zoo: &Zoo, source: &str, options: &LoadOptions, select: Select) -> Result<Self> {
        let (family, pretrained) = zoo.pretrained(source, options)?;
        Self::new((family.open)(&pretrained)?, pretrained, Arc::new(Variables::new(select)))
    }

    fn new(pipeline: Box<dyn Pipeline>, pretrained: Pretrained, variables: Arc<Variables>) -> Result<Self> {
        let mut learner = Self { pretrained, pipeline, variables };
        learner.reload(true)?;
        Ok(learner)
    }

    /// Builds the network from the current variables; `tracked` if gradients are wanted.
    fn reload(&mut self, tracked: bool) -> Result<()> {
        let weights = self.pretrained.weights.with_variables(&self.variables, tracked);
        self.pipeline.trainable()?.reload(&self.pretrained.config, &weights)
    }

    /// The variables.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The loss of a batch, with its gradients.
    ///
    /// # Errors
    /// As [`Trainable::loss`](crate::model::Trainable::loss).
    pub fn loss(&mut self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        self.reload(true)?;
        self.pipeline.trainable()?.loss(inputs, options)
    }

    /// The loss of a batch, without gradients, as for validation.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn evaluate(&mut self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        self.reload(false)?;
        self.pipeline.trainable()?.loss(inputs, options)
    }

    /// The batch of `examples`.
    ///
    /// # Errors
    /// As [`Trainable::collate`](crate::model::Trainable::collate).
    pub fn collate(&mut self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        self.pipeline.trainable()?.collate(examples, options)
    }

    /// No gradients yet, of all variables.
    pub fn gradients(&self) -> Gradients {
        Gradients::of(self.variables.all().values())
    }

    /// Writes the model as a whole checkpoint to `folder`, in the layout of its release, with config, tokenizer and
    /// processors. An existing folder is replaced when the new one is complete.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for GGUF files and releases in layouts of their own;
    /// [`Io`](crate::ErrorKind::Io) if writing fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_checkpoint(&self.pretrained, &self.variables.all(), folder)
    }

    /// The pipeline with the current weights, to generate or embed.
    ///
    /// # Errors
    /// As opening the model.
    pub fn pipeline(&mut self) -> Result<&dyn Pipeline> {
        self.reload(false)?;
        Ok(&*self.pipeline)
    }
}
