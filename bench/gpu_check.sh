#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: build with CUDA, the GPU tests, the benchmarks.
# Needs torch with CUDA, nvcc and the packages of pyproject.toml; uses no network.
#   bench/gpu_check.sh [FOLDER FOR RESULTS]
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
FASTNAS_CUDA=1 python3 -m pip install --no-build-isolation --no-deps --editable . || exit 1
python3 -m fastnas.build_info || exit 1
status=0
python3 -m pytest tests/gpu tests/ops || status=1
python3 -m pytest bench/bench_mixed_sum.py --benchmark-only --benchmark-json="$out/gpu-mixed_sum.json" || status=1
python3 -m pytest bench/bench_search_step.py --benchmark-only --batch-size 64 --bench-device cuda \
  --benchmark-json="$out/gpu-search_step.json" || status=1
exit $status
