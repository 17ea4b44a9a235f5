//! A small table-top simulation for robot policies: a gripper, coloured blocks, an instruction, a camera.
//!
//! A [`Scene`] is created from a seed, takes actions of seven numbers (changes of the position in metres and of the rotation
//! in radians, and the opening of the gripper), and is observed as an image and as a state vector. It is a kinematic
//! simulation with exact rules and without dynamics: released blocks fall, nothing else moves by itself. [`run_episode`]
//! runs a [`Policy`](fauna_shared::model::Policy) in one scene and records it, [`evaluate`] measures its success rate,
//! [`Expert`] is a scripted policy that solves every scene, [`SmoothExpert`] one that is easier to imitate, and [`dataset_statistics`] prepares episodes for training.
//!
//! ```
//! use fauna_tabletop::{Expert, SceneConfig, evaluate, run_episode};
//! let config = SceneConfig { render: false, ..SceneConfig::default() };
//! let episode = run_episode(&Expert, 7, &config)?;
//! assert!(episode.success);
//! assert!(episode.instruction.starts_with("pick up the "));
//! assert_eq!(episode.steps[0].action.len(), 7);
//! assert_eq!(evaluate(&Expert, 0..10, &config)?.success_rate(), 1.0);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod camera;
mod episode;
mod expert;
mod objects;
mod paint;
mod scene;
#[cfg(test)]
mod tests;

pub use episode::{
    Episode, EpisodeStep, EvaluationResult, TrainingStep, dataset_statistics, evaluate, run_episode,
};
pub use expert::{Expert, SmoothExpert};
pub use objects::{Block, Colour, Gripper};
pub use scene::{Goal, Scene, SceneConfig, TaskKind, View, Wording};
