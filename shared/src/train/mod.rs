//! Training: examples, a model with variables, its gradients, and the optimizer.

mod config;
mod data;
pub mod example;
mod learner;
mod merge;
mod optimizer;
mod run;
mod save;
mod state;
mod trainer;

#[cfg(test)]
mod tests;

pub use config::{Schedule, TrainingConfig};
pub use data::{Examples, Order, permutation};
pub use example::{Example, Step, Target};
pub use learner::{Learner, Trained};
pub use merge::merge;
pub use optimizer::AdamW;
pub use run::{BEST, Event, LAST, Outcome, Run};
pub use state::RunDescription;
pub use trainer::{StepReport, Trainer};
