//! Memory returns when a model is dropped: alone in its process, since it measures that.
#![cfg(all(target_os = "linux", feature = "builtin"))]

use fauna::LoadOptions;
use fauna::runtime::Runtime;

/// Resident memory of this process, in bytes, without the pages of mapped files.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Weights widened to float32 take 90 MB; a model that is dropped gives them back.
#[test]
fn the_memory_of_a_dropped_model_returns() {
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
