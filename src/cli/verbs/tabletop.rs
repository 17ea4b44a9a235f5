//! `fauna tabletop`: a robot policy in the simulated table-top.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fauna::image::{sheet, to_gif};
use fauna::model::Policy;
use fauna::progress::{Progress, Unit};
use fauna::tabletop::{Episode, Scene, SceneConfig, View, Wording, run_episode};
use fauna::{Error, Image, Pipeline, Result};
use serde_json::json;

use crate::cli::options::ModelArg;
use crate::cli::output::{Output, check_free};
use crate::cli::table::Table;
use crate::cli::{Context, Exit, abilities};

/// Arguments of `fauna tabletop`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna tabletop openvla/openvla-7b --unnorm-key bridge_orig --scenes 0-9 --out scenes.gif\n  \
                        fauna tabletop openvla/openvla-7b --unnorm-key bridge_orig --scenes 0-99 --json"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Seed of the scene, or of several: 0-99. Each scene has its own instruction.
    #[arg(long, value_name = "SEEDS", value_parser = seeds, default_value = "0")]
    scenes: Seeds,
    /// Number of blocks on the table, each of another colour.
    #[arg(long, value_name = "N", default_value_t = 3)]
    blocks: usize,
    /// Camera: in front of the table, or on the gripper's carriage.
    #[arg(long, value_enum, value_name = "WHERE", default_value_t)]
    view: ViewName,
    /// Words of the instructions: always the same, or in several phrasings.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    wording: WordingName,
    /// Height and width of the camera's images in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    image_size: usize,
    /// Write the first scenes, seen from in front of the table, as an animated picture to this file.
    #[arg(long, short, value_name = "FILE.gif")]
    out: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    /// Dataset whose statistics un-normalize the actions, if the model has several.
    #[arg(long, value_name = "KEY")]
    unnorm_key: Option<String>,
}

/// Place of the camera.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum ViewName {
    #[default]
    Fixed,
    Carriage,
}

/// Words of an instruction.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum WordingName {
    #[default]
    Plain,
    Varied,
}

/// The first and the last seed.
#[derive(Debug, Clone, Copy)]
struct Seeds(u64, u64);

/// Maximum number of scenes.
const MOST_SCENES: u64 = 100_000;
/// Number of scenes in the animated picture.
const SHOWN: usize = 6;
/// Frames per second of the animated picture, and how often its last frame is repeated.
const FRAMES_PER_SECOND: f64 = 8.0;
const LAST_FRAMES: usize = 8;

/// `4`, or `0-99`.
fn seeds(argument: &str) -> std::result::Result<Seeds, String> {
    let number =
        |text: &str| text.parse::<u64>().map_err(|_| "expected a seed or two: 4, or 0-99".to_string());
    let (first, last) = argument.split_once('-').unwrap_or((argument, argument));
    let (first, last) = (number(first)?, number(last)?);
    match last.checked_sub(first) {
        None => Err("the last seed comes before the first".to_string()),
        Some(more) if more >= MOST_SCENES => Err(format!("at most {MOST_SCENES} scenes")),
        Some(_) => Ok(Seeds(first, last)),
    }
}

/// Runs the policy in the scenes, prints their results, and writes the animated picture.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if let Some(path) = &args.out {
        is_gif(path)?;
        check_free(path, args.force)?;
    }
    let mut options = context.options()?;
    if let Some(key) = &args.unnorm_key {
        options.settings.insert("unnorm_key".to_string(), json!(key));
    }
    let model = context.open_with(&args.model.source, &options)?;
    abilities::check(model.card(), "act")?;
    let _stoppable = context.interrupt.hold();
    let Seeds(first, last) = args.scenes;
    let config = SceneConfig {
        blocks: args.blocks,
        unnorm_key: args.unnorm_key,
        image_size: args.image_size,
        view: match args.view {
            ViewName::Fixed => View::Fixed,
            ViewName::Carriage => View::Carriage,
        },
        wording: match args.wording {
            WordingName::Plain => Wording::Plain,
            WordingName::Varied => Wording::Varied,
        },
        ..SceneConfig::default()
    };
    let bar = context.bars.begin("scenes", Unit::Items, Some(last - first + 1));
    let mut results = Results::default();
    for seed in first..=last {
        context.interrupt.check()?;
        results.add(model.policy()?, seed, &config)?;
        bar.advance(1);
    }
    drop(bar);
    results.print(model.as_ref(), context)?;
    if let Some(path) = &args.out {
        let mut output = Output::open(Some(path), args.force)?;
        output.bytes(&to_gif(&results.film(&config)?, FRAMES_PER_SECOND)?)?;
        output.finish()?;
        context.say(&format!("animated picture: {}", path.display()));
    }
    Ok(Exit::Done)
}

fn is_gif(path: &Path) -> Result<()> {
    match path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gif")) {
        true => Ok(()),
        false => {
            Err(Error::input("animated pictures are written as .gif").at(path).hint("use --out FILE.gif"))
        }
    }
}

/// Episodes, without their images.
#[derive(Default)]
struct Results {
    episodes: Vec<Episode>,
    steps: usize,
    seconds: f64,
}

impl Results {
    fn add(&mut self, policy: &dyn Policy, seed: u64, config: &SceneConfig) -> Result<()> {
        let begun = Instant::now();
        let mut episode = run_episode(policy, seed, config)?;
        self.seconds += begun.elapsed().as_secs_f64();
        self.steps += episode.steps.len();
        episode.steps.iter_mut().for_each(|step| step.frame = None);
        episode.last_frame = None;
        self.episodes.push(episode);
        Ok(())
    }

    fn solved(&self) -> usize {
        self.episodes.iter().filter(|episode| episode.success).count()
    }

    fn print(&self, model: &dyn Pipeline, context: &Context) -> Result<()> {
        let (scenes, solved) = (self.episodes.len(), self.solved());
        let others = self.episodes.iter().filter(|episode| episode.took_other).count();
        let rate = self.steps as f64 / self.seconds.max(1e-9);
        let mut output = Output::stdout();
        if context.globals.json {
            for Episode { seed, instruction, steps, success, took_other, .. } in &self.episodes {
                output.json(&json!({
                    "seed": seed, "instruction": instruction, "success": success, "took_other": took_other,
                    "steps": steps.len(),
                }))?;
            }
            output.json(&json!({
                "source": model.card().source, "episodes": scenes, "successes": solved,
                "success_rate": solved as f64 / scenes as f64, "took_other": others, "steps": self.steps, "steps_per_second": rate,
            }))?;
        } else {
            let mut table = Table::default();
            for Episode { seed, instruction, steps, success, took_other, .. } in &self.episodes {
                let result = match (success, took_other) {
                    (true, _) => "solved",
                    (false, true) => "took another block",
                    _ => "not solved",
                };
                table.row([&format!("scene {seed}"), instruction, result, &format!("{} steps", steps.len())]);
            }
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
            let other = if others > 0 { format!(", another block taken in {others}") } else { String::new() };
            output
                .line(format!("{solved} of {scenes} scenes solved{other}; {rate:.0} actions per second"))?;
        }
        output.finish()
    }

    /// The first scenes side by side, seen from in front of the table; the shorter episodes are padded with their last
    /// frames.
    fn film(&self, config: &SceneConfig) -> Result<Vec<Image>> {
        let config = SceneConfig { view: View::Fixed, image_size: 224, ..config.clone() };
        let shown = &self.episodes[..self.episodes.len().min(SHOWN)];
        let films = shown.iter().map(|episode| repeated(episode, &config)).collect::<Result<Vec<_>>>()?;
        let longest = films.iter().map(Vec::len).max().unwrap_or(0) + LAST_FRAMES;
        let columns = if films.len() > 3 { films.len().div_ceil(2) } else { films.len() };
        let at = |film: &Vec<Image>, time: usize| film[time.min(film.len() - 1)].clone();
        (0..longest)
            .map(|time| sheet::grid(&films.iter().map(|film| at(film, time)).collect::<Vec<_>>(), columns))
            .collect()
    }
}

/// The images of the actions of an episode in its scene, as another camera sees them.
fn repeated(episode: &Episode, config: &SceneConfig) -> Result<Vec<Image>> {
    let mut scene = Scene::new(episode.seed, config)?;
    let mut frames = vec![scene.frame()];
    for step in &episode.steps {
        scene.step(&step.action)?;
        frames.push(scene.frame());
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_one_or_a_range() {
        let read = |text| seeds(text).map(|Seeds(first, last)| (first, last));
        assert_eq!((read("4"), read("0-99")), (Ok((4, 4)), Ok((0, 99))));
        for wrong in ["", "a", "5-4", "1-", "-3", "0-100000", "0..9"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
