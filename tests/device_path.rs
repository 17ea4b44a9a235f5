//! The path of a device that is no CPU, on the CPU: with the CPU kernels off, candle's operations compute. The setting is
//! of the whole process, so every test here has it; `scripts/device_path.sh` runs all cases and the conformance sweep.

use std::path::{Path, PathBuf};
use std::process::Command;

use fauna::runtime::Runtime;
use fauna::transfer::Transfers;
use fauna::{LoadOptions, Tensors, parity};
use serde_json::json;

/// The folders of cases below `tests/parity/NAME` that hold their checkpoints themselves.
fn cases_of(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
    parity::find(&folder).unwrap().into_iter().filter(|case| case.join("model").is_dir()).collect()
}

#[test]
fn a_case_of_each_family_agrees_without_the_cpu_kernels() {
    Runtime::set_kernels(false);
    let (zoo, options) = (fauna::zoo(), LoadOptions::default());
    let mut failures = Vec::new();
    // They are found in order: the first of each family differs from its predecessor's.
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

/// A file in blocks, and one of experts in MXFP4.
#[test]
fn quantised_weights_agree_without_the_cpu_kernels() {
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
fn the_environment_turns_the_kernels_off_and_what_it_does_not_know_is_refused() {
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

/// Copies that a greedy step of decoding makes between the CPU's memory and the device's, for `rows` prompts of the model
/// of a case.
fn copies_per_step(case: &str, prompts: &[&[i64]], mask: Option<&[&[i64]]>) -> (f64, f64) {
    Runtime::set_kernels(false);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(case).join("model");
    let file = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|end| end == "gguf"));
    let source = file.unwrap_or(folder);
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
        // No end token: every row writes all of them.
        let options = json!({"max_new_tokens": tokens, "eos_token_id": [], "pad_token_id": 0});
        model.call("generate", &inputs, &options).unwrap();
        Transfers::made() - before
    };
    let (few, many) = (made(3), made(11));
    let each = |few: u64, many: u64| (many - few) as f64 / 8.0;
    (each(few.to_host, many.to_host), each(few.to_device, many.to_device))
}

/// The token comes back; it goes there again, and with it the angles of its position.
#[test]
fn a_greedy_step_copies_little_between_the_memories() {
    let (to_host, to_device) = copies_per_step("llama/generate", &[&[1, 5, 7]], None);
    assert!(to_host <= 1.0 && to_device <= 2.0, "{to_host} to the CPU, {to_device} from it");
}

/// Padding is masked anew for each step, since each has one key more; all layers share the mask.
#[test]
fn a_greedy_step_over_padded_rows_copies_a_mask_and_no_more() {
    let prompts: [&[i64]; 2] = [&[0, 0, 1, 5], &[1, 5, 7, 9]];
    let mask: [&[i64]; 2] = [&[0, 0, 1, 1], &[1, 1, 1, 1]];
    let (to_host, to_device) = copies_per_step("llama/generate", &prompts, Some(&mask));
    assert!(to_host <= 1.0 && to_device <= 3.0, "{to_host} to the CPU, {to_device} from it");
}

/// Rows of a table in blocks are read in the CPU's memory, and the table is not widened.
#[test]
fn a_greedy_step_over_blocks_copies_the_rows_it_looks_up() {
    let (to_host, to_device) = copies_per_step("llama/gguf_q8_0", &[&[1, 5, 7]], None);
    assert!(to_host <= 2.0 && to_device <= 3.0, "{to_host} to the CPU, {to_device} from it");
}
