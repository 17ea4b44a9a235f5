//! Speed of convolutions and of the LSTM in the shapes of the 32 kHz EnCodec over 30 seconds:
//! `cargo bench -p fauna-shared --bench conv [FILTER]`. `benches/peers/conv.py` times PyTorch on the same.
//!
//! Prints median, minimum and maximum of five runs after one warm-up run.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use fauna_kernels::{cpu::isa, pool};
use fauna_shared::Result;
use fauna_shared::nn::{Activation, ConvOptions, PadMode, pad_time};
use fauna_shared::runtime::Runtime;
use fauna_shared::weights::Weights;

/// Inputs, outputs, kernel, stride, frames out.
const CONVOLUTIONS: [[usize; 5]; 14] = [
    [128, 1024, 7, 1, 1500],
    [512, 256, 3, 1, 12_000],
    [256, 512, 1, 1, 12_000],
    [256, 128, 3, 1, 60_000],
    [128, 64, 3, 1, 240_000],
    [64, 32, 3, 1, 960_000],
    [32, 64, 1, 1, 960_000],
    [64, 1, 7, 1, 960_000],
    [1, 64, 7, 1, 960_000],
    [64, 128, 8, 4, 240_000],
    [128, 256, 8, 4, 60_000],
    [256, 512, 10, 5, 12_000],
    [512, 1024, 16, 8, 1500],
    [1024, 128, 7, 1, 1500],
];

/// Inputs, outputs, kernel, stride, frames in.
const TRANSPOSED: [[usize; 5]; 4] =
    [[1024, 512, 16, 8, 1500], [512, 256, 10, 5, 12_000], [256, 128, 8, 4, 60_000], [128, 64, 8, 4, 240_000]];

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    println!("{} with {} threads", isa().name(), pool::threads());
    for [inputs, outputs, kernel, stride, frames] in CONVOLUTIONS {
        let name = format!("conv {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        if wanted(&name) {
            let conv = weights().conv1d("", inputs, outputs, ConvOptions::new(kernel).stride(stride))?;
            let x = sound((frames - 1) * stride + kernel, inputs)?;
            time(&name, 2 * inputs * outputs * kernel * frames, || conv.forward(&x))?;
        }
    }
    for [inputs, outputs, kernel, stride, frames] in TRANSPOSED {
        let name = format!("transposed {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        if wanted(&name) {
            let conv =
                weights().conv_transpose1d("", inputs, outputs, ConvOptions::new(kernel).stride(stride))?;
            let x = sound(frames, inputs)?;
            time(&name, 2 * inputs * outputs * kernel * frames, || conv.forward(&x))?;
        }
    }
    if wanted("lstm") {
        let (lstm, x) = (weights().lstm("", 1024, 1024, 2)?, sound(1500, 1024)?);
        time("lstm, two layers of 1024", 2 * 2 * 2 * 4096 * 1024 * 1500, || lstm.forward(&x))?;
    }
    if wanted("elu") {
        let x = sound(960_000, 64)?;
        time("elu of 64 channels", 64 * 960_000, || Activation::Elu.forward(&x))?;
    }
    if wanted("pad") {
        let x = sound(960_000, 64)?;
        time("pad of 64 channels", 0, || pad_time(&x, 1, 1, PadMode::Reflect))?;
    }
    Ok(())
}

fn weights() -> Weights {
    Weights::seeded(1, Runtime::cpu())
}

fn sound(frames: usize, channels: usize) -> Result<Tensor> {
    Ok(Tensor::full(0.1f32, (1, frames, channels), &Device::Cpu)?.contiguous()?)
}

fn time(name: &str, operations: usize, f: impl Fn() -> Result<Tensor>) -> Result<()> {
    black_box(f()?);
    let mut runs = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        black_box(f()?);
        runs.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    runs.sort_by(f64::total_cmp);
    let (median, least, most) = (runs[2], runs[0], runs[4]);
    let rate = operations as f64 / median / 1e6;
    println!("{name:44} {median:7.1} ms ({least:.1} to {most:.1}) {rate:6.0} GFLOP/s");
    Ok(())
}
