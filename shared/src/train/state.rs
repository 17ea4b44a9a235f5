//! The state of a training run, from which it goes on as if it had not stopped.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::optimizer::Kept;
use super::{AdamW, Trainer, TrainingConfig};
use crate::checkpoint::{Checkpoint, Metadata, StorageType, StoredTensor, TensorInfo, write_safetensors};
use crate::folder::{sync_folder, write_synced};
use crate::weights::widen;
use crate::{Error, ErrorKind, Result, transfer};

const DESCRIPTION: &str = "training_state.json";
const TENSORS: &str = "training_state.safetensors";

/// What a state belongs to. A run goes on only from a state of the same model, data and options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunDescription {
    /// The model, as the user named it.
    pub model: String,
    /// What is trained: the selection of the weights, or the adapter.
    pub trained: String,
    /// The data set.
    pub data: String,
}

impl RunDescription {
    /// Training `trained` of `model` on `data`.
    pub fn new(model: impl Into<String>, trained: impl Into<String>, data: impl Into<String>) -> Self {
        Self { model: model.into(), trained: trained.into(), data: data.into() }
    }
}

/// The format of states that is written, and the latest that is read.
const FORMAT: u64 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    format: u64,
    run: RunDescription,
    config: TrainingConfig,
    step: u64,
    /// The lowest validation loss so far.
    best: Option<f64>,
    /// The number of steps after which the validation loss was computed last.
    #[serde(default)]
    validated: Option<u64>,
}

impl State {
    /// Reads the description in `folder`.
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let damaged = |e: serde_json::Error| {
            Error::format(path, format!("the state of the run is damaged: {e}"))
                .hint("start a new run in another folder; the weights beside it can be used")
        };
        let mut state: Value = serde_json::from_str(&text).map_err(damaged)?;
        // The first states have no number.
        let format = state.get("format").map_or(Some(FORMAT), Value::as_u64);
        if let Some(found) = format.filter(|found| *found > FORMAT) {
            let message = format!("the state of the run has format {found}, the latest known is {FORMAT}");
            return Err(Error::unsupported(message)
                .at(path)
                .hint("go on with the newer version that wrote it"));
        }
        if let Value::Object(fields) = &mut state {
            fields.entry("format").or_insert(FORMAT.into());
        }
        serde_json::from_value(state).map_err(damaged)
    }
}

/// Whether `folder` has a state; its description is written last.
pub(super) fn is_complete(folder: &Path) -> bool {
    folder.join(DESCRIPTION).is_file()
}

impl Trainer<'_> {
    /// Writes the state to `folder`, which exists: the float32 variables, the moments of the optimizer, and how far the
    /// run is.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if writing fails.
    pub fn save_state(&self, folder: &Path, run: &RunDescription, best: Option<f64>) -> Result<()> {
        let variables = self.learner().variables().all();
        let mut planned = Vec::new();
        let mut sources: Vec<Vec<f32>> = Vec::new();
        let mut plan = |name: String, shape: &[usize], values: Vec<f32>| {
            planned.push(TensorInfo { name, storage: StorageType::F32, shape: shape.to_vec() });
            sources.push(values);
        };
        for (name, variable) in &variables {
            let Kept { moments, master } = self.optimizer().kept(name)?.unwrap_or_default();
            let weight = match master {
                Some(master) => master,
                None => transfer::to_host(&variable.as_detached_tensor().to_dtype(DType::F32)?)?,
            };
            plan(format!("weight.{name}"), variable.dims(), weight);
            for (kind, values) in ["first", "second"].into_iter().zip(moments) {
                if !values.is_empty() {
                    plan(format!("{kind}.{name}"), variable.dims(), values);
                }
            }
        }
        let mut values = sources.iter();
        write_safetensors(&folder.join(TENSORS), &Metadata::new(), &planned, |_| {
            let values = values.next().map_or(&[][..], Vec::as_slice);
            Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        })?;
        let (config, step) = (self.config().clone(), self.steps());
        let validated = self.validated();
        let state = State { format: FORMAT, run: run.clone(), config, step, best, validated };
        let path = folder.join(DESCRIPTION);
        let text = serde_json::to_string_pretty(&state).map_err(|e| Error::format(&path, e.to_string()))?;
        // The name appears when the file is whole.
        let partial = path.with_extension("partial");
        write_synced(&partial, &(text + "\n"))?;
        std::fs::rename(&partial, &path).map_err(|e| Error::io(&path, "write", e))?;
        sync_folder(folder);
        Ok(())
    }

    /// Goes on from the state in `folder`. Returns the lowest validation loss so far.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is none; [`Mismatch`](ErrorKind::Mismatch) with what differs if it is
    /// of another model, other data or other options; [`Format`](ErrorKind::Format) if it is damaged;
    /// [`Unsupported`](ErrorKind::Unsupported) if a newer version wrote it in a format of its own.
    pub fn resume(&mut self, folder: &Path, run: &RunDescription) -> Result<Option<f64>> {
        let path = folder.join(DESCRIPTION);
        let state = State::read(&path)?;
        let mut differences = self.config().differences(&state.config);
        let described = [
            ("model", &state.run.model, &run.model),
            ("trained", &state.run.trained, &run.trained),
            ("data", &state.run.data, &run.data),
        ];
        let described = described.into_iter().filter(|(_, before, now)| before != now);
        differences
            .extend(described.map(|(name, before, now)| format!("{name}: {before} before, {now} now")));
        if !differences.is_empty() {
            return Err(Error::new(ErrorKind::Mismatch, "the run to be resumed was another one")
                .at(&path)
                .hint(differences.join("\n"))
                .hint("give the same options, or start a new run in another folder"));
        }
        let file = folder.join(TENSORS);
        let tensors = Checkpoint::open(&file)?;
        let variables = self.learner().variables().all();
        let mut kept = BTreeMap::new();
        for (name, variable) in &variables {
            let shape = variable.dims();
            let read = |kind: &str| -> Result<Option<Vec<f32>>> {
                let Some(stored) = tensors.get(&format!("{kind}.{name}")) else { return Ok(None) };
                checked(stored, shape).map(Some).map_err(|error| error.context(name).at(&file))
            };
            let missing = || Error::new(ErrorKind::Mismatch, format!("weight.{name} is missing")).at(&file);
            let values = read("weight")?.ok_or_else(missing)?;
            if let (Some(first), Some(second)) = (read("first")?, read("second")?) {
                let master = (variable.dtype() != DType::F32).then(|| values.clone());
                kept.insert(name.clone(), Kept { moments: [first, second], master });
            }
            let value = transfer::to_device(values, shape, variable.device())?;
            variable.set(&value.to_dtype(variable.dtype())?)?;
        }
        let config = self.config();
        let optimizer = AdamW::new(config.betas, config.eps, config.weight_decay);
        self.set_state(optimizer.resumed(state.step, &variables, kept)?, state.validated);
        Ok(state.best)
    }
}

/// The values of `stored`, which must be float32 of `shape`.
fn checked(stored: &StoredTensor, shape: &[usize]) -> Result<Vec<f32>> {
    match stored.shape == shape && stored.storage == StorageType::F32 {
        true => widen(stored),
        false => Err(Error::new(
            ErrorKind::Mismatch,
            format!("{:?} of shape {:?}, expected float32 of {shape:?}", stored.storage, stored.shape),
        )),
    }
}
