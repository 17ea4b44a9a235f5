//! CPU kernels of `fauna`, selected at run time by the instruction sets of the processor. This is the only crate with
//! SIMD, and the only one with `unsafe` code other than memory-mapping files. The kernels work on slices and their
//! sizes; tensors, devices and files belong to `fauna-shared`, which re-exports this crate as `fauna_shared::kernels`.

pub mod attention;
pub mod blocks;
pub mod conv;
pub mod conv2d;
pub mod cpu;
pub mod elementwise;
mod error;
pub mod loss;
pub mod lstm;
pub mod matmul;
pub mod memory;
pub mod mxfp4;
pub mod norm;
pub mod optimizer;
mod outer;
pub mod pool;
pub mod rope;
pub mod segments;
mod simd;
mod versions;

pub use error::InvalidInput;
