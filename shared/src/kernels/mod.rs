//! CPU kernels, chosen at run time by what the processor has. The only room with SIMD and the only one, besides
//! the memory map, with `unsafe`.

pub mod attention;
pub mod blocks;
pub mod conv;
pub mod conv2d;
pub mod cpu;
pub mod elementwise;
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
