//! Skipping of tests whose checkpoints are missing.

use std::io::Write;

/// Prints to standard error, past the capture of the test harness, that `test` is skipped and why.
///
/// # Panics
/// If `FAUNA_REQUIRE_CHECKPOINTS` is set, as in `scripts/test.sh`.
pub fn skipped(test: &str, why: &str) {
    let line = format!("skipped: {test} ({why}; scripts/fetch_test_models.py fetches it)");
    let required = std::env::var_os("FAUNA_REQUIRE_CHECKPOINTS").is_some_and(|value| value != "0");
    assert!(!required, "{line}");
    // One write, so that lines of several threads are not interleaved.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
