//! Records a scripted expert in the simulated table-top as training data, or evaluates a policy in scenes of their own.
//!
//!     cargo run --release --example tabletop_episodes -- record episodes 200
//!     fauna tune openvla/openvla-7b --data episodes --lora 32 --out tuned
//!     cargo run --release --example tabletop_episodes -- evaluate tuned/best 20
//!
//! `evaluate expert 20` evaluates the expert, `evaluate random 20` random actions. Options:
//!
//!     --blocks N      blocks in a scene (1)
//!     --fewer         one block to that many, by the seed, in recorded scenes; the recorded state is then the gripper's
//!     --size PIXELS   height and width of the images (112)
//!     --first SEED    the first seed (10000 to record, 0 to evaluate)
//!     --carriage      the camera is on the carriage of the gripper
//!     --varied        the instruction in several phrasings
//!     --smooth        the expert that is easier to imitate, more noise, and episodes that begin nearer to the block
//!     --turn-near     with --smooth, an expert that turns the jaws near the block only
//!     --whole         all of the episodes from their beginning
//!
//! A policy that only saw the expert's own way does not know what to do beside it. So the gripper does not move exactly
//! as the expert says, and some of its actions are random; the expert corrects this in the next steps, and what is
//! recorded is the action of the expert (Laskey et al. 2017, arXiv 1703.09327).

use std::time::Instant;

use anyhow::Context;
use fauna::datasets::{EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};
use fauna::generate::Rng;
use fauna::model::{Controller, DegreeOfFreedom, Observation, Policy, Task};
use fauna::tabletop::{Expert, Scene, SceneConfig, SmoothExpert, View, Wording, evaluate};
use fauna::{Image, Result};

/// The scenes for evaluation are those of the seeds before.
const FIRST_TRAINING_SEED: u64 = 10_000;
/// Number of values at the start of a state that tell of the gripper.
const GRIPPER_STATE: usize = 8;
/// Standard deviation of what is added to the expert's movements, as a share of them.
const NOISE: f64 = 0.3;
/// Share of the actions that are random ones instead.
const RANDOM: f64 = 0.1;
/// With `--smooth`: the standard deviations of what is added to movements besides, and the share of the steps at which three
/// random actions begin.
const SPREAD: [f64; 6] = [0.003, 0.003, 0.002, 0.0, 0.0, 0.03];
const DIVERTED: f64 = 0.03;
/// With `--turn-near`: the distance from the block in metres within which the expert turns the jaws.
const TURNS_WITHIN: f64 = 0.06;

/// What the command line says, apart from its command.
struct Options {
    config: SceneConfig,
    first: Option<u64>,
    fewer: bool,
    smooth: bool,
    turn_near: bool,
    whole: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, options) = parse(&arguments)?;
    let smooth = match options.turn_near {
        true => SmoothExpert { turns_within: TURNS_WITHIN },
        false => SmoothExpert::default(),
    };
    let expert: &dyn Policy = if options.smooth { &smooth } else { &Expert };
    match command[..] {
        ["record", folder, episodes] => {
            let first = options.first.unwrap_or(FIRST_TRAINING_SEED);
            let seeds = first..first + episodes.parse::<u64>()?;
            let episodes = seeds.map(|seed| record(seed, expert, &options)).collect::<Result<Vec<_>>>()?;
            let steps = write_episodes(folder, &episodes, &WriteOptions::new("gripper", 5, &["front"]))?;
            println!("{} episodes, {steps} steps", episodes.len());
        }
        ["evaluate", model, episodes] => {
            let first = options.first.unwrap_or(0);
            let seeds = first..(first + episodes.parse::<u64>()?).min(FIRST_TRAINING_SEED);
            let opened = if ["expert", "random"].contains(&model) { None } else { Some(fauna::open(model)?) };
            let policy = match (&opened, model) {
                (Some(opened), _) => opened.policy()?,
                (None, "expert") => expert,
                _ => &Random,
            };
            let begun = Instant::now();
            let score = evaluate(policy, seeds, &options.config)?;
            println!(
                "{} of {} scenes, {} steps, another block taken in {}, {:.1} steps per second",
                score.successes,
                score.episodes,
                score.steps,
                score.took_other,
                score.steps as f64 / begun.elapsed().as_secs_f64()
            );
        }
        _ => anyhow::bail!("expected: record FOLDER EPISODES, or evaluate MODEL EPISODES"),
    }
    Ok(())
}

/// The command with its arguments, and the options.
fn parse(arguments: &[String]) -> anyhow::Result<(Vec<&str>, Options)> {
    let config = SceneConfig { blocks: 1, image_size: 112, ..SceneConfig::default() };
    let mut options =
        Options { config, first: None, fewer: false, smooth: false, turn_near: false, whole: false };
    let (mut command, mut rest) = (Vec::new(), arguments.iter().map(String::as_str));
    while let Some(argument) = rest.next() {
        let mut number = || -> anyhow::Result<u64> {
            let value = rest.next().with_context(|| format!("{argument} needs a number"))?;
            value.parse().with_context(|| format!("{argument} {value}"))
        };
        match argument {
            "--blocks" => options.config.blocks = usize::try_from(number()?)?,
            "--size" => options.config.image_size = usize::try_from(number()?)?,
            "--first" => options.first = Some(number()?),
            "--fewer" => options.fewer = true,
            "--carriage" => options.config.view = View::Carriage,
            "--varied" => options.config.wording = Wording::Varied,
            "--smooth" => options.smooth = true,
            "--turn-near" => options.turn_near = true,
            "--whole" => options.whole = true,
            _ if argument.starts_with("--") => anyhow::bail!("unknown option {argument}"),
            _ => command.push(argument),
        }
    }
    Ok((command, options))
}

/// Uniformly random actions, as large as those of the expert.
struct Random;

/// The largest changes of position in metres and of yaw in radians that the expert makes in a step.
const CHANGES: [f64; 6] = [0.03, 0.03, 0.03, 0.0, 0.0, 0.2];

impl Policy for Random {
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        let seed = task.instruction.bytes().fold(0, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte));
        Ok(Box::new(RandomActions(Rng::new(seed, 2))))
    }
}

struct RandomActions(Rng);

impl Controller for RandomActions {
    fn act(&mut self, _: &Observation) -> Result<Vec<f64>> {
        let changes = CHANGES.map(|most| most * (2.0 * self.0.uniform() - 1.0));
        Ok([&changes[..], &[self.0.uniform().round()]].concat())
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        DegreeOfFreedom::END_EFFECTOR
    }
}

/// The observations and the actions of the expert in the scene of `seed`, whose gripper moves inexactly.
fn record(seed: u64, expert: &dyn Policy, options: &Options) -> Result<RobotEpisode> {
    let mut config = options.config.clone();
    if options.fewer {
        config.blocks = 1 + (seed % config.blocks.max(1) as u64) as usize;
    }
    let mut scene = Scene::new(seed, &config)?;
    let instruction = scene.instruction();
    let mut expert = expert.start(&Task { instruction: instruction.clone(), unnorm_key: None })?;
    let mut random = Rng::new(seed, 1);
    let mut other = RandomActions(Rng::new(seed, 2));
    let mut frames = Vec::new();
    // Far from the block every step is alike: some episodes begin nearer to it.
    let unrecorded = match options.smooth && !options.whole {
        true => (random.uniform() * 10.0) as usize,
        false => 0,
    };
    let (mut steps, mut diverted) = (0, 0_usize);
    while !scene.is_done() && steps < config.max_steps {
        let state = scene.state();
        let image = match steps < unrecorded {
            true => Image { width: 0, height: 0, rgb: Vec::new() },
            false => scene.frame(),
        };
        let seen = Observation { frame: &image, state: &state };
        let action = expert.act(&seen)?;
        let moved = action.iter().enumerate().map(|(axis, number)| match axis {
            0..6 => {
                number * (1.0 + NOISE * random.normal())
                    + if options.smooth { SPREAD[axis] * random.normal() } else { 0.0 }
            }
            _ => *number,
        });
        let moved: Vec<f64> = moved.collect();
        let is_random = random.uniform() < RANDOM;
        if options.smooth && random.uniform() < DIVERTED {
            diverted = 3;
        }
        scene.step(&if is_random || diverted > 0 { other.act(&seen)? } else { moved })?;
        if steps >= unrecorded {
            let state = if options.fewer { state[..GRIPPER_STATE].to_vec() } else { state };
            frames.push(EpisodeFrame { images: vec![image], state, action });
        }
        (steps, diverted) = (steps + 1, diverted.saturating_sub(1));
    }
    Ok(RobotEpisode { instruction, frames })
}
