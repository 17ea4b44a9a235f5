//! Training: examples, a model with variables, its gradients, and the optimizer.

mod config;
mod data;
pub mod example;
mod learner;
mod optimizer;
mod save;
mod state;
mod trainer;

pub use config::{Schedule, TrainingConfig};
pub use data::{Examples, Order};
pub use example::{Example, Step, Target};
pub use learner::Learner;
pub use optimizer::AdamW;
pub use state::RunDescription;
pub use trainer::{StepReport, Trainer};
