//! Training steps of a model on one batch, for `benches/peers/train.py`, which runs PyTorch in turns with it.
//!
//! The first line on standard input is JSON: `model`, a folder with a config; `inputs`, a safetensors file with the batch
//! by the reference's argument names; `lora`, the rank of an adapter, or null to train all weights; `recompute`, whether
//! activations are computed again; `loss`, options of the loss. For every further line it takes as many steps as the line says, and prints the seconds of each on one line, as
//! JSON with the loss and the peak memory in bytes.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use fauna::LoadOptions;
use fauna::adapter::{AdapterConfig, TargetModules};
use fauna::grad::Recording;
use fauna::train::{AdamW, Learner, Trained};
use fauna::weights::{Select, tensors};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut lines = std::io::stdin().lock().lines();
    // Without input it is a benchmark run for its build alone.
    let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) else { return Ok(()) };
    let work: Value = serde_json::from_str(&line)?;
    let threads = work["threads"].as_u64().map(|threads| threads as usize);
    fauna::runtime::Runtime::set_threads(threads);
    let trained = match work["lora"].as_u64() {
        None => Trained::weights(Select::All),
        Some(rank) => Trained::lora(AdapterConfig {
            r: rank as usize,
            lora_alpha: 2.0 * rank as f64,
            target_modules: Some(TargetModules::AllLinear),
            ..AdapterConfig::default()
        }),
    };
    let model = work["model"].as_str().ok_or("no model")?;
    let options = match work["random"].as_u64() {
        Some(seed) => LoadOptions::default().with_initial_weights(seed),
        None => LoadOptions::default(),
    };
    let mut learner = Learner::open(&fauna::zoo(), model, &options, trained)?;
    let inputs = tensors(Path::new(work["inputs"].as_str().ok_or("no inputs")?))?;
    let (mut gradients, mut optimizer) = (learner.gradients(), AdamW::default());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"parameters": learner.variables().parameters()}))?;
    out.flush()?;
    for line in lines {
        let mut seconds = Vec::new();
        let mut last = 0.0;
        for _ in 0..line?.trim().parse::<usize>()? {
            let begun = Instant::now();
            gradients.clear();
            let recording = match work["recompute"].as_bool() {
                Some(true) => Recording::recomputing(),
                _ => Recording::new(),
            };
            let loss = learner.loss(&inputs, &work["loss"])?;
            gradients.backward(&loss.value)?;
            drop(recording);
            optimizer.step(&learner.variables().all(), &gradients, 1e-4, 1.0)?;
            last = loss.value.detach().to_scalar::<f32>()?;
            drop(loss);
            seconds.push(begun.elapsed().as_secs_f64());
        }
        writeln!(out, "{}", json!({"seconds": seconds, "loss": last, "peak": peak()}))?;
        out.flush()?;
    }
    Ok(())
}

/// The peak resident memory of this process in bytes, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}
