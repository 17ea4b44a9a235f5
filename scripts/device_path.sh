#!/usr/bin/env bash
# Checks on the CPU what a GPU computes: with the CPU kernels off (FAUNA_KERNELS=off) weights are kept and products
# computed as on another device, by candle's operations.
#
#   scripts/device_path.sh          every parity case, then the conformance sweep: some minutes on two cores
#   scripts/device_path.sh --cases  every parity case: half a minute once the program is built
#
# FAUNA_DEVICE_PATH_PROGRAM names a program that is built already; without it `fauna` is built for testing.
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
