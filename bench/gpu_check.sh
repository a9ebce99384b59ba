#!/usr/bin/env bash
# Everything that only a GPU can show, in one go and at most nine minutes: a build for this GPU, fastnas.doctor, the GPU
# tests, the benchmark, compute-sanitizer. One JSON file and one of Markdown, named after the device; what one part does
# not finish, the others still do. All logs: gpu-check-logs.tgz beside them. FASTNAS_COMMIT names the commit where there is
# no git. Exit status: 0, or 1 if a part failed or was cut off.
#
#   bench/gpu_check.sh [--quick] [FOLDER FOR RESULTS]        --quick: three minutes, no sanitizer; default: bench/results
#
# Needs torch with CUDA, nvcc and the packages of pyproject.toml; uses no network. Packages that the machine lacks come
# as wheels in the folder that WHEELS names; where there is a network, make it by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels tyro docstring-parser typeguard
set -uo pipefail
cd "$(dirname "$0")/.."
quick=
if [ "${1:-}" = --quick ]; then quick=--quick && shift; fi
if [ $# -gt 1 ] || [[ "${1:-}" == -* ]]; then
  echo "usage: bench/gpu_check.sh [--quick] [FOLDER FOR RESULTS]" >&2
  exit 2
fi
out=${1:-bench/results}
mkdir -p "$out" || exit 2
parts=$(mktemp -d) || exit 2
trap 'rm -rf "$parts"' EXIT
python=${PYTHON:-python3}
deadline=$((SECONDS + ${SECONDS_IN_ALL:-$([ -n "$quick" ] && echo 175 || echo 535)}))
failed=0

report() { "$python" -m bench.gpu_report "$parts" "$out" || failed=1; }

# part NAME LIMIT COMMAND...: runs it for at most LIMIT seconds, of what is left in all, and remembers how it ended.
part() {
  local name=$1 limit=$2 begin=$SECONDS status left=$((deadline - SECONDS))
  shift 2
  if [ $limit -gt $left ]; then limit=$left; fi
  echo "== $name (at most $limit s)"
  if [ $limit -lt 5 ]; then
    echo "no time was left" | tee "$parts/$name.log"
    status=124
  else
    # An interrupt: pytest then still writes what it has found.
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$parts/$name.log" | tail -n 60
    status=${PIPESTATUS[0]}
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) "$limit" >>"$parts/status.tsv"
  if [ "$status" -ne 0 ]; then failed=1; fi
  return "$status"
}

# skip NAME REASON: a part that does not exist here is no failure.
skip() {
  echo "== $1: skipped, $2"
  echo "$2" >"$parts/$1.log"
  printf '%s\t125\t0\t0\n' "$1" >>"$parts/status.tsv"
}

if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$parts/site" "$WHEELS"/*.whl || exit 2
  export PYTHONPATH="$parts/site${PYTHONPATH:+:$PYTHONPATH}"
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$parts/gpu.txt" || {
  echo "error: nvidia-smi finds no GPU here" >&2
  exit 1
}
cat "$parts/gpu.txt"
missing=$("$python" - <<'PYTHON'
import importlib.util as u
needed = "torch numpy PIL safetensors sklearn tqdm tyro docstring_parser typeguard ninja pybind11 pytest hypothesis".split()
print(*(name for name in needed if u.find_spec(name) is None))
PYTHON
)
if [ -n "$missing" ]; then
  echo "error: this Python lacks $missing; bring them as wheels (see the head of bench/gpu_check.sh)" >&2
  exit 1
fi

# Only for the GPU that is here: the other architectures would take most of the time.
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
  export TORCH_CUDA_ARCH_LIST
fi
export FASTNAS_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} PYTHONUNBUFFERED=1
# The checks here are the first use.
export FASTNAS_FIRST_USE_CHECK=0

if part build $([ -n "$quick" ] && echo 120 || echo 240) "$python" setup.py --quiet build_ext --inplace; then
  part doctor 120 bash -c "\"$python\" -m fastnas.doctor --device cuda --json $quick >\"$parts/doctor.json\"" ||
    "$python" -c "import json; [print(r) for r in json.load(open('$parts/doctor.json'))['operators'] if r['status'] != 'ok']"
  # What was finished before a limit is worth keeping: the report is written after every part.
  report >/dev/null
  part tests $([ -n "$quick" ] && echo 40 || echo 120) "$python" -m pytest -m gpu tests/gpu --junitxml="$parts/tests.xml" -p no:cacheprovider
  report >/dev/null
  if [ -n "$quick" ]; then
    part benchmark 50 "$python" -m bench.gpu --out "$parts/benchmark.json" --seconds 35 --group-seconds 3 \
      --compile-seconds 0 --spaces darts --methods forward-backward idarts
  else
    seconds=$((deadline - SECONDS - 30))
    part benchmark 210 "$python" -m bench.gpu --out "$parts/benchmark.json" --seconds $((seconds < 10 ? 10 : seconds < 180 ? seconds : 180))
  fi
  report >/dev/null
  if [ -n "$quick" ]; then
    skip memcheck "--quick leaves it out"
    skip racecheck "--quick leaves it out"
  elif ! sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    skip memcheck "there is no compute-sanitizer here"
    skip racecheck "there is no compute-sanitizer here"
  else
    for tool in memcheck racecheck; do
      # This library's kernels alone; without the cache every tensor ends where its memory does.
      # memcheck otherwise counts what torch's libraries ask the driver for and do without.
      part $tool 80 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool $tool --kernel-name kns=fastnas \
        $([ $tool = memcheck ] && echo --report-api-errors no) --error-exitcode 9 "$python" -m fastnas.doctor --device cuda --quick
    done
  fi
fi
report
tar czf "$out/gpu-check-logs.tgz" -C "$parts" --exclude=site .
exit $failed
