//! CPU kernels, chosen at run time by what the processor has. The only room with SIMD and the only one, besides
//! the memory map, with `unsafe`.

pub mod cpu;
pub mod matmul;
pub mod pool;
mod simd;
