//! `fauna act`: robot actions from camera images and an instruction, one per line.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fauna::model::{Controller, DegreeOfFreedom, Observation, Task};
use fauna::{Error, ErrorKind, ImageOptions, Pipeline, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cli::options::{ModelArg, PictureInput};
use crate::cli::output::Output;
use crate::cli::{Context, Exit, abilities, input};

/// Arguments of `fauna act`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna act openvla/openvla-7b --image frame.png --instruction \"pick up the red block\" \
                        --unnorm-key bridge_orig\n  \
                        fauna act openvla/openvla-7b --frames frames --rate 5 --instruction \"open the drawer\" --json"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Instruction to the robot, for example "pick up the red block".
    #[arg(long, value_name = "TEXT")]
    instruction: String,
    /// Camera image; one action is predicted for each. Can be repeated.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Folder of camera images, in natural order of their names, or `-` for JSON lines on standard input: {"image": FILE},
    /// with "instruction" and "state" if they change.
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    frames: Option<PathBuf>,
    /// Control rate in frames per second: each frame is processed no earlier than its time.
    #[arg(long, value_name = "HZ", requires = "frames")]
    rate: Option<f64>,
    /// Dataset whose statistics un-normalize the actions, if the model has several.
    #[arg(long, value_name = "KEY")]
    unnorm_key: Option<String>,
    #[command(flatten)]
    pictures: PictureInput,
}

/// Range of control rates, in frames per second.
const RATES: std::ops::RangeInclusive<f64> = 0.001..=10_000.0;

/// Predicts an action for each frame. A frame that cannot be read is reported and skipped.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if let Some(rate) = args.rate.filter(|rate| !RATES.contains(rate)) {
        return Err(Error::input(format!("--rate is {rate}"))
            .hint(format!("expected {} to {} frames per second", RATES.start(), RATES.end()))
            .into());
    }
    let frames = Frames::of(&args)?;
    let mut options = context.options()?;
    if let Some(key) = &args.unnorm_key {
        options.settings.insert("unnorm_key".to_string(), json!(key));
    }
    let model = context.open_with(&args.model.source, &options)?;
    abilities::check(model.card(), "act")?;
    let policy = model.policy()?;
    let mut task = Task { instruction: args.instruction.clone(), unnorm_key: args.unnorm_key.clone() };
    let _stoppable = context.interrupt.hold();
    let mut controller = policy.start(&task)?;
    let (mut wrong, mut late) = (0usize, 0usize);
    let mut output = Output::stdout();
    let image_options = context.image_options(model.as_ref(), args.pictures);
    let line = Line { model: model.as_ref(), context, image_options, begun: Instant::now() };
    for (index, frame) in frames.enumerate() {
        if context.interrupt.requested() {
            break;
        }
        if let Some(rate) = args.rate {
            let in_time = wait_until(line.begun + Duration::from_secs_f64(index as f64 / rate));
            // The clock starts with the first frame.
            late += usize::from(index > 0 && !in_time);
        }
        let answer = frame.and_then(|frame| {
            if let Some(other) = frame.instruction.as_ref().filter(|other| **other != task.instruction) {
                let other = Task { instruction: other.clone(), ..task.clone() };
                controller = policy.start(&other)?;
                task = other;
            }
            line.answer(&frame, &task, controller.as_mut())
        });
        match answer {
            Ok(answer) => {
                output.line(answer)?;
                output.flush()?;
            }
            Err(error) => {
                wrong += 1;
                context.complain(&error.to_string());
            }
        }
    }
    output.finish()?;
    if late > 0 {
        context.say(&format!("{late} frames were late: the model is slower than --rate"));
    }
    context.interrupt.check()?;
    Ok(if wrong == 0 { Exit::Done } else { Exit::Partly })
}

/// Sleeps until `time`; returns false if it had already passed.
fn wait_until(time: Instant) -> bool {
    let left = time.checked_duration_since(Instant::now());
    if let Some(left) = left {
        std::thread::sleep(left);
    }
    left.is_some()
}

/// One frame: its image file, and the other fields of a JSON line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame {
    image: PathBuf,
    instruction: Option<String>,
    #[serde(default)]
    state: Vec<f64>,
}

impl Frame {
    fn of(image: PathBuf) -> Self {
        Self { image, instruction: None, state: Vec::new() }
    }
}

/// The input frames, in order.
enum Frames {
    Files(std::vec::IntoIter<PathBuf>),
    Lines { number: usize, lines: std::io::Lines<std::io::StdinLock<'static>> },
}

impl Frames {
    fn of(args: &Args) -> Result<Self> {
        match &args.frames {
            None => match args.image.is_empty() {
                false => Ok(Self::Files(args.image.clone().into_iter())),
                true => Err(Error::input("no camera image given")
                    .hint("use --image FILE, --frames DIR for many, or --frames - for JSON lines")),
            },
            Some(path) if path == Path::new("-") => {
                Ok(Self::Lines { number: 0, lines: std::io::stdin().lock().lines() })
            }
            Some(folder) => Ok(Self::Files(input::pictures_in(folder)?.into_iter())),
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        match self {
            Self::Files(files) => files.next().map(|file| Ok(Frame::of(file))),
            Self::Lines { number, lines } => loop {
                let place = Path::new("standard input");
                *number += 1;
                return Some(match lines.next()? {
                    Err(error) => Err(Error::io(place, "read", error)),
                    Ok(line) if line.trim().is_empty() => continue,
                    Ok(line) => serde_json::from_str(&line).map_err(|error| {
                        Error::format(place, format!("line {number}: {error}"))
                            .hint("expected {\"image\": \"frame.png\"}, with optional \"instruction\" and \"state\"")
                    }),
                });
            },
        }
    }
}

/// Formats the actions.
struct Line<'a> {
    model: &'a dyn Pipeline,
    context: &'a Context,
    image_options: ImageOptions,
    begun: Instant,
}

impl Line<'_> {
    fn answer(&self, frame: &Frame, task: &Task, controller: &mut dyn Controller) -> Result<String> {
        let picture = input::picture(&frame.image, &self.image_options, self.context)?;
        let before = Instant::now();
        let seen = Observation { frame: &picture, state: &frame.state };
        let action = controller.act(&seen).map_err(|error| error.at(&frame.image))?;
        let (time, taken) = (self.begun.elapsed().as_secs_f64(), before.elapsed().as_secs_f64());
        let numbers = paired(controller.degrees(), &action)?;
        Ok(match self.context.globals.json {
            true => json!({
                "source": self.model.card().source, "frame": frame.image, "instruction": task.instruction,
                "time": time, "seconds": taken, "action": named(&numbers, |_, value| json!(value)),
                "units": named(&numbers, |degree, _| json!(degree.unit.unwrap_or(NO_UNIT))),
            })
            .to_string(),
            false => {
                let numbers = numbers.iter().map(|(degree, value)| spelled(degree, *value));
                let numbers = numbers.collect::<Vec<_>>().join("  ");
                format!("{time:.3} s  {}  {numbers}", frame.image.display())
            }
        })
    }
}

/// Unit of a degree of freedom that the model does not describe.
const NO_UNIT: &str = "as in the dataset";

/// Pairs each number with its degree of freedom.
fn paired<'a>(degrees: &'a [DegreeOfFreedom], action: &[f64]) -> Result<Vec<(&'a DegreeOfFreedom, f64)>> {
    match degrees.len() == action.len() {
        true => Ok(degrees.iter().zip(action.iter().copied()).collect()),
        false => Err(Error::new(
            ErrorKind::Mismatch,
            format!("the policy returned {} numbers for {} degrees of freedom", action.len(), degrees.len()),
        )),
    }
}

fn named(
    numbers: &[(&DegreeOfFreedom, f64)],
    value: impl Fn(&DegreeOfFreedom, f64) -> Value,
) -> Map<String, Value> {
    numbers.iter().map(|(degree, number)| (degree.name.to_string(), value(degree, *number))).collect()
}

/// Formats one number: `x +0.0123 m`; a gripper has no sign.
fn spelled(degree: &DegreeOfFreedom, value: f64) -> String {
    match degree.unit {
        None => format!("{} {value:+.4}", degree.name),
        Some(unit) if unit.split_whitespace().count() == 1 => {
            format!("{} {value:+.4} {unit}", degree.name)
        }
        Some(unit) => format!("{} {value:.3} ({unit})", degree.name),
    }
}
