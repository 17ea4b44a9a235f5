//! The path of a device that is no CPU, on the CPU: with the CPU kernels off, candle's operations compute. The setting is
//! of the whole process, so every test here has it; `scripts/device_path.sh` runs all cases and the conformance sweep.

use std::path::{Path, PathBuf};
use std::process::Command;

use fauna::runtime::Runtime;
use fauna::{LoadOptions, parity};

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    for family in std::fs::read_dir(folder).unwrap() {
        let family = family.unwrap().file_name();
        let Some(case) = cases_of(family.to_str().unwrap()).into_iter().next() else { continue };
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
