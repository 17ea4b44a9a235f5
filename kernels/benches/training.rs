//! Speed of the forward and backward kernels of training: `cargo bench -p fauna-kernels --bench training [FILTER]`.
//!
//! Prints the median of several runs. With `--serve`, each line of the standard input is the name of a case, of which
//! one run is timed: `benches/peers/training.py` alternates with PyTorch.

use fauna_kernels::matmul::{
    Compute, Dense, Elem, Layout, linear, linear_input_gradient, linear_weight_gradient,
};
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

fn case(name: &str) -> Case {
    let words: Vec<&str> = name.split(' ').collect();
    match words[0] {
        "linear" => linear_case(&words[1..]),
        other => panic!("unknown case {other}"),
    }
}

/// Nanoseconds that this thread ran, where the system says so.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Seconds of one run, and seconds that this thread ran.
fn time(run: &mut Case) -> (f64, f64) {
    let (begin, processor) = (Instant::now(), processor_time());
    run();
    (begin.elapsed().as_secs_f64(), (processor_time() - processor) / 1e9)
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
    for name in names.iter().filter(|name| name.contains(&filter)) {
        let mut run = case(name);
        run();
        let mut seconds: Vec<f64> = (0..7).map(|_| time(&mut run).0).collect();
        seconds.sort_by(f64::total_cmp);
        println!("{name:44} {:10.2} ms", seconds[3] * 1e3);
    }
}
