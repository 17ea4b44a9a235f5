//! Time of one decoding step: the matrix products and the attention of MusicGen-small (24 layers of hidden size 1024,
//! two rows because of guidance), without the rest of the network.
//!
//!     cargo bench -p fauna-shared --bench step [-- q4_0 f32 attention]
//!
//! For each weight format: the median milliseconds of all products of a step, and the bytes of weights read per second.
//! `FAUNA_ISA` chooses the instruction set.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

use fauna_kernels::attention::{Causal, Mask, Sizes, View, attend};
use fauna_kernels::blocks::{self, BlockKind, Blocks};
use fauna_kernels::cpu::isa;
use fauna_kernels::matmul::{self, Compute, Dense, Elem, Layout};
use fauna_kernels::pool;
use std::hint::black_box;
use std::time::Instant;

const LAYERS: usize = 24;
const WIDTH: usize = 1024;
/// Outputs and inputs: queries, keys and values at once; the output; queries of and output from the text; feed-forward.
const LAYER: [(usize, usize); 6] = [
    (3 * WIDTH, WIDTH),
    (WIDTH, WIDTH),
    (WIDTH, WIDTH),
    (WIDTH, WIDTH),
    (4 * WIDTH, WIDTH),
    (WIDTH, 4 * WIDTH),
];
/// Four heads of 2048 codes.
const HEAD: (usize, usize) = (4 * 2048, WIDTH);

#[derive(Clone, Copy)]
enum Format {
    Dense(Elem, Compute),
    Blocks(BlockKind),
}

impl Format {
    fn bytes(self, elements: usize) -> usize {
        match self {
            Format::Dense(elem, _) => elements * elem.size(),
            Format::Blocks(kind) => kind.bytes(elements),
        }
    }

    fn multiply(self, x: &[f32], rows: usize, data: &[u8], (outputs, inputs): (usize, usize), y: &mut [f32]) {
        let (x, y) = (&x[..rows * inputs], &mut y[..rows * outputs]);
        match self {
            Format::Dense(elem, compute) => {
                let weight = Dense::new(data, elem, Layout::OutIn, outputs, inputs).expect("its bytes");
                matmul::linear(x, rows, &weight, None, compute, None, y);
            }
            Format::Blocks(kind) => blocks::linear(
                x,
                rows,
                &Blocks::new(data, kind, outputs, inputs).expect("its bytes"),
                None,
                y,
            ),
        }
    }
}

/// Median seconds of one call; at least 7 calls and 400 ms.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let (begin, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < 7 || begin.elapsed().as_millis() < 400 {
        let begin = Instant::now();
        f();
        runs.push(begin.elapsed().as_secs_f64());
    }
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    println!("{} with {} threads", isa().name(), pool::threads());

    let shapes: Vec<_> = (0..LAYERS).flat_map(|_| LAYER).chain([HEAD]).collect();
    let elements: usize = shapes.iter().map(|(outputs, inputs)| outputs * inputs).sum();
    for (name, format) in [
        ("f32", Format::Dense(Elem::F32, Compute::F32)),
        ("bf16", Format::Dense(Elem::Bf16, Compute::Bf16)),
        ("q8_0", Format::Blocks(BlockKind::Q8_0)),
        ("q6_k", Format::Blocks(BlockKind::Q6K)),
        ("q4_k", Format::Blocks(BlockKind::Q4K)),
        ("q4_0", Format::Blocks(BlockKind::Q4_0)),
    ] {
        if !wanted(name) {
            continue;
        }
        // Arbitrary bytes with small scales: speed does not depend on the values.
        let mut data = vec![0x21u8; format.bytes(elements)];
        data.iter_mut().enumerate().step_by(2).for_each(|(i, byte)| *byte = (i * 7 % 251) as u8);
        let mut y = vec![0f32; 4 * HEAD.0];
        for rows in [1, 2, 4] {
            let x: Vec<f32> = (0..rows * 4 * WIDTH).map(|i| (i as f32).sin()).collect();
            let seconds = time(|| {
                let mut data = &data[..];
                for &shape in &shapes {
                    let (weight, rest) = data.split_at(format.bytes(shape.0 * shape.1));
                    format.multiply(black_box(&x), rows, weight, shape, &mut y);
                    data = rest;
                }
            });
            let rate = data.len() as f64 / seconds / 1e9;
            println!("{name:5} {rows} rows  {:7.2} ms a step {rate:6.1} GB/s", seconds * 1e3);
        }
    }

    if wanted("attention") {
        const ROOM: usize = 1536;
        let (batch, heads, dim) = (2, 16, 64);
        let cache = vec![0.02f32; 2 * LAYERS * batch * heads * ROOM * dim];
        let q = vec![0.01f32; batch * heads * dim];
        let mut y = vec![0f32; q.len()];
        for keys in [20, 250, 750, 1500] {
            let seconds = time(|| {
                for layer in cache.chunks_exact(2 * batch * heads * ROOM * dim) {
                    let (k, v) = layer.split_at(layer.len() / 2);
                    let view = |data| View { data, batch: heads * ROOM * dim, head: ROOM * dim, time: dim };
                    let q = View { data: &q, batch: heads * dim, head: dim, time: dim };
                    let sizes = Sizes { batch, heads, kv_heads: heads, queries: 1, keys, dim };
                    let causal = Some(Causal { offset: keys - 1, window: None });
                    let mask = Mask { causal, ..Mask::default() };
                    attend(&sizes, q, view(k), view(v), 0.1, &mask, &mut y);
                    black_box(&mut y);
                }
            });
            let bytes = (4 * 2 * LAYERS * batch * heads * keys * dim) as f64;
            println!(
                "attention to {keys:4} keys {:7.2} ms a step {:6.1} GB/s",
                seconds * 1e3,
                bytes / seconds / 1e9
            );
        }
    }
}
