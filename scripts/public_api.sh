#!/usr/bin/env bash
# The public surface of every crate, recorded in docs/api, one line an item: a change of it is seen in review.
#
#   scripts/public_api.sh           compares the code with what is recorded; says what differs and fails
#   scripts/public_api.sh --write   records the surface of the code
#
# Needs cargo-public-api, which it installs where it is missing. Rustdoc writes its JSON only to those who say that they
# know it to be unstable; RUSTC_BOOTSTRAP says so to the stable toolchain, and to rustdoc alone: build scripts look at it.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
    "" | --write) ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac

version=0.52.0
cargo public-api --version 2> /dev/null | grep -q " $version$" ||
    cargo install --quiet --locked "cargo-public-api@$version"

documents=${CARGO_TARGET_DIR:-target}/doc
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n' > "$made/rustdoc"
chmod +x "$made/rustdoc"
# The library crates of the workspace; the kernels are an inner matter, and the built-in models are data.
crates=$(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    data = ("fauna-bundle", "fauna-kernels", "fauna-minilm")
    if package["name"] not in data and not package["name"].startswith("fauna-pocket-"):
        print(package["name"])')
for crate in $crates; do
    case "$crate" in
        fauna-shared) features=(--features audio,image) ;;
        fauna-forecasting) features=(--features csv,parquet) ;;
        *) features=() ;;
    esac
    RUSTDOC=$made/rustdoc cargo rustdoc --quiet -p "$crate" --lib "${features[@]}" -- \
        -Z unstable-options --output-format json 2> "$made/messages" || { cat "$made/messages" >&2; exit 1; }
    cargo public-api -sss --rustdoc-json "$documents/${crate//-/_}.json" > "$made/$crate.txt"
done
rm "$made/messages" "$made/rustdoc"

if [ "${1:-}" = --write ]; then
    rm -rf docs/api
    mkdir docs/api
    cp "$made"/*.txt docs/api/
elif ! diff -ru docs/api "$made"; then
    echo "the public surface has changed: if that is meant, run scripts/public_api.sh --write, and say in CHANGELOG.md" >&2
    echo "what users have to do" >&2
    exit 1
fi
