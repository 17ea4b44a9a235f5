//! A model with variables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use serde_json::Value;

use super::Example;
use super::save::{base_of, factor_of, savable, write_adapter, write_checkpoint};
use crate::adapter::{AdapterConfig, TargetModules, is_named};
use crate::error::first_five;
use crate::grad::Gradients;
use crate::item::Tensors;
use crate::kernels::memory::Keep;
use crate::model::{Collation, Loss, Pipeline, Pretrained, TrainingBatch};
use crate::weights::{Fresh, Lora, Select, Variables};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, ErrorKind, Result, transfer};

/// What of a model is trained.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Trained {
    /// The weights that are trained in full.
    pub select: Select,
    /// The adapter that is trained, if any. `base_model_name_or_path` is set when it is saved.
    pub lora: Option<AdapterConfig>,
    /// Whether selected weights that the checkpoint lacks, such as a new head, get initial values.
    pub fresh: bool,
    /// The seed of initial values.
    pub seed: u64,
}

impl Trained {
    /// The weights that `select` takes.
    pub fn weights(select: Select) -> Self {
        Self { select, ..Self::default() }
    }

    /// A LoRA adapter with `config`.
    pub fn lora(config: AdapterConfig) -> Self {
        Self { lora: Some(config), ..Self::default() }
    }

    /// The same with these weights trained in full as well.
    pub fn with_weights(self, select: Select) -> Self {
        Self { select, ..self }
    }

    /// The same with initial values, drawn by `seed`, for selected weights that the checkpoint lacks.
    pub fn with_fresh(self, seed: u64) -> Self {
        Self { fresh: true, seed, ..self }
    }

    /// The same with this seed of initial values.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// A model that learns: its pipeline, and the variables among its weights. Each loss builds the network again from the
/// variables, so that everything a network computes from its weights when it is built is differentiable too.
pub struct Learner {
    pretrained: Pretrained,
    pipeline: Box<dyn Pipeline>,
    variables: Arc<Variables>,
    /// The buffers of one step serve the next.
    _memory: Keep,
}

impl Learner {
    /// Opens the model `source`, of which `trained` is trained.
    ///
    /// # Errors
    /// As [`Zoo::open`]; [`Unsupported`](crate::ErrorKind::Unsupported) if the model cannot be trained;
    /// [`Input`](crate::ErrorKind::Input) if it has adapters and its weights are trained in full, and with the selection
    /// or the target of the adapter that none of its tensors or modules has.
    pub fn open(zoo: &Zoo, source: &str, options: &LoadOptions, trained: Trained) -> Result<Self> {
        let (family, pretrained) = zoo.pretrained(source, options)?;
        if trained.lora.is_none() && !pretrained.options.adapters.is_empty() {
            return Err(Error::input("weights are trained in full, and there are adapters over them")
                .hint("merge the adapters into the model first, or train an adapter"));
        }
        if trained.lora.is_none() && pretrained.options.runtime.quantize().is_some() {
            return Err(Error::unsupported("quantized weights are not trained, only adapters over them")
                .hint("train an adapter, or load the model without quantization"));
        }
        // A head that the checkpoint lacks must be there before the model opens.
        let fresh = Fresh { seed: trained.seed, deviation: Some(0.02) };
        let mut variables = Variables::new(trained.select);
        if trained.fresh {
            variables = variables.with_fresh(fresh);
        }
        let mut pretrained = pretrained;
        let plain = pretrained.weights.clone();
        if trained.fresh {
            pretrained.weights = plain.with_variables(&Arc::new(variables.clone_empty()), false);
        }
        let mut pipeline = (family.open)(&pretrained)?;
        pretrained.check_adapters()?;
        pretrained.weights = plain;
        if let Some(config) = trained.lora {
            let trainable = pipeline.trainable()?;
            let head = trainable.head().unwrap_or("^$");
            variables = variables.with_lora(Lora::new(config, head, trained.seed, trainable.modules())?);
        }
        let variables = Arc::new(variables);
        let mut learner = Self { pretrained, pipeline, variables, _memory: Keep::new() };
        learner.reload(true)?;
        learner.check_selected(|| {
            let of_config = || {
                Ok((family.inventory)(&learner.pretrained)?
                    .tensors
                    .into_iter()
                    .map(|(name, _)| name)
                    .collect())
            };
            match &learner.pretrained.checkpoint {
                Some(checkpoint) => Ok(checkpoint.names().map(str::to_string).collect()),
                None => of_config(),
            }
        })?;
        Ok(learner)
    }

    /// Checks that the selection and every target of the adapter has taken something. `tensors`: the names of the
    /// model's tensors.
    fn check_selected(&self, tensors: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
        let names = self.variables.names();
        let adapted: Vec<&str> = names.iter().filter_map(|name| Some(factor_of(name)?.0)).collect();
        let has_weights = names.iter().any(|name| factor_of(name).is_none());
        let nothing = match (self.variables.select(), self.variables.lora()) {
            (Select::None, None) => Some("nothing of the model is selected for training".to_string()),
            (Select::All, _) if !has_weights => Some("the model has no tensors to train".to_string()),
            (Select::Matching(patterns), _) if !has_weights => {
                let patterns: Vec<&str> = patterns.iter().map(regex::Regex::as_str).collect();
                Some(format!("no tensor of the model has a name that matches {}", patterns.join(" or ")))
            }
            (_, Some(lora)) => match &lora.config.target_modules {
                Some(TargetModules::Names(targets)) => {
                    let is_missing = |target: &&String| !adapted.iter().any(|path| is_named(path, target));
                    targets
                        .iter()
                        .find(is_missing)
                        .map(|target| format!("no module of the model is called {target}"))
                }
                Some(TargetModules::Pattern(pattern)) if adapted.is_empty() => {
                    Some(format!("no module of the model matches {pattern}"))
                }
                _ if adapted.is_empty() => Some("the model has no linear layers for an adapter".to_string()),
                _ => None,
            },
            _ => None,
        };
        match nothing {
            None => Ok(()),
            Some(message) => Err(Error::input(message)
                .hint(format!("the names of its tensors:\n{}", first_five(tensors()?)))
                .hint("all of them: fauna info MODEL --tensors")),
        }
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

    /// The files and options of the model.
    pub fn pretrained(&self) -> &Pretrained {
        &self.pretrained
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

    /// Checks that what is trained can be [saved](Self::save).
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for whole checkpoints of GGUF files, and with the name of a trained
    /// tensor that the files of the release cannot take; for an adapter over several adapters or a scaled one.
    pub fn check_savable(&self) -> Result<()> {
        match self.variables.lora() {
            Some(_) => base_of(&self.pretrained).map(|_| ()),
            None => savable(&self.pretrained, &self.variables.all()),
        }
    }

    /// Writes what was trained to `folder`: an adapter in the layout of peft, or else the model as a whole checkpoint in
    /// the layout of its release, with config, tokenizer and processors. An existing folder is replaced when the new one
    /// is complete.
    ///
    /// # Errors
    /// As [`check_savable`](Self::check_savable); [`Compute`](crate::ErrorKind::Compute) with the name of a variable whose
    /// values are not finite; [`Io`](crate::ErrorKind::Io) if writing fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.check_savable()?;
        let variables: BTreeMap<String, Var> = self.variables.all();
        for (name, is_finite) in variables.keys().zip(are_finite(variables.values())?) {
            if !is_finite {
                let message =
                    format!("{name} has values that are not finite after training, and is not saved");
                return Err(Error::new(ErrorKind::Compute, message).hint("lower the learning rate"));
            }
        }
        match self.variables.lora() {
            Some(lora) => write_adapter(&self.pretrained, lora, &variables, folder),
            None => write_checkpoint(&self.pretrained, &variables, folder),
        }
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

/// Whether the values of each of `variables` are finite.
fn are_finite<'a>(variables: impl Iterator<Item = &'a Var>) -> Result<Vec<bool>> {
    // Zero times a value that is not finite is not a number.
    let probe = |variable: &Var| -> Result<Tensor> {
        Ok((variable.as_detached_tensor() * 0.0)?.sum_all()?.to_dtype(DType::F32)?)
    };
    let probes = variables.map(probe).collect::<Result<Vec<_>>>()?;
    if probes.is_empty() {
        return Ok(Vec::new());
    }
    let probes: Vec<f32> = transfer::to_host(&Tensor::stack(&probes, 0)?)?;
    Ok(probes.into_iter().map(|probe| probe == 0.0).collect())
}
