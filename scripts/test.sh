#!/usr/bin/env bash
# Fetches the three small real checkpoints the tests use (420 MB, once), then runs every test: units, parity cases,
# the sweep over all families, whole programs, the README's blocks.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 scripts/fetch_test_models.py
cargo test --workspace --quiet "$@"
