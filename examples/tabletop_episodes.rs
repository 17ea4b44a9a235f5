//! Records a scripted expert in the simulated table-top as training data, or evaluates a policy in scenes of their own.
//!
//!     cargo run --release --example tabletop_episodes -- record episodes 200
//!     fauna tune openvla/openvla-7b --data episodes --lora 32 --out tuned
//!     cargo run --release --example tabletop_episodes -- evaluate tuned/best 20
//!
//! `evaluate expert 20` evaluates the expert, `evaluate random 20` random actions.
//!
//! A policy that only saw the expert's own way does not know what to do beside it. So the gripper does not move exactly
//! as the expert says, and some of its actions are random; the expert corrects this in the next steps, and what is
//! recorded is the action of the expert (Laskey et al. 2017, arXiv 1703.09327).

use fauna::Result;
use fauna::datasets::{EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};
use fauna::generate::Rng;
use fauna::model::{Controller, DegreeOfFreedom, Observation, Policy, Task};
use fauna::tabletop::{Expert, Scene, SceneConfig, evaluate};

/// The scenes for evaluation are those of the seeds before.
const FIRST_TRAINING_SEED: u64 = 10_000;
/// Standard deviation of what is added to the expert's movements, as a share of them.
const NOISE: f64 = 0.3;
/// Share of the actions that are random ones instead.
const RANDOM: f64 = 0.1;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let config = SceneConfig { blocks: 1, image_size: 112, ..SceneConfig::default() };
    match arguments[..] {
        ["record", folder, episodes] => {
            let seeds = FIRST_TRAINING_SEED..FIRST_TRAINING_SEED + episodes.parse::<u64>()?;
            let episodes = seeds.map(|seed| record(seed, &config)).collect::<Result<Vec<_>>>()?;
            let steps = write_episodes(folder, &episodes, &WriteOptions::new("gripper", 5, &["front"]))?;
            println!("{} episodes, {steps} steps", episodes.len());
        }
        ["evaluate", model, episodes] => {
            let seeds = 0..episodes.parse::<u64>()?.min(FIRST_TRAINING_SEED);
            let score = match model {
                "expert" => evaluate(&Expert, seeds, &config)?,
                "random" => evaluate(&Random, seeds, &config)?,
                _ => evaluate(fauna::open(model)?.policy()?, seeds, &config)?,
            };
            println!("{} of {} scenes, {} steps", score.successes, score.episodes, score.steps);
        }
        _ => anyhow::bail!("expected: record FOLDER EPISODES, or evaluate MODEL EPISODES"),
    }
    Ok(())
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
fn record(seed: u64, config: &SceneConfig) -> Result<RobotEpisode> {
    let mut scene = Scene::new(seed, config)?;
    let instruction = scene.instruction();
    let mut expert = Expert.start(&Task { instruction: instruction.clone(), unnorm_key: None })?;
    let mut random = Rng::new(seed, 1);
    let mut other = RandomActions(Rng::new(seed, 2));
    let mut frames = Vec::new();
    while !scene.is_done() && frames.len() < config.max_steps {
        let (image, state) = (scene.frame(), scene.state());
        let seen = Observation { frame: &image, state: &state };
        let action = expert.act(&seen)?;
        let moved = action.iter().enumerate().map(|(axis, number)| match axis {
            0..6 => number * (1.0 + NOISE * random.normal()),
            _ => *number,
        });
        let moved: Vec<f64> = moved.collect();
        let is_random = random.uniform() < RANDOM;
        scene.step(&if is_random { other.act(&seen)? } else { moved })?;
        frames.push(EpisodeFrame { images: vec![image], state, action });
    }
    Ok(RobotEpisode { instruction, frames })
}
