#!/usr/bin/env bash
# Builds `fauna` with CUDA, and tests and benchmarks it on a machine with a GPU.
#
#   scripts/gpu.sh pack FOLDER    builds (no GPU needed), and packs the program, parity cases and configs: at most 60 MB
#   scripts/gpu.sh run FOLDER OUT on a machine with a GPU: runs all packed parity cases with --device cuda, then benchmarks
#                                 six models against PyTorch; writes OUT/parity.json, OUT/bench.json and a table
#
# `pack` uses NVIDIA's compiler from PyPI (scripts/check-cuda.sh) and builds PTX for sm_80, which newer GPUs compile at
# load time. `run` needs an NVIDIA driver for CUDA 13 and a python3 with PyTorch for CUDA 13, whose libraries are used, but
# neither Rust nor network access. It takes at most ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

# Without a GPU the libraries of the driver and of NVRTC are missing: stubs with the symbols of cudarc are linked instead.
stand_in() {
    local library=$1 soname=$2 prefix=$3 sources=$4
    grep -rohE "unsafe fn $prefix[A-Za-z0-9_]+" "$sources" | sort -u | sed "s,unsafe fn \(.*\),void \1(void) {}," > "$stubs/$library.c"
    cc -shared -fPIC "-Wl,-soname,$soname" -o "$stubs/lib$library.so" "$stubs/$library.c"
}

build() {
    local toolkit cudarc
    stubs=$PWD/target/gpu/stubs
    toolkit=$(scripts/check-cuda.sh --toolkit | tail -1)
    mkdir -p "$stubs"
    cargo fetch --quiet
    cudarc=$(cargo metadata --format-version 1 --features cuda |
        python3 -c "import json, sys, pathlib; print(next(pathlib.Path(p['manifest_path']).parent for p in json.load(sys.stdin)['packages'] if p['name'] == 'cudarc'))")
    stand_in cuda libcuda.so.1 cu "$cudarc/src/driver/sys"
    stand_in nvrtc libnvrtc.so.13 nvrtc "$cudarc/src/nvrtc/sys"
    export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit CUDA_COMPUTE_CAP=80
    export PATH=$toolkit/bin:$PATH LIBRARY_PATH=$stubs:$toolkit/lib64 CARGO_TARGET_DIR=$PWD/target/gpu/build
    # Without the built-in model, which is half the size of the program.
    cargo build --release --no-default-features --features cli,text,vision,audio,robotics,science,forecasting,parquet,cuda --bin fauna
    cp "$CARGO_TARGET_DIR/release/fauna" target/gpu/fauna
    strip target/gpu/fauna
}

pack() {
    build
    mkdir -p "$1"
    # The smallest cases first, as many as fit.
    python3 - "$1" <<'PYTHON'
import pathlib, sys, tarfile
folder = pathlib.Path(sys.argv[1])
cases = {case.parent: sum(f.stat().st_size for f in case.parent.rglob("*") if f.is_file())
         for case in pathlib.Path("tests/parity").rglob("case.json")}
room, taken = 50_000_000, []
for case, size in sorted(cases.items(), key=lambda pair: pair[1]):
    if size <= room:
        room -= size
        taken.append(case)
print(f"gpu: {len(taken)} of {len(cases)} cases fit")
with tarfile.open(folder / "gpu.tar.xz", "w:xz", preset=4) as tar:
    tar.add("target/gpu/fauna", "fauna")
    for case in sorted(taken):
        tar.add(case)
    for other in ("benches/gpu", "benches/configs", "tests/releases"):
        tar.add(other)
PYTHON
    ls -l "$1/gpu.tar.xz"
}

run() {
    local folder=$1 out=$2 libraries
    mkdir -p "$out"
    python3 -c "import tarfile; tarfile.open('$folder/gpu.tar.xz').extractall('$folder', filter='fully_trusted')"
    cd "$folder"
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu.txt"
    # The folders of PyTorch's own CUDA libraries.
    libraries=$(python3 -c "
import importlib.util, pathlib
root = pathlib.Path(importlib.util.find_spec('nvidia').submodule_search_locations[0])
print(':'.join(sorted({str(path.parent) for path in root.rglob('lib*.so*')})))")
    export LD_LIBRARY_PATH=$libraries:${LD_LIBRARY_PATH:-}
    ./fauna --version
    local system
    for system in tests/parity/*/; do
        timeout 120 ./fauna parity "$system" --device cuda --json --quiet > "$out/$(basename "$system").json" 2> "$out/$(basename "$system").err" || true
    done
    python3 - "$out" <<'PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
rows, unread = [], []
for file in sorted(out.glob("*.json")):
    try:
        rows += json.loads(file.read_text())
    except ValueError:
        unread.append(file.stem)
    file.unlink()
(out / "parity.json").write_text(json.dumps(rows, indent=1))
wrong = [row for row in rows if not row["passes"] and not row.get("skipped")]
skipped = sum(bool(row.get("skipped")) for row in rows)
print(f"parity on the GPU: {len(rows)} cases, {skipped} skipped, {len(wrong)} fail; no result from: {', '.join(unread) or 'none'}")
for row in wrong[:40]:
    worst = max((part.get("max_abs") or 0 for part in row.get("rows", [])), default=None)
    print(f"  {row['case']}  {row.get('error') or worst}"[:300])
PYTHON
    python3 benches/gpu/bench.py ./fauna "$out/bench.json"
}

case "${1:-}" in
    pack) pack "$2" ;;
    run) run "$(realpath "$2")" "$(realpath -m "$3")" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
