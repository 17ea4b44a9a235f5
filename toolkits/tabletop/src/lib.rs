//! A small table-top to try any policy on: a gripper, coloured blocks, an instruction, a camera.
//!
//! [`Scene`] is the world, decided by its seed: it takes actions of seven numbers (a step of the gripper in metres, of
//! its turn in radians, and how far it is to be open), and shows itself as a picture and as a row of numbers. There is
//! no gravity but for what is let go, and nothing swings: a scene is a game with rules, exact and fast, not a physics
//! engine. [`run_episode`] lets a [`Policy`](fauna_shared::model::Policy) play one scene and records it, [`evaluate`]
//! tells how often one succeeds, and [`Expert`] knows how to.
//!
//! ```
//! use fauna_tabletop::{Expert, Setting, evaluate, run_episode};
//! let setting = Setting { rendering: false, ..Setting::default() };
//! let episode = run_episode(&Expert, 7, &setting)?;
//! assert!(episode.success);
//! assert!(episode.instruction.starts_with("pick up the "));
//! assert_eq!(episode.steps[0].action.len(), 7);
//! assert_eq!(evaluate(&Expert, 0..10, &setting)?.rate(), 1.0);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod camera;
mod episode;
mod expert;
mod paint;
mod scene;
#[cfg(test)]
mod tests;

pub use episode::{Episode, Record, Score, Step, evaluate, run_episode, statistics};
pub use expert::Expert;
pub use scene::{Block, Colour, Goal, Gripper, Job, Scene, Setting};
