//! Tests that a dropped model releases its memory, in a process of its own because it measures resident memory.
#![cfg(all(target_os = "linux", feature = "builtin"))]

use fauna::LoadOptions;
use fauna::runtime::Runtime;

/// Returns the resident memory of this process in bytes, without memory-mapped files.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Weights dequantized to float32 take 90 MB, which are released with the model.
#[test]
fn a_dropped_model_releases_its_memory() {
    let runtime = Runtime::cpu().with_dequantize(true);
    let options = LoadOptions { runtime, ..LoadOptions::default() };
    let mut after = Vec::new();
    let mut most = 0;
    for _ in 0..4 {
        let model = fauna::open_with("minilm", &options).unwrap();
        model.embed(&["a cat".into()]).unwrap();
        most = most.max(anonymous_memory());
        drop(model);
        after.push(anonymous_memory());
    }
    assert!(most > after[0] + 40_000_000, "loading takes memory: {most} at most, {after:?} after");
    assert!(after[3] < after[0] + 20_000_000, "{after:?}");
}
