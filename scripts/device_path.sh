#!/usr/bin/env bash
# Checks on the CPU what a GPU computes: with the CPU kernels off (FAUNA_KERNELS=off) weights are kept and products
# computed as on another device, by candle's operations.
#
#   scripts/device_path.sh           every parity case, then the conformance sweep: about an hour on two cores
#   scripts/device_path.sh --sample  each fifth parity case whose checkpoint is in the repository: a few minutes
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
    "")
        fauna parity tests/parity --offline
        cargo test --quiet --test conformance
        ;;
    --sample)
        # A case with no folder `model` is of a real checkpoint.
        mapfile -t cases < <(find tests/parity -name model -type d -prune | sort | awk 'NR % 5 == 1' | xargs -n 1 dirname)
        fauna parity "${cases[@]}" --offline --quiet > /dev/null
        echo "${#cases[@]} parity cases agree with the CPU kernels off"
        ;;
    *)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
        exit 2
        ;;
esac
