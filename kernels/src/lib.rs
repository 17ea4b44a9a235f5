//! The CPU kernels of `fauna`, chosen at run time by what the processor has: the only crate with SIMD, and the only place
//! with `unsafe` besides the memory map. It knows slices of numbers and their sizes; tensors, devices and files are
//! `fauna-shared`'s, which hands these modules on as `fauna_shared::kernels`.

pub mod attention;
pub mod blocks;
pub mod conv;
pub mod conv2d;
pub mod cpu;
pub mod elementwise;
mod error;
pub mod lstm;
pub mod matmul;
pub mod memory;
pub mod mxfp4;
pub mod norm;
pub mod pool;
pub mod rope;
pub mod segments;
mod simd;
mod versions;

pub use error::InvalidInput;
