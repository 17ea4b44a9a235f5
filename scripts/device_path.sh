#!/usr/bin/env bash
# Tests the code path of GPUs on the CPU: with the CPU kernels disabled (FAUNA_KERNELS=off), weights are stored and matrix
# products computed as on a GPU, by candle's operations.
#
#   scripts/device_path.sh          all parity cases, then the conformance tests: some minutes on two cores
#   scripts/device_path.sh --cases  all parity cases: half a minute once the program is built
#
# FAUNA_DEVICE_PATH_PROGRAM is the path of a built program; without it `fauna` is built with the test profile.
set -euo pipefail
cd "$(dirname "$0")/.."
export FAUNA_KERNELS=off

fauna() {
    if [ -n "${FAUNA_DEVICE_PATH_PROGRAM:-}" ]; then
        "$FAUNA_DEVICE_PATH_PROGRAM" "$@"
    else
        cargo run --quiet --bin fauna -- "$@"
    fi
}

case "${1:-}" in
    "" | --cases) ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
fauna parity tests/parity --offline > /dev/null
if [ -z "${1:-}" ]; then cargo test --quiet --test conformance; fi
