//! Speed of linear layers with quantized weights: bytes of weights read and operations per second, for each format,
//! instruction set and number of rows.
//!
//!     cargo bench -p fauna-kernels --bench blocks [-- q4_1 q8_0]
//!
//! Each instruction set runs in its own process, since `FAUNA_ISA` is read once.

use std::process::Command;
use std::time::{Duration, Instant};

use fauna_kernels::blocks::{BlockKind, Blocks, linear};
use fauna_kernels::cpu::{Isa, isa};

const INPUTS: usize = 1536;
/// Rows and outputs: one row with a matrix larger than the caches, as in decoding; many rows with one that fits.
const CASES: [(usize, usize); 3] = [(1, 49_152), (16, 1536), (256, 1536)];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::var_os("FAUNA_ISA").is_none() {
        for isa in Isa::all_available() {
            let this = std::env::current_exe().expect("this program has a path");
            let status = Command::new(this).args(&names).env("FAUNA_ISA", isa.name()).status();
            assert!(status.expect("it starts again").success());
        }
        return;
    }
    let all = || BlockKind::ALL.to_vec();
    let named = || names.iter().map(|name| name.parse().expect("a format's name")).collect();
    for kind in if names.is_empty() { all() } else { named() } {
        print!("{kind} {:8}", isa().name());
        for (rows, outputs) in CASES {
            // Arbitrary bytes with small scales: speed does not depend on the values.
            let mut data = vec![0x21; kind.bytes(outputs * INPUTS)];
            for (i, byte) in data.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
                *byte = (i * 7 % 251) as u8;
            }
            let weights = Blocks::new(&data, kind, outputs, INPUTS).expect("whole blocks");
            let x: Vec<f32> = (0..rows * INPUTS).map(|i| (i as f32).sin()).collect();
            let mut y = vec![0.0; rows * outputs];
            let (start, mut best) = (Instant::now(), Duration::MAX);
            while start.elapsed() < Duration::from_millis(300) {
                let began = Instant::now();
                linear(&x, rows, &weights, None, &mut y);
                best = best.min(began.elapsed());
            }
            let seconds = best.as_secs_f64() * 1e9;
            let operations = 2.0 * (rows * outputs * INPUTS) as f64 / seconds;
            print!("  {rows:3} rows {:5.1} GB/s {operations:5.0} GFLOP/s", data.len() as f64 / seconds);
        }
        println!();
    }
}
