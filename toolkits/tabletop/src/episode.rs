//! Episodes of a policy: recorded, evaluated, and as training data.

use fauna_shared::item::Image;
use fauna_shared::model::{DegreeOfFreedom, Observation, Policy, Task};
use fauna_shared::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::scene::{Goal, Scene, SceneConfig};

/// Number of proprioceptive values at the start of a state: position, rotation and opening of the gripper.
const PROPRIO: usize = 7;

/// A recorded episode.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// Seed of the scene.
    pub seed: u64,
    /// Instruction.
    pub instruction: String,
    /// Observations and actions, in order.
    pub steps: Vec<EpisodeStep>,
    /// The image after the last action; `None` without rendering.
    pub last_frame: Option<Image>,
    /// Whether the goal was reached.
    pub success: bool,
    /// Whether the gripper held another block than the one to be moved.
    pub took_other: bool,
}

/// An observation and the action that followed.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeStep {
    /// Image; `None` without rendering.
    pub frame: Option<Image>,
    /// State, as of [`Scene::state`].
    pub state: Vec<f64>,
    /// Action of the policy, as for [`Scene::step`].
    pub action: Vec<f64>,
}

/// A step as training data, with the fields of an RLDS data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingStep<'a> {
    /// Instruction.
    pub instruction: &'a str,
    /// Image before the action.
    pub frame: Option<&'a Image>,
    /// State before the action.
    pub state: &'a [f64],
    /// Action.
    pub action: &'a [f64],
    /// Whether it is the first step of its episode.
    pub is_first: bool,
    /// Whether it is the last step of its episode.
    pub is_last: bool,
}

impl Episode {
    /// The steps as training data.
    pub fn training_steps(&self) -> impl ExactSizeIterator<Item = TrainingStep<'_>> {
        self.steps.iter().enumerate().map(|(i, step)| TrainingStep {
            instruction: &self.instruction,
            frame: step.frame.as_ref(),
            state: &step.state,
            action: &step.action,
            is_first: i == 0,
            is_last: i + 1 == self.steps.len(),
        })
    }

    /// All images, with the last one; none without rendering.
    pub fn frames(&self) -> impl Iterator<Item = &Image> {
        self.steps.iter().filter_map(|step| step.frame.as_ref()).chain(&self.last_frame)
    }
}

/// Runs `policy` in the scene of `seed` until the goal is reached or [`max_steps`](SceneConfig::max_steps) are taken.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for an option out of range or a policy without seven degrees of freedom; and
/// errors of the policy.
pub fn run_episode(policy: &dyn Policy, seed: u64, config: &SceneConfig) -> Result<Episode> {
    let mut scene = Scene::new(seed, config)?;
    let instruction = scene.instruction();
    let task = Task { instruction: instruction.clone(), unnorm_key: config.unnorm_key.clone() };
    let mut controller = policy.start(&task)?;
    let degrees = controller.degrees().len();
    if degrees != DegreeOfFreedom::END_EFFECTOR.len() {
        return Err(Error::input(format!("the policy has {degrees} degrees of freedom, the gripper has 7")));
    }
    let empty = Image {
        width: config.image_size,
        height: config.image_size,
        rgb: match config.render {
            true => Vec::new(),
            false => vec![0; config.image_size * config.image_size * 3],
        },
    };
    let (mut steps, mut took_other) = (Vec::new(), false);
    let (Goal::PickUp(wanted) | Goal::Stack(wanted, _)) = scene.goal();
    while steps.len() < config.max_steps && !scene.is_done() {
        let frame = config.render.then(|| scene.frame());
        let state = scene.state();
        let seen = Observation { frame: frame.as_ref().unwrap_or(&empty), state: &state };
        let action = controller.act(&seen)?;
        scene.step(&action).map_err(|error| error.context(format!("step {} of seed {seed}", steps.len())))?;
        took_other |= scene.gripper().held_block.is_some_and(|block| block != wanted);
        steps.push(EpisodeStep { frame, state, action });
    }
    let last_frame = config.render.then(|| scene.frame());
    Ok(Episode { seed, instruction, steps, last_frame, success: scene.is_done(), took_other })
}

/// Result of a policy over several scenes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EvaluationResult {
    /// Number of episodes.
    pub episodes: usize,
    /// Number of episodes that reached the goal.
    pub successes: usize,
    /// Number of episodes in which another block was held than the one to be moved.
    pub took_other: usize,
    /// Number of steps of all episodes.
    pub steps: usize,
}

impl EvaluationResult {
    /// Success rate from 0 to 1; 0 without episodes.
    pub fn success_rate(&self) -> f64 {
        self.successes as f64 / self.episodes.max(1) as f64
    }
}

/// Runs `policy` in the scenes of `seeds`.
///
/// # Errors
/// As [`run_episode`].
pub fn evaluate(
    policy: &dyn Policy,
    seeds: impl IntoIterator<Item = u64>,
    config: &SceneConfig,
) -> Result<EvaluationResult> {
    let mut result = EvaluationResult { episodes: 0, successes: 0, took_other: 0, steps: 0 };
    for seed in seeds {
        let episode = run_episode(policy, seed, config)?;
        result.episodes += 1;
        result.successes += usize::from(episode.success);
        result.took_other += usize::from(episode.took_other);
        result.steps += episode.steps.len();
    }
    Ok(result)
}

/// Statistics of recorded episodes under `key`, in the format of `norm_stats` and `dataset_statistics.json` of OpenVLA: of
/// the actions, and of position, rotation and opening of the gripper (`proprio`). The opening is not normalised (`mask`), as
/// in the data sets of OpenVLA.
///
/// ```
/// use fauna_tabletop::{Expert, SceneConfig, dataset_statistics, run_episode};
/// let config = SceneConfig { render: false, ..SceneConfig::default() };
/// let episodes = [run_episode(&Expert, 1, &config)?, run_episode(&Expert, 2, &config)?];
/// let stored = dataset_statistics("tabletop", &episodes)?;
/// assert_eq!(stored["tabletop"]["num_trajectories"], 2);
/// assert_eq!(stored["tabletop"]["action"]["q99"].as_array().map(Vec::len), Some(7));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if there are no steps, or a step has an action or state of another size.
pub fn dataset_statistics(key: &str, episodes: &[Episode]) -> Result<Value> {
    let records: Vec<TrainingStep> = episodes.iter().flat_map(Episode::training_steps).collect();
    if records.is_empty() {
        return Err(Error::input("the episodes have no steps"));
    }
    if let Some(odd) = records
        .iter()
        .find(|r| r.action.len() != DegreeOfFreedom::END_EFFECTOR.len() || r.state.len() < PROPRIO)
    {
        return Err(Error::input(format!(
            "expected actions of {} and states of at least {PROPRIO} numbers, got {} and {}",
            DegreeOfFreedom::END_EFFECTOR.len(),
            odd.action.len(),
            odd.state.len()
        )));
    }
    let mut action = moments(records.iter().map(|record| record.action), DegreeOfFreedom::END_EFFECTOR.len());
    action["mask"] = json!(DegreeOfFreedom::END_EFFECTOR.each_ref().map(|degree| degree.name != "gripper"));
    let proprio = moments(records.iter().map(|record| &record.state[..PROPRIO]), PROPRIO);
    Ok(json!({key: {
        "action": action,
        "proprio": proprio,
        "num_transitions": records.len(),
        "num_trajectories": episodes.len(),
    }}))
}

/// Mean, standard deviation, minimum, maximum, 1st and 99th percentile of each of `width` columns.
fn moments<'a>(rows: impl Iterator<Item = &'a [f64]> + Clone, width: usize) -> Value {
    let mut found: [Vec<f64>; 6] = Default::default();
    for column in 0..width {
        let mut values: Vec<f64> = rows.clone().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let quantiles = [0.0, 1.0, 0.01, 0.99].map(|share| quantile(&values, share));
        for (list, value) in found.iter_mut().zip([mean, variance.sqrt()].into_iter().chain(quantiles)) {
            list.push(value);
        }
    }
    let [mean, std, min, max, q01, q99] = found;
    json!({"mean": mean, "std": std, "min": min, "max": max, "q01": q01, "q99": q99})
}

/// Quantile of sorted `values` with linear interpolation.
fn quantile(values: &[f64], share: f64) -> f64 {
    let rank = share * (values.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    values[below] + (values[above] - values[below]) * (rank - below as f64)
}
