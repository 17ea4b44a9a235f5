#!/usr/bin/env bash
# Fetches the eight small real checkpoints the tests use (720 MB, once), then runs every test: units, parity cases,
# the sweep over all families, whole programs, the README's blocks. None is skipped for want of a checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 scripts/fetch_test_models.py
export FAUNA_REQUIRE_CHECKPOINTS=1
cargo test --workspace --quiet "$@"
