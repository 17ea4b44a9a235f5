//! Speed of the forward and backward kernels of training: `cargo bench -p fauna-kernels --bench training [FILTER]`.
//!
//! Prints the median of several runs. With `--serve`, each line of the standard input is the name of a case, of which
//! one run is timed: `benches/peers/training.py` alternates with PyTorch.

use fauna_kernels::attention::{
    Causal, Gradients, Mask, Sizes, View, attend_backward, attend_with_statistics,
};
use fauna_kernels::blocks::{self, BlockKind, Blocks};
use fauna_kernels::matmul::{
    Compute, Dense, Elem, Layout, linear, linear_input_gradient, linear_weight_gradient,
};
use fauna_kernels::mxfp4::{self, Mxfp4};
use fauna_kernels::pool;
use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

/// A case by its name, as one run of it.
type Case = Box<dyn FnMut()>;

fn numbers(n: usize) -> Vec<f32> {
    let mut state = n as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn bytes(x: &[f32], elem: Elem) -> Vec<u8> {
    match elem {
        Elem::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Elem::Bf16 => x.iter().flat_map(|x| x.to_bits().to_le_bytes()[2..].to_vec()).collect(),
        Elem::F16 => unreachable!("not among the cases"),
    }
}

fn dense(data: &[u8], elem: Elem, (outputs, inputs): (usize, usize)) -> Dense<'_> {
    Dense::new(data, elem, Layout::OutIn, outputs, inputs).expect("the bytes of the weight")
}

/// `linear ROWS INPUTS OUTPUTS forward|input|weight|bf16`.
fn linear_case(words: &[&str]) -> Case {
    let sizes: Vec<usize> = words[..3].iter().map(|word| word.parse().expect("a size")).collect();
    let [rows, inputs, outputs] = sizes[..] else { unreachable!("three sizes") };
    let (x, grad, w) = (numbers(rows * inputs), numbers(rows * outputs), numbers(outputs * inputs));
    let mut y = vec![0f32; rows * outputs.max(inputs)];
    let (sizes, data) = ((outputs, inputs), bytes(&w, Elem::F32));
    match words[3] {
        "forward" => Box::new(move || {
            let (weight, y) = (dense(&data, Elem::F32, sizes), black_box(&mut y[..rows * outputs]));
            linear(&x, rows, &weight, None, Compute::F32, None, y);
        }),
        "input" => Box::new(move || {
            let y = black_box(&mut y[..rows * inputs]);
            let weight = dense(&data, Elem::F32, sizes);
            linear_input_gradient(&grad, rows, &weight, Compute::F32, false, y);
        }),
        "bf16" => {
            let data = bytes(&w, Elem::Bf16);
            Box::new(move || {
                let weight = dense(&data, Elem::Bf16, sizes);
                let y = black_box(&mut y[..rows * inputs]);
                linear_input_gradient(&grad, rows, &weight, Compute::Bf16, false, y);
            })
        }
        "weight" => {
            let (mut dw, mut db) = (w, vec![0f32; outputs]);
            Box::new(move || {
                let (dw, db) = black_box((&mut dw[..], &mut db[..]));
                linear_weight_gradient(&grad, &x, rows, sizes, Layout::OutIn, false, dw, Some(db));
            })
        }
        other => panic!("unknown pass {other}"),
    }
}

/// `attention BATCH HEADS KV_HEADS SEQUENCE DIM causal|full`, forward and backward.
fn attention_case(words: &[&str]) -> Case {
    let sizes: Vec<usize> = words[..5].iter().map(|word| word.parse().expect("a size")).collect();
    let [batch, heads, kv_heads, n, dim] = sizes[..] else { unreachable!("five sizes") };
    let causal = (words[5] == "causal").then_some(Causal { offset: 0, window: None });
    let sizes = Sizes { batch, heads, kv_heads, queries: n, keys: n, dim };
    let (q, grad) = (numbers(batch * n * heads * dim), numbers(batch * n * heads * dim));
    let (k, v) = (numbers(batch * n * kv_heads * dim), numbers(batch * n * kv_heads * dim));
    let (mut y, mut statistics) = (vec![0f32; q.len()], vec![0f32; 2 * batch * n * heads]);
    let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
    let scale = 1.0 / (dim as f32).sqrt();
    Box::new(move || {
        fn view(data: &[f32], heads: usize, n: usize, dim: usize) -> View<'_> {
            View { data, batch: n * heads * dim, head: dim, time: heads * dim }
        }
        let views = [(&q, heads), (&k, kv_heads), (&v, kv_heads)].map(|(x, heads)| view(x, heads, n, dim));
        let [q, k, v] = black_box(views);
        let mask = Mask { causal, ..Mask::default() };
        attend_with_statistics(&sizes, q, k, v, scale, &mask, &mut y, &mut statistics);
        let gradients = Gradients { q: &mut dq, k: &mut dk, v: &mut dv, bias: None, sinks: None };
        attend_backward(&sizes, q, k, v, scale, &mask, &y, &statistics, &grad, black_box(gradients));
    })
}

/// `blocks ROWS INPUTS OUTPUTS KIND`, the gradient of the input; KIND is a format of ggml or `mxfp4`.
fn blocks_case(words: &[&str]) -> Case {
    let sizes: Vec<usize> = words[..3].iter().map(|word| word.parse().expect("a size")).collect();
    let [rows, inputs, outputs] = sizes[..] else { unreachable!("three sizes") };
    let (grad, mut dx) = (numbers(rows * outputs), vec![0f32; rows * inputs]);
    if words[3] == "mxfp4" {
        let data: Vec<u8> = (0..outputs * inputs / 2).map(|i| (i * 7 % 251) as u8).collect();
        let scales = vec![120; outputs * inputs / mxfp4::BLOCK];
        return Box::new(move || {
            let weight = Mxfp4::new(&data, &scales, outputs, inputs).expect("the bytes of the weight");
            mxfp4::linear_input_gradient(&grad, rows, &weight, Compute::F32, false, black_box(&mut dx));
        });
    }
    let kind: BlockKind = words[3].parse().expect("a format");
    let mut data = vec![0; kind.bytes(outputs * inputs)];
    blocks::quantize(kind, &numbers(outputs * inputs), &mut data);
    Box::new(move || {
        let weight = Blocks::new(&data, kind, outputs, inputs).expect("the bytes of the weight");
        blocks::linear_input_gradient(&grad, rows, &weight, Compute::F32, false, black_box(&mut dx));
    })
}

fn case(name: &str) -> Case {
    let words: Vec<&str> = name.split(' ').collect();
    match words[0] {
        "linear" => linear_case(&words[1..]),
        "attention" => attention_case(&words[1..]),
        "blocks" => blocks_case(&words[1..]),
        other => panic!("unknown case {other}"),
    }
}

/// Nanoseconds that this thread ran, where the system says so.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Seconds of a run, and seconds that this thread ran: the mean of as many runs as take 50 ms, since the system counts
/// in milliseconds.
fn time(run: &mut Case) -> (f64, f64) {
    let (begin, processor, mut runs) = (Instant::now(), processor_time(), 0.0);
    while begin.elapsed().as_millis() < 50 {
        run();
        runs += 1.0;
    }
    (begin.elapsed().as_secs_f64() / runs, (processor_time() - processor) / 1e9 / runs)
}

fn serve() {
    let mut last: Option<(String, Case)> = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(name) = line else { return };
        if last.as_ref().is_none_or(|(known, _)| *known != name) {
            let mut run = case(&name);
            run();
            last = Some((name, run));
        }
        if let Some((_, run)) = &mut last {
            let (wall, processor) = time(run);
            println!("{wall} {processor}");
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(threads) = std::env::var("THREADS").ok().and_then(|n| n.parse().ok()) {
        pool::set_threads(threads);
    }
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve();
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with("--")).cloned().unwrap_or_default();
    let mut names = Vec::new();
    for sizes in ["1024 576 1536", "1024 1536 576", "2048 128 512", "1024 576 49152"] {
        names.extend(["forward", "input", "bf16", "weight"].map(|pass| format!("linear {sizes} {pass}")));
    }
    let attention =
        ["4 9 3 256 64 causal", "8 4 4 256 32 causal", "64 4 4 50 64 full", "1 8 8 2048 64 causal"];
    names.extend(attention.map(|sizes| format!("attention {sizes}")));
    let kinds = BlockKind::ALL.map(BlockKind::name).into_iter().chain(["mxfp4"]);
    names.push("linear 512 1024 1536 input".into());
    names.extend(kinds.map(|kind| format!("blocks 512 1024 1536 {kind}")));
    for name in names.iter().filter(|name| name.contains(&filter)) {
        let mut run = case(name);
        run();
        let mut seconds: Vec<f64> = (0..7).map(|_| time(&mut run).0).collect();
        seconds.sort_by(f64::total_cmp);
        println!("{name:44} {:10.2} ms", seconds[3] * 1e3);
    }
}
