#!/usr/bin/env bash
# Type-checks and lints every crate with the `cuda` feature on a machine without a GPU or NVIDIA's toolkit.
#
# Candle's kernels are compiled with NVIDIA's own compiler, taken from PyPI wheels and unpacked side by side
# under the target folder (1 GB, once). Nothing is run on a GPU. Linux on x86-64; needs python3 with pip,
# a C++ compiler and Rust. About ten minutes on two cores the first time.
#
#   scripts/check-cuda.sh             the compiler, cargo check, clippy
#   scripts/check-cuda.sh --toolkit   the compiler alone: prints its folder, for use as CUDA_HOME
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=13.0
PACKAGES=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cublas==13.0.2.14
    nvidia-curand==10.4.0.35
)
target=${CARGO_TARGET_DIR:-$PWD/target}
toolkit=$target/cuda-toolkit-$VERSION

# Unpacks the wheels into a temporary folder, which is moved into place after a test compilation.
install_toolkit() {
    mkdir -p "$target"
    scratch=$(mktemp -d "$target/.cuda-toolkit-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --no-warn-conflicts --target "$scratch/wheels" "${PACKAGES[@]}"
    local home=$scratch/wheels/nvidia/cu13
    [ -x "$home/bin/nvcc" ] || { echo "check-cuda: no nvcc in the wheels under $home" >&2; return 1; }
    # The wheels have versioned libraries in lib/; cudarc and the linker look for unversioned names in lib64/.
    ln -sfn lib "$home/lib64"
    local library
    for library in "$home"/lib/lib*.so.*; do
        ln -sfn "$(basename "$library")" "${library%%.so.*}.so"
    done
    echo '__global__ void f(float *x) { x[threadIdx.x] += 1.0f; }' > "$scratch/f.cu"
    CUDA_HOME=$home "$home/bin/nvcc" -arch=sm_80 --ptx -o "$scratch/f.ptx" "$scratch/f.cu"
    grep -q 'target sm_80' "$scratch/f.ptx"
    rm -rf "$toolkit"
    mv "$home" "$toolkit"
}

[ -x "$toolkit/bin/nvcc" ] || install_toolkit
if [ "${1:-}" = --toolkit ]; then
    echo "$toolkit"
    exit
fi

export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit
export PATH=$toolkit/bin:$PATH CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
nvcc --version | tail -2
cargo check --workspace --all-targets --features cuda
cargo clippy --workspace --all-targets --features cuda -- -D warnings
echo "check-cuda: the cuda feature compiles; nothing was run on a GPU"
