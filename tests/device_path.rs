//! Tests of the code path of GPUs, run on the CPU: with the CPU kernels disabled, candle's operations are used. The
//! setting applies to the whole process, hence to all tests here; `scripts/device_path.sh` runs all parity cases and the
//! conformance tests in this way.

use std::path::{Path, PathBuf};
use std::process::Command;

use fauna::runtime::Runtime;
use fauna::transfer::Transfers;
use fauna::{LoadOptions, Tensors, parity};
use serde_json::json;

/// Returns the parity cases below `tests/parity/NAME` that include their checkpoints.
fn cases_of(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
    parity::find(&folder).unwrap().into_iter().filter(|case| case.join("model").is_dir()).collect()
}

#[test]
fn one_case_per_family_passes_without_the_cpu_kernels() {
    Runtime::set_kernels(false);
    let (zoo, options) = (fauna::zoo(), LoadOptions::default());
    let mut failures = Vec::new();
    // Cases are sorted: keep the first one of each family.
    let mut cases = cases_of("");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let family = |case: &PathBuf| case.strip_prefix(&folder).unwrap().iter().next().unwrap().to_owned();
    cases.dedup_by_key(|case| family(case));
    assert!(cases.len() > 20, "{cases:?}");
    for case in cases {
        match parity::run(&case, &zoo, &options) {
            Ok(report) if report.passes() => {}
            Ok(report) => failures.push(report.to_string()),
            Err(error) => failures.push(format!("{}: {error}", case.display())),
        }
    }
    assert!(failures.is_empty(), "{} cases fail\n{}", failures.len(), failures.join("\n"));
}

/// Block-quantized GGUF files and MXFP4 experts.
#[test]
fn quantized_weights_pass_without_the_cpu_kernels() {
    Runtime::set_kernels(false);
    let (zoo, options) = (fauna::zoo(), LoadOptions::default());
    let chosen = |case: &PathBuf| {
        let name = case.file_name().unwrap().to_str().unwrap();
        name.contains("gguf_q") || name.contains("mxfp4")
    };
    let cases: Vec<PathBuf> =
        ["llama", "gpt_oss"].into_iter().flat_map(cases_of).filter(chosen).take(4).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let report = parity::run(&case, &zoo, &options).unwrap();
        assert!(report.passes(), "{report}");
    }
}

#[test]
#[cfg(feature = "cli")]
fn the_environment_variable_disables_the_kernels_and_rejects_unknown_values() {
    let case = cases_of("llama").remove(0);
    let run = |setting: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_fauna"));
        program.arg("parity").arg(&case).arg("--offline").env("FAUNA_KERNELS", setting).output().unwrap()
    };
    for known in ["on", "off"] {
        let output = run(known);
        assert!(output.status.success(), "{known}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = run("of");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("FAUNA_KERNELS"), "{message}");
}

/// Returns the number of copies from the device to the host and from the host to the device in a greedy decoding step,
/// for a batch of prompts of the model of a parity case.
fn copies_per_step(case: &str, prompts: &[&[i64]], mask: Option<&[&[i64]]>) -> (f64, f64) {
    Runtime::set_kernels(false);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(case).join("model");
    let written = fauna::parity::ModelFolder::open(&folder).unwrap();
    let file = std::fs::read_dir(written.path()).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|end| end == "gguf"));
    let source = file.unwrap_or_else(|| written.path().to_path_buf());
    let model = fauna::open(source.to_str().unwrap()).unwrap();
    let tensor = |rows: &[&[i64]]| {
        let shape = (rows.len(), rows[0].len());
        fauna::candle::Tensor::from_vec(rows.concat(), shape, &fauna::candle::Device::Cpu).unwrap()
    };
    let mut inputs = Tensors::from([("input_ids".to_string(), tensor(prompts))]);
    if let Some(mask) = mask {
        inputs.insert("attention_mask".to_string(), tensor(mask));
    }
    let made = |tokens: usize| {
        let before = Transfers::made();
        // Without an end-of-sequence token every sequence has the maximum length.
        let options = json!({"max_new_tokens": tokens, "eos_token_id": [], "pad_token_id": 0});
        model.call("generate", &inputs, &options).unwrap();
        Transfers::made() - before
    };
    let (few, many) = (made(3), made(11));
    let each = |few: u64, many: u64| (many - few) as f64 / 8.0;
    (each(few.to_host, many.to_host), each(few.to_device, many.to_device))
}

/// The token is copied to the host; the token and the RoPE angles of its position are copied to the device.
#[test]
fn a_greedy_step_copies_only_the_token_and_its_rope_angles() {
    let (to_host, to_device) = copies_per_step("llama/generate", &[&[1, 5, 7]], None);
    assert!(to_host <= 1.0 && to_device <= 2.0, "{to_host} to the host, {to_device} to the device");
}

/// The attention mask grows by one key in each step, and is shared by all layers.
#[test]
fn a_greedy_step_of_a_padded_batch_copies_one_more_mask() {
    let prompts: [&[i64]; 2] = [&[0, 0, 1, 5], &[1, 5, 7, 9]];
    let mask: [&[i64]; 2] = [&[0, 0, 1, 1], &[1, 1, 1, 1]];
    let (to_host, to_device) = copies_per_step("llama/generate", &prompts, Some(&mask));
    assert!(to_host <= 1.0 && to_device <= 3.0, "{to_host} to the host, {to_device} to the device");
}

/// The router selects experts on the device; the sliding-window layers share one mask.
#[test]
fn a_greedy_step_of_a_mixture_of_experts_selects_experts_on_the_device() {
    let (to_host, to_device) = copies_per_step("gpt_oss/generate", &[&[3, 5, 7]], None);
    assert!(to_host <= 1.0 && to_device <= 3.0, "{to_host} to the host, {to_device} to the device");
}

/// The position bias and the padding mask are copied to the device; fully masked sequences are known there since the
/// first step.
#[test]
fn a_greedy_step_of_t5_copies_as_much_for_fully_masked_sequences() {
    let prompts: [&[i64]; 2] = [&[5, 9, 1, 7], &[4, 6, 8, 3]];
    for last in [1, 0] {
        let mask: [&[i64]; 2] = [&[1, 1, 1, 0], &[last, 0, 0, 0]];
        let (to_host, to_device) = copies_per_step("t5/generate_tied", &prompts, Some(&mask));
        assert!(
            to_host <= 1.0 && to_device <= 2.0,
            "{last}: {to_host} to the host, {to_device} to the device"
        );
    }
}

/// Rows of a quantized embedding table are dequantized on the host, and the table is not dequantized as a whole.
#[test]
fn a_greedy_step_with_a_quantized_embedding_copies_the_rows_it_looks_up() {
    let (to_host, to_device) = copies_per_step("llama/gguf_q8_0", &[&[1, 5, 7]], None);
    assert!(to_host <= 2.0 && to_device <= 3.0, "{to_host} to the host, {to_device} to the device");
}
