//! What a person sees of training: a bar, a log and a curve.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fauna::progress::{Progress, Task, Unit};
use fauna::train::{Event, TrainingConfig};
use fauna::{Error, Result};
use serde_json::{Value, json};

use crate::cli::Context;
use crate::cli::output::Output;
use crate::cli::plot::{self, Ink, Line, Panel};

const LOG: &str = "log.jsonl";
const CURVE: &str = "curve.png";

/// The log of a run.
pub struct Log {
    folder: PathBuf,
    file: File,
    rows: Vec<Value>,
    task: Box<dyn Task>,
    steps: u64,
    /// Number of examples of a step.
    batch: u64,
    begun: Instant,
    /// When the last event was told.
    told: Instant,
    /// Number of steps of this process, and the time that they took, without validation and saving.
    taken: (u64, Duration),
    truncated: usize,
    /// Whether the last line may have been cut off.
    cut: bool,
    /// Whether it was said why the log or the curve could not be written.
    failed: bool,
}

impl Log {
    /// The log in `folder`, of which the rows after step `done` are dropped.
    pub fn open(folder: &Path, done: u64, config: &TrainingConfig, context: &Context) -> Result<Self> {
        let path = folder.join(LOG);
        let kept = match std::fs::read_to_string(&path) {
            Ok(text) if done > 0 => text,
            _ => String::new(),
        };
        let rows = kept.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let rows: Vec<Value> =
            rows.filter(|row| row["step"].as_u64().is_some_and(|step| step <= done)).collect();
        // The rows on disk are replaced by a whole file, so that a full disk costs none of them.
        let mut kept = Output::open(Some(&path), true)?;
        rows.iter().try_for_each(|row| kept.json(row))?;
        kept.finish()?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, "write", e))?;
        let task = context.bars.begin("training", Unit::Items, Some(config.steps));
        task.skip(done);
        let begun = Instant::now();
        Ok(Self {
            folder: folder.into(),
            file,
            rows,
            task,
            steps: config.steps,
            batch: (config.batch * config.accumulate) as u64,
            begun,
            told: begun,
            taken: (0, Duration::ZERO),
            truncated: 0,
            cut: false,
            failed: false,
        })
    }

    /// Shows and writes down an event.
    pub fn tell(&mut self, event: &Event, context: &Context) {
        let took = std::mem::replace(&mut self.told, Instant::now()).elapsed();
        match event {
            Event::Step(report) => {
                self.taken = (self.taken.0 + 1, self.taken.1 + took);
                let speed = (self.taken.0 * self.batch) as f64 / self.taken.1.as_secs_f64().max(1e-9);
                self.task.advance(1);
                self.task.describe(&format!(
                    "training  loss {:.4}, learning rate {:.2e}, {speed:.1} examples/s",
                    report.loss, report.learning_rate
                ));
                let mut row = json!({
                    "step": report.step,
                    "loss": report.loss,
                    "learning_rate": report.learning_rate,
                    "grad_norm": report.grad_norm,
                    "seconds": self.begun.elapsed().as_secs_f64(),
                });
                for (name, part) in &report.parts {
                    row[name] = json!(part);
                }
                if self.truncated == 0 && report.truncated > 0 {
                    context.say(&format!(
                        "step {}: {} tokens or time steps of longer examples are left out",
                        report.step, report.truncated
                    ));
                }
                self.truncated += report.truncated;
                self.write(row, context);
            }
            Event::Validating { batch, batches } => {
                self.task.describe(&format!("validating, batch {batch} of {batches}"));
            }
            Event::Validated { step, loss, is_best } => {
                let best = if *is_best && *step > 0 { ", the best so far" } else { "" };
                context.say(&format!("step {step} of {}: validation loss {loss:.4}{best}", self.steps));
                self.write(json!({"step": step, "validation_loss": loss}), context);
            }
            Event::Saved { .. } => self.draw(context),
            _ => {}
        }
    }

    fn write(&mut self, row: Value, context: &Context) {
        // One write, so that a process that is killed leaves whole lines; after a line that was cut off, a new one.
        let line = if self.cut { format!("\n{row}\n") } else { format!("{row}\n") };
        let written = self.file.write_all(line.as_bytes());
        self.cut = written.is_err();
        self.rows.push(row);
        if let Err(error) = written {
            self.complain(&Error::io(self.folder.join(LOG), "write", error), context);
        }
    }

    fn draw(&mut self, context: &Context) {
        let points = |key: &str| -> Vec<(f64, f64)> {
            let point = |row: &Value| Some((row["step"].as_f64()?, row[key].as_f64()?));
            self.rows.iter().filter_map(point).collect()
        };
        let line = |name: &str, ink, points| Line { name: name.to_string(), ink, points };
        let mut lines = vec![line("training", Ink::Blue, points("loss"))];
        let validation = points("validation_loss");
        if !validation.is_empty() {
            lines.push(line("validation", Ink::Red, validation));
        }
        let losses = Panel { title: "Loss".to_string(), lines, ..Panel::default() };
        let mut rates = points("learning_rate");
        // The axis has few digits: rates are shown in units of a power of ten.
        let most = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let power = if most > 0.0 { most.log10().floor() as i32 } else { 0 };
        rates.iter_mut().for_each(|(_, rate)| *rate /= 10f64.powi(power));
        let lines = vec![line("", Ink::Green, rates)];
        let rates = Panel { title: format!("Learning rate, in 1e{power}"), lines, ..Panel::default() };
        let path = self.folder.join(CURVE);
        if let Err(error) = plot::lines(&path, true, "Training", "Step", &[losses, rates]) {
            self.complain(&error, context);
        }
    }

    fn complain(&mut self, error: &Error, context: &Context) {
        if !std::mem::replace(&mut self.failed, true) {
            context.complain(&error.to_string());
        }
    }

    /// Draws the curve of all steps, and says how much of the data was truncated.
    pub fn finish(&mut self, context: &Context) {
        if !self.rows.is_empty() {
            self.draw(context);
        }
        if self.truncated > 0 {
            context.say(&format!("{} tokens or time steps of longer examples were left out", self.truncated));
        }
    }
}
