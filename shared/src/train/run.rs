//! A whole training run: steps, validations, and what is kept on disk.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{Examples, RunDescription, StepReport, Trainer};
use crate::{Error, ErrorKind, Result};

/// The folder below the output folder with the last weights and the state of the run.
pub const LAST: &str = "last";
/// The folder below the output folder with the weights of the lowest validation loss.
pub const BEST: &str = "best";
const NEXT: &str = ".next";
const OLD: &str = ".old";

/// What happens in a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A step was taken.
    Step(&'a StepReport),
    /// The loss on the validation data after `step` steps.
    Validated {
        /// Number of steps taken.
        step: u64,
        /// The mean loss.
        loss: f64,
        /// Whether it is the lowest so far.
        is_best: bool,
    },
    /// The weights and the state after `step` steps are on disk.
    Saved {
        /// Number of steps taken.
        step: u64,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Number of steps taken, those before the run was resumed included.
    pub steps: u64,
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// Whether the run was stopped before its last step.
    pub stopped: bool,
}

/// A training run that keeps its weights in a folder: in [`LAST`] those of the last interval with the state to go on from,
/// in [`BEST`] those of the lowest validation loss.
///
/// A run that ends at any moment, even by a power cut, loses at most the steps of one interval
/// ([`valid_every`](super::TrainingConfig::valid_every)).
pub struct Run<'a> {
    trainer: Trainer<'a>,
    validation: Option<&'a dyn Examples>,
    folder: PathBuf,
    description: RunDescription,
    best: Option<f64>,
}

impl<'a> Run<'a> {
    /// A new run that writes to `folder`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the folder holds another run; as [`Learner::check_savable`](super::Learner::check_savable).
    pub fn new(
        trainer: Trainer<'a>,
        validation: Option<&'a dyn Examples>,
        folder: impl Into<PathBuf>,
        description: RunDescription,
    ) -> Result<Self> {
        let folder = folder.into();
        let is_there = |name: &&str| match *name {
            LAST | BEST => folder.join(name).exists(),
            _ => super::state::is_complete(&folder.join(name)),
        };
        if let Some(name) = [LAST, BEST, NEXT, OLD].into_iter().find(is_there) {
            return Err(Error::input(format!("the folder has a run, in {name}")).at(&folder).set(
                "go on with it, or choose another folder",
                "Run::resume",
                "true",
            ));
        }
        trainer.learner().check_savable()?;
        remove_partial(&folder);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
        Ok(Self { trainer, validation, folder, description, best: None })
    }

    /// The run in `folder`, after its last saved step.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is none; as [`Trainer::resume`].
    pub fn resume(
        mut trainer: Trainer<'a>,
        validation: Option<&'a dyn Examples>,
        folder: impl Into<PathBuf>,
        description: RunDescription,
    ) -> Result<Self> {
        let folder = folder.into();
        // A run that ended while it replaced its last folder left it under another name.
        let kept = [LAST, NEXT, OLD].map(|name| folder.join(name));
        let Some(last) = kept.iter().find(|path| super::state::is_complete(path)) else {
            return Err(Error::new(ErrorKind::NotFound, "there is no run to go on with").at(&folder));
        };
        let best = trainer.resume(last, &description)?;
        remove_partial(&folder);
        Ok(Self { trainer, validation, folder, description, best })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<'a> {
        &self.trainer
    }

    /// The trainer, to generate with its model.
    pub fn trainer_mut(&mut self) -> &mut Trainer<'a> {
        &mut self.trainer
    }

    /// Trains to the last step and tells `each` what happens; where that breaks, the run is saved and ends.
    ///
    /// # Errors
    /// As [`Trainer::step`] and [`Trainer::validate`]; [`Compute`](ErrorKind::Compute) if the validation loss is not
    /// finite; [`Io`](ErrorKind::Io) if writing fails. The weights that were saved before stay on disk.
    pub fn run(&mut self, each: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Outcome> {
        let config = self.trainer.config().clone();
        if self.trainer.steps() == 0 && self.validation.is_some() {
            // A start that is not told to go on takes one step.
            let _ = self.validate(each)?;
        }
        let mut saved = self.trainer.steps();
        let mut stopped = false;
        while self.trainer.steps() < config.steps && !stopped {
            let report = self.trainer.step()?;
            stopped = each(&Event::Step(&report)).is_break();
            let is_due = report.step.is_multiple_of(config.valid_every) || report.step == config.steps;
            if is_due && !stopped {
                stopped = self.validate(each)?.is_break();
            }
            if is_due || stopped {
                self.save()?;
                saved = report.step;
                stopped |= each(&Event::Saved { step: saved }).is_break();
            }
        }
        if saved < self.trainer.steps() {
            self.save()?;
        }
        let steps = self.trainer.steps();
        Ok(Outcome { steps, best: self.best, stopped: steps < config.steps })
    }

    fn validate(&mut self, each: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        let Some(examples) = self.validation else { return Ok(ControlFlow::Continue(())) };
        let loss = self.trainer.validate(examples)?;
        let step = self.trainer.steps();
        if !loss.is_finite() {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("the validation loss is {loss} after {step} steps; these weights are not saved"),
            )
            .hint("lower the learning rate, or look for extreme values in the validation data"));
        }
        let is_best = self.best.is_none_or(|best| loss < best);
        if is_best {
            self.best = Some(loss);
            if step > 0 {
                self.trainer.learner().save(&self.folder.join(BEST))?;
            }
        }
        Ok(each(&Event::Validated { step, loss, is_best }))
    }

    /// Writes weights and state beside the last ones, and then puts them in their place.
    fn save(&self) -> Result<()> {
        let [last, next, old] = [LAST, NEXT, OLD].map(|name| self.folder.join(name));
        let rename = |from: &Path, to: &Path| {
            std::fs::rename(from, to).map_err(|e| Error::io(to, "rename the new folder to", e))
        };
        let remove = |path: &Path| match path.exists() {
            true => std::fs::remove_dir_all(path).map_err(|e| Error::io(path, "remove", e)),
            false => Ok(()),
        };
        let written = self
            .trainer
            .learner()
            .save(&next)
            .and_then(|()| self.trainer.save_state(&next, &self.description, self.best));
        if let Err(error) = written {
            // Half of it is of no use. After a crash in between, it may be the only complete one.
            if !super::state::is_complete(&next) {
                let _ = std::fs::remove_dir_all(&next);
            }
            return Err(error);
        }
        remove(&old)?;
        if last.exists() {
            rename(&last, &old)?;
        }
        rename(&next, &last)?;
        remove(&old)
    }
}

/// Removes what runs that were killed while they wrote have left in `folder`; what cannot be removed is harmless.
fn remove_partial(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = [NEXT, BEST].iter().any(|ours| name.starts_with(&format!(".{ours}.")));
        if is_ours && (name.ends_with(".partial") || name.ends_with(".old")) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
