//! Training: examples, a model with variables, its gradients, and the optimizer.

pub mod example;
mod learner;
mod optimizer;

pub use example::{Example, Step, Target};
pub use learner::Learner;
pub use optimizer::AdamW;
