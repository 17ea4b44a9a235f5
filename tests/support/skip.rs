//! What a test does that lacks a checkpoint: it says so, or fails where checkpoints are required.

use std::io::Write;

/// Says on standard error, past the harness's capture, that `test` is skipped and `why`.
///
/// # Panics
/// Where `FAUNA_REQUIRE_CHECKPOINTS` is set, as `scripts/test.sh` sets it: there a skip is a failure.
pub fn skipped(test: &str, why: &str) {
    let line = format!("skipped: {test} ({why}; scripts/fetch_test_models.py fetches it)");
    let required = std::env::var_os("FAUNA_REQUIRE_CHECKPOINTS").is_some_and(|value| value != "0");
    assert!(!required, "{line}");
    // One write, so that lines of other threads do not come between.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
