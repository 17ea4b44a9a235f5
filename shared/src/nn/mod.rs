//! Neural network layers, independent of the storage of their weights: float32, bfloat16, float16, or ggml's quantized
//! blocks; in a memory-mapped file, in memory, or on a GPU.

mod activation;
mod add;
pub(crate) mod back;
pub(crate) mod blocks;
mod conv;
mod conv2d;
pub(crate) mod fused;
pub(crate) mod host;
mod incidence;
mod linear;
mod loss;
pub(crate) mod low_rank;
mod lstm;
mod matrix;
mod mlp;
mod norm;
mod patches;
mod softmax;
mod swiglu;

pub use activation::Activation;
pub use add::{add, add_repeated, concat};
pub use back::select_rows;
pub use blocks::{KINDS, block_kind, block_name};
pub use conv::{Conv1d, ConvOptions, ConvTranspose1d, PadMode, pad_time};
pub use conv2d::{Conv2d, Conv2dOptions, double, max_pool};
pub use incidence::Incidence;
pub use linear::{Embedding, Linear};
pub use loss::{IGNORE_INDEX, binary_cross_entropy, cross_entropy, cross_entropy_sum, mean_squared_error};
pub use lstm::{Lstm, LstmState};
pub use matrix::Matrix;
pub use mlp::Mlp;
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use patches::Patches;
pub use softmax::{l2_normalize, softmax};
pub use swiglu::clamped_swiglu;
