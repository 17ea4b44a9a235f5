//! Training: a model with variables, its gradients, and the optimizer.

mod learner;
mod optimizer;

pub use learner::Learner;
pub use optimizer::AdamW;
