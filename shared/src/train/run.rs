//! A whole training run: steps, validations, and what is kept on disk.

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{Examples, RunDescription, StepReport, Trainer};
use crate::folder::sync_folder;
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
    /// The loss of one more batch of the validation data was computed. Where this breaks, the validation ends without a
    /// loss, and is the first thing that a resumed run does.
    Validating {
        /// Number of batches so far.
        batch: usize,
        /// Number of all batches.
        batches: usize,
    },
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
    /// Whether the run was stopped before its last step, or before the validation after it.
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
    _lock: Lock,
}

impl<'a> Run<'a> {
    /// A new run that writes to `folder`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the folder holds another run, or one is writing to it; as [`Learner::check_savable`](super::Learner::check_savable).
    pub fn new(
        trainer: Trainer<'a>,
        validation: Option<&'a dyn Examples>,
        folder: impl Into<PathBuf>,
        description: RunDescription,
    ) -> Result<Self> {
        let folder = folder.into();
        trainer.learner().check_savable()?;
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
        let lock = Lock::of(&folder)?;
        if folder.join("config.json").exists() {
            return Err(Error::input("the folder holds a model").at(&folder).hint("choose another folder"));
        }
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
        tidy(&folder);
        Ok(Self { trainer, validation, folder, description, best: None, _lock: lock })
    }

    /// The run in `folder`, after its last saved step.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is none; [`Input`](ErrorKind::Input) if another run is writing to the
    /// folder; as [`Trainer::resume`].
    pub fn resume(
        mut trainer: Trainer<'a>,
        validation: Option<&'a dyn Examples>,
        folder: impl Into<PathBuf>,
        description: RunDescription,
    ) -> Result<Self> {
        let folder = folder.into();
        let none = || Error::new(ErrorKind::NotFound, "there is no run to go on with").at(&folder);
        if !folder.is_dir() {
            return Err(none());
        }
        let lock = Lock::of(&folder)?;
        // A run that ended while it replaced its last folder left it under another name.
        let kept = [LAST, NEXT, OLD].map(|name| folder.join(name));
        let last = kept.iter().find(|path| super::state::is_complete(path)).ok_or_else(none)?;
        let best = trainer.resume(last, &description)?;
        tidy(&folder);
        Ok(Self { trainer, validation, folder, description, best, _lock: lock })
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
        let (steps, valid_every) = (self.trainer.config().steps, self.trainer.config().valid_every);
        let mut saved = self.trainer.steps();
        let mut stopped = false;
        // The validation of the initial weights, or one that was stopped.
        if self.has_validation_to_do() {
            stopped = self.validate(each).map_err(|error| self.with_saved(error, saved))?.is_break();
            if stopped || saved > 0 {
                self.save()?;
                stopped |= each(&Event::Saved { step: saved }).is_break();
            }
        }
        while self.trainer.steps() < steps && !stopped {
            let report = self.trainer.step().map_err(|error| self.with_saved(error, saved))?;
            stopped = each(&Event::Step(&report)).is_break();
            let is_due = report.step.is_multiple_of(valid_every) || report.step == steps;
            if is_due && !stopped {
                stopped = self.validate(each).map_err(|error| self.with_saved(error, saved))?.is_break();
            }
            if is_due || stopped {
                self.save()?;
                saved = report.step;
                stopped |= each(&Event::Saved { step: saved }).is_break();
            }
        }
        let stopped = self.trainer.steps() < steps || self.has_validation_to_do();
        Ok(Outcome { steps: self.trainer.steps(), best: self.best, stopped })
    }

    /// Whether the validation loss of the current weights is due and not known.
    fn has_validation_to_do(&self) -> bool {
        let (step, config) = (self.trainer.steps(), self.trainer.config());
        let is_due = step.is_multiple_of(config.valid_every) || step == config.steps;
        is_due && self.validation.is_some() && self.trainer.validated() != Some(step)
    }

    /// `error` with what is on disk after `saved` steps.
    fn with_saved(&self, error: Error, saved: u64) -> Error {
        match self.folder.join(LAST).is_dir() {
            true => {
                error.hint(format!("the weights of step {saved} are in {}", self.folder.join(LAST).display()))
            }
            false => error.hint("no weights have been saved yet"),
        }
    }

    fn validate(&mut self, each: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        let Some(examples) = self.validation else { return Ok(ControlFlow::Continue(())) };
        let mut told = |batch, batches| each(&Event::Validating { batch, batches });
        let Some(loss) = self.trainer.validate_each(examples, &mut told)? else {
            return Ok(ControlFlow::Break(()));
        };
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
        sync_folder(&self.folder);
        remove(&old)
    }
}

/// Keeps other runs out of a folder while it lives. The operating system ends it with the process.
struct Lock {
    _file: File,
}

impl Lock {
    /// # Errors
    /// [`Input`](ErrorKind::Input) if another run holds it.
    fn of(folder: &Path) -> Result<Self> {
        // Where folders cannot be opened, a file in it.
        let (path, file) = match cfg!(unix) {
            true => (folder.to_path_buf(), File::open(folder)),
            false => (folder.join(".lock"), File::create(folder.join(".lock"))),
        };
        let file = file.map_err(|e| Error::io(&path, "open", e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::input("another run is writing to the folder")
                .at(folder)
                .hint("wait until it ends, or choose another folder")),
            // Some file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _file: file }),
        }
    }
}

/// Removes what runs that were killed while they wrote have left in `folder`, and puts best weights back that were moved
/// away for their successors; what cannot be removed is harmless.
fn tidy(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = |ours: &str| name.starts_with(&format!(".{ours}."));
        let is_old = name.ends_with(".old");
        if of(BEST) && is_old && !folder.join(BEST).exists() {
            let _ = std::fs::rename(entry.path(), folder.join(BEST));
        } else if (of(NEXT) || of(BEST)) && (is_old || name.ends_with(".partial")) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
