//! Policies at play: one episode, recorded; many, counted; and what a training needs to know of their actions.

use fauna_shared::item::Image;
use fauna_shared::model::{DegreeOfFreedom, Observation, Policy, Task};
use fauna_shared::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::scene::{Scene, Setting};

/// Numbers of a state that are the robot's own: place, turn and opening of the gripper.
const PROPRIO: usize = 7;

/// What happened in one scene.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// The scene's seed.
    pub seed: u64,
    /// What was asked for.
    pub instruction: String,
    /// What was seen and done, in order.
    pub steps: Vec<Step>,
    /// The last picture, after the last action; none where nothing is drawn.
    pub last: Option<Image>,
    /// Whether what was asked for was done in time.
    pub success: bool,
}

/// One step: what was seen, then what was done.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The picture; none where nothing is drawn.
    pub frame: Option<Image>,
    /// As [`Scene::state`] tells it.
    pub state: Vec<f64>,
    /// As the policy gave it: metres, radians, and 0 to 1.
    pub action: Vec<f64>,
}

/// One step as a training reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record<'a> {
    /// What was asked for.
    pub instruction: &'a str,
    /// The picture before the action.
    pub frame: Option<&'a Image>,
    /// The state before the action.
    pub state: &'a [f64],
    /// What was done.
    pub action: &'a [f64],
    /// Whether it is the first step of its episode.
    pub is_first: bool,
    /// Whether it is the last.
    pub is_last: bool,
}

impl Episode {
    /// Its steps as a training reads them.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.steps.iter().enumerate().map(|(i, step)| Record {
            instruction: &self.instruction,
            frame: step.frame.as_ref(),
            state: &step.state,
            action: &step.action,
            is_first: i == 0,
            is_last: i + 1 == self.steps.len(),
        })
    }

    /// Its pictures, the last one too; none where nothing is drawn.
    pub fn frames(&self) -> impl Iterator<Item = &Image> {
        self.steps.iter().filter_map(|step| step.frame.as_ref()).chain(&self.last)
    }
}

/// Lets `policy` play the scene of `seed` until it is done or its time is over.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for a setting out of range or a policy whose actions have other numbers than
/// a gripper's; and whatever the policy says.
pub fn run_episode(policy: &dyn Policy, seed: u64, setting: &Setting) -> Result<Episode> {
    let mut scene = Scene::new(seed, setting)?;
    let instruction = scene.instruction();
    let task = Task { instruction: instruction.clone(), unnorm_key: setting.unnorm_key.clone() };
    let mut controller = policy.start(&task)?;
    let degrees = controller.degrees().len();
    if degrees != DegreeOfFreedom::END_EFFECTOR.len() {
        return Err(Error::input(format!("the policy moves {degrees} degrees, the gripper has 7")));
    }
    let empty = Image {
        width: setting.side,
        height: setting.side,
        rgb: match setting.rendering {
            true => Vec::new(),
            false => vec![0; setting.side * setting.side * 3],
        },
    };
    let mut steps = Vec::new();
    while steps.len() < setting.limit && !scene.is_done() {
        let frame = setting.rendering.then(|| scene.frame());
        let state = scene.state();
        let seen = Observation { frame: frame.as_ref().unwrap_or(&empty), state: &state };
        let action = controller.act(&seen)?;
        scene.step(&action).map_err(|error| error.context(format!("step {} of seed {seed}", steps.len())))?;
        steps.push(Step { frame, state, action });
    }
    let last = setting.rendering.then(|| scene.frame());
    Ok(Episode { seed, instruction, steps, last, success: scene.is_done() })
}

/// How a policy did over several scenes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Scenes played.
    pub episodes: usize,
    /// Scenes in which what was asked for was done in time.
    pub successes: usize,
    /// Steps in all of them.
    pub steps: usize,
}

impl Score {
    /// The share of successes, 0 to 1; 0 where nothing was played.
    pub fn rate(&self) -> f64 {
        self.successes as f64 / self.episodes.max(1) as f64
    }
}

/// How often `policy` succeeds in the scenes of `seeds`.
///
/// # Errors
/// As [`run_episode`].
pub fn evaluate(
    policy: &dyn Policy,
    seeds: impl IntoIterator<Item = u64>,
    setting: &Setting,
) -> Result<Score> {
    let mut score = Score { episodes: 0, successes: 0, steps: 0 };
    for seed in seeds {
        let episode = run_episode(policy, seed, setting)?;
        score.episodes += 1;
        score.successes += usize::from(episode.success);
        score.steps += episode.steps.len();
    }
    Ok(score)
}

/// The statistics of recorded episodes under `key`, laid out as OpenVLA's `norm_stats`: of actions, and of the gripper's
/// own place, turn and opening (`proprio`). The gripper's number is left out of the normalisation, as in the sets that
/// OpenVLA was trained on.
///
/// ```
/// use fauna_tabletop::{Expert, Setting, run_episode, statistics};
/// let setting = Setting { rendering: false, ..Setting::default() };
/// let episodes = [run_episode(&Expert, 1, &setting)?, run_episode(&Expert, 2, &setting)?];
/// let stored = statistics("tabletop", &episodes)?;
/// assert_eq!(stored["tabletop"]["num_trajectories"], 2);
/// assert_eq!(stored["tabletop"]["action"]["q99"].as_array().map(Vec::len), Some(7));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if there is no step in them, or a step's action or state has other numbers
/// than a gripper's.
pub fn statistics(key: &str, episodes: &[Episode]) -> Result<Value> {
    let records: Vec<Record> = episodes.iter().flat_map(Episode::records).collect();
    if records.is_empty() {
        return Err(Error::input("no step was recorded, so there is nothing to tell of actions"));
    }
    if let Some(odd) = records
        .iter()
        .find(|r| r.action.len() != DegreeOfFreedom::END_EFFECTOR.len() || r.state.len() < PROPRIO)
    {
        return Err(Error::input(format!(
            "a step of {} numbers of an action and {} of a state: {} and at least {PROPRIO} wanted",
            odd.action.len(),
            odd.state.len(),
            DegreeOfFreedom::END_EFFECTOR.len()
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

/// Mean, deviation, ends and outer percentiles of each of `width` columns.
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

/// The quantile of sorted `values`, between two of them in proportion.
fn quantile(values: &[f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    values[below] + (values[above] - values[below]) * (place - below as f64)
}
