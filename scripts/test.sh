#!/usr/bin/env bash
# Downloads the eight small released checkpoints that the tests use (720 MB, once), then runs all tests: unit tests, parity
# cases, conformance tests, tests of the program, and the console blocks of the README. No test is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 scripts/fetch_test_models.py
export FAUNA_REQUIRE_CHECKPOINTS=1
cargo test --workspace --quiet "$@"
