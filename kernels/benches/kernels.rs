//! Speed of the kernels: `cargo bench -p fauna-kernels --bench kernels [FILTER]`.
//!
//! Prints the median of several runs. `FAUNA_ISA` chooses the instruction set.

use fauna_kernels::attention::{Causal, Mask, Sizes, View, attend};
use fauna_kernels::cpu::isa;
use fauna_kernels::matmul::{Compute, Dense, Elem, Layout, linear};
use fauna_kernels::mxfp4::{self, Mxfp4};
use fauna_kernels::pool;
use std::hint::black_box;
use std::time::Instant;

/// Median seconds of one call; at least 7 calls and 60 ms.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let (begin, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < 7 || (begin.elapsed().as_millis() < 60 && runs.len() < 1000) {
        let begin = Instant::now();
        f();
        runs.push(begin.elapsed().as_secs_f64());
    }
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn row(name: &str, seconds: f64, operations: f64, bytes: f64) {
    println!(
        "{name:44} {:10.1} us {:8.1} GFLOP/s {:7.1} GB/s",
        seconds * 1e6,
        operations / seconds / 1e9,
        bytes / seconds / 1e9
    );
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    println!("{} with {} threads", isa().name(), pool::threads());

    if wanted("dispatch") {
        let seconds = time(|| (0..1000).for_each(|_| pool::parallel_for(2, |i| _ = black_box(i))));
        row("dispatch of a region", seconds / 1000.0, 0.0, 0.0);
    }

    // Large enough together that no copy is still in cache when its turn comes.
    const MEMORY: usize = 192 << 20;
    let cases = [
        (4096, 384, 1536),
        (4096, 1536, 384),
        (512, 384, 384),
        (128, 576, 1536),
        (64, 768, 3072),
        (16, 384, 1536),
        (16, 2048, 2048),
        (8, 2048, 2048),
        (4, 2048, 2048),
        (2, 2048, 2048),
        (1, 2048, 2048),
        (1, 576, 1536),
        (1, 768, 2304),
    ];
    for (rows, k, n) in cases {
        for (elem, compute) in [
            (Elem::F32, Compute::F32),
            (Elem::Bf16, Compute::F32),
            (Elem::F16, Compute::F32),
            (Elem::Bf16, Compute::Bf16),
        ] {
            for layout in [Layout::OutIn, Layout::InOut] {
                let name = format!("linear {rows}x{k}x{n} {elem:?} {layout:?} in {compute:?}");
                if !wanted(&name) {
                    continue;
                }
                let bytes = n * k * elem.size();
                let copies = if rows < 16 { MEMORY / bytes } else { 1 };
                let data = vec![0x3cu8; bytes * copies];
                let x = vec![0.01f32; rows * k];
                let mut y = vec![0f32; rows * n];
                let seconds = time(|| {
                    for copy in data.chunks_exact(bytes) {
                        let weight = Dense::new(copy, elem, layout, n, k).unwrap();
                        linear(black_box(&x), rows, &weight, None, compute, None, &mut y);
                    }
                    black_box(&mut y);
                });
                let seconds = seconds / copies as f64;
                row(&name, seconds, 2.0 * (rows * k * n) as f64, bytes as f64);
            }
        }
    }

    // The experts of gpt-oss.
    for rows in [1, 2, 4, 8, 32, 512] {
        let (k, n) = (2880, 5760);
        let name = format!("mxfp4 {rows}x{k}x{n}");
        if !wanted(&name) {
            continue;
        }
        let (blocks, scales) = (n * k / 2, n * k / mxfp4::BLOCK);
        let copies = if rows < 16 { MEMORY / blocks } else { 1 };
        let data: Vec<u8> = (0..blocks * copies).map(|i| (i * 7 % 251) as u8).collect();
        let powers = vec![120; scales * copies];
        let x = vec![0.01f32; rows * k];
        let mut y = vec![0f32; rows * n];
        let seconds = time(|| {
            for (blocks, scales) in data.chunks_exact(blocks).zip(powers.chunks_exact(scales)) {
                let weight = Mxfp4::new(blocks, scales, n, k).unwrap();
                mxfp4::linear(black_box(&x), rows, &weight, None, Compute::F32, None, &mut y);
            }
            black_box(&mut y);
        });
        let seconds = seconds / copies as f64;
        row(&name, seconds, 2.0 * (rows * k * n) as f64, (blocks + scales) as f64);
    }

    for (batch, heads, kv_heads, queries, keys, dim, causal) in [
        (32, 12, 12, 128, 128, 32, false),
        (1, 12, 12, 16, 16, 32, false),
        (8, 12, 12, 197, 197, 64, false),
        (1, 9, 3, 1000, 1000, 64, true),
        (1, 12, 12, 2048, 2048, 64, true),
        (1, 9, 3, 1, 200, 64, true),
        (1, 12, 12, 1, 1000, 64, true),
        (1, 32, 8, 1, 8000, 128, true),
    ] {
        let name = format!("attend {batch}x{heads}/{kv_heads} {queries} on {keys} of {dim}, causal {causal}");
        if !wanted(&name) {
            continue;
        }
        let (q, kv) =
            (vec![0.01f32; batch * heads * queries * dim], vec![0.02f32; batch * kv_heads * keys * dim]);
        let mut y = vec![0f32; q.len()];
        let view =
            |data, heads, times| View { data, batch: heads * times * dim, head: times * dim, time: dim };
        let sizes = Sizes { batch, heads, kv_heads, queries, keys, dim };
        let causal = causal.then_some(Causal { offset: keys - queries, window: None });
        let mask = Mask { causal, ..Mask::default() };
        let seconds = time(|| {
            let (k, v) = (view(&kv[..], kv_heads, keys), view(&kv[..], kv_heads, keys));
            attend(&sizes, view(black_box(&q), heads, queries), k, v, 0.1, &mask, &mut y);
            black_box(&mut y);
        });
        let share = if causal.is_some() && queries > 1 { 0.5 } else { 1.0 };
        let operations = 4.0 * (batch * heads * queries * keys * dim) as f64 * share;
        row(&name, seconds, operations, (8 * batch * kv_heads * keys * dim) as f64);
    }
}
