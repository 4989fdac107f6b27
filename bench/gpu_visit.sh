#!/usr/bin/env bash
# Everything that needs a GPU: build for it, test on it, sanitize, measure.
#
#     bench/gpu_visit.sh [--plan] [build] [test] [sanitize] [bench]       (default: all; whatever is chosen is built first)
#
# Without a GPU, or with --plan, says what it would do and exits 0. Each step has a limit of its own and a log; a failing step
# does not stop the others, and the exit code is 1 if any failed. The GPU's settings are left as they are.
#
#   OUT                      folder of logs and results (default: bench/results/gpu-visit, and bench/results for the tables)
#   TAM_FAST_VISIT_SECONDS   seconds for everything (default: none); steps that would begin later count as failed
#   TAM_FAST_VISIT_WORK      folder of builds, kept between visits (default: build/gpu-visit)
#   TAM_FAST_COMMIT          commit to name in the results where there is no .git
#   PYTHON                   interpreter that has torch (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
work=$(realpath -m "${TAM_FAST_VISIT_WORK:-$root/build/gpu-visit}")
logs=$(realpath -m "${OUT:-$root/bench/results/gpu-visit}")
tables=$(realpath -m "${OUT:-$root/bench/results}")
site=$work/site
deadline=${TAM_FAST_VISIT_SECONDS:+$((SECONDS + TAM_FAST_VISIT_SECONDS))}

plan=no
parts=()
for argument in "$@"; do
    case $argument in
    --plan) plan=yes ;;
    build | test | sanitize | bench) parts+=("$argument") ;;
    *)
        echo "gpu_visit.sh: expected --plan, build, test, sanitize or bench, got '$argument'" >&2
        exit 2
        ;;
    esac
done
[[ ${#parts[@]} -gt 0 ]] || parts=(test sanitize bench)

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)
if [[ ! $capability =~ ^[0-9]+\.[0-9]+$ ]]; then
    [[ $plan == yes ]] || echo "No GPU here: this is what would be done with one."
    plan=yes
    capability=9.0
fi
architecture=${capability/./}

failed=()
summary=()
last=0  # exit code of the last step

# step PART NAME SECONDS COMMAND...: run a command from an empty folder, within a limit, into the part's log.
step() {
    local part=$1 name=$2 limit=$3
    shift 3
    if [[ $plan == yes ]]; then
        printf '\n%s: %s (at most %s s)\n   ' "$part" "$name" "$limit"
        printf ' %q' "$@"
        printf '\n'
        return
    fi
    local began=$SECONDS code=0 left=$limit
    if [[ -n $deadline ]]; then
        left=$((deadline - SECONDS < limit ? deadline - SECONDS : limit))
    fi
    printf '\n=== %s: %s\n' "$part" "$name"
    if [[ $left -lt 5 ]]; then
        code=125
        echo "no time left"
    else
        (cd "$work/empty" && timeout --kill-after=15 "$left" "$@") </dev/null >"$work/step.log" 2>&1 || code=$?
        {
            printf '\n=== %s\n   ' "$name"
            printf ' %q' "$@"
            printf '\n'
            cat "$work/step.log"
        } >>"$logs/$part.log"
        tail -n "$([[ $code -eq 0 ]] && echo 40 || echo 80)" "$work/step.log"
    fi
    local outcome=passed
    case $code in
    0) ;;
    124 | 137) outcome="FAILED (stopped after $left s)" ;;
    125) outcome="FAILED (no time left)" ;;
    *) outcome="FAILED (exit code $code)" ;;
    esac
    summary+=("$(printf '%-9s %-44s %4s s  %s' "$part" "$name" "$((SECONDS - began))" "$outcome")")
    [[ $code -eq 0 ]] || failed+=("$part: $name")
    last=$code
}

has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

if [[ $plan == no ]]; then
    mkdir -p "$work/empty" "$logs" "$tables"
    for part in build "${parts[@]}"; do : >"$logs/$part.log"; done
fi

# The installed package goes before the checkout's, which has no compiled modules; the checkout brings the package bench.
export PYTHONPATH="$site:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX=1 CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$work/triton}" TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}"
export PATH="$PATH:/usr/local/cuda/bin"
unset TRITON_INTERPRET

step build "what there is" 90 "$python" -m bench.gpu.found

definitions=(-DTAM_FAST_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$architecture-real")
if [[ $plan == yes ]] || { has pip && has scikit_build_core; }; then
    step build "tam_fast for sm_$architecture" 420 \
        "$python" -m pip install --no-build-isolation --no-deps --upgrade --target "$site" \
        "${definitions[@]/#-D/-Ccmake.define.}" "-Cbuild-dir=$work/cmake" -v "$root"
else
    echo "pip or scikit-build-core is missing: building with CMake alone"
    # shellcheck disable=SC2016  # expanded by the inner shell
    step build "tam_fast for sm_$architecture, with CMake alone" 420 bash -euc '
        root=$1 site=$2 build=$3 python=$4
        shift 4
        cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release "-DPython_EXECUTABLE=$(command -v "$python")" \
            "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" "$@"
        cmake --build "$build"
        mkdir -p "$site/tam_fast"
        cp -R "$root/tam_fast/." "$site/tam_fast/"
        rm -f "$site"/tam_fast/_C*.so "$site"/tam_fast/_cuda*.so
        cmake --install "$build" --prefix "$site"
    ' - "$root" "$site" "$work/cmake-alone" "$python" "${definitions[@]}"
fi
if [[ $last -ne 0 && $last -ne 125 ]]; then
    step build "tam_fast without CUDA kernels, to go on with Triton" 300 \
        "$python" -m pip install --no-build-isolation --no-deps --upgrade --target "$site" \
        -Ccmake.define.TAM_FAST_CUDA=OFF "-Cbuild-dir=$work/cmake-without" "$root"
fi
step build "one operator on each backend" 120 "$python" -m bench.gpu.found --installed

tests() {
    local name=$1 limit=$2
    shift 2
    step test "$name" "$limit" "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -o cache_dir="$work/pytest" \
        -o addopts="--import-mode=importlib --strict-markers --strict-config -ra" --durations=10 --maxfail=40 --tb=short -q "$@"
}

part_test() {
    tests "on the GPU" 420 -k "not emulated and not interpreted" \
        "$root/tests/backends/test_gpu.py" "$root/tests/maps/test_device_answer.py"
    local others=()
    for file in "$root"/tests/backends/test_{cuda_*,triton*,selection}.py; do
        # Some need no GPU, and take their time.
        [[ -f $file && $file != */test_cuda_build.py && $file != *_ptx.py && $file != *_aot.py ]] && others+=("$file")
    done
    tests "operators and selection" 240 -k "not emulated and not interpreted" "${others[@]}"
}

part_sanitize() {
    local tool
    step sanitize "which kernels the program runs" 120 "$python" -m bench.gpu.sanitize --backend cuda --kernels
    for tool in memcheck racecheck initcheck synccheck; do
        step sanitize "$tool" 280 "$python" -m bench.gpu.sanitizer "$tool" --work "$work/sanitizer" \
            --architecture "sm_$architecture" --seconds 200
    done
}

part_bench() {
    local table
    for table in answer stream causal; do
        step bench "$table" 240 "$python" -m bench.gpu "$table" --output "$tables" --seconds 90
    done
    # Last, for torch.compile takes its time.
    step bench filter 420 "$python" -m bench.gpu filter --output "$tables" --seconds 240
}

for part in "${parts[@]}"; do
    [[ $part == build ]] || "part_$part"
done

if [[ $plan == yes ]]; then
    printf '\nLogs go to %s, tables to %s.\n' "$logs" "$tables"
    exit 0
fi
printf '\n=== summary (%s s)\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
if [[ ${#failed[@]} -gt 0 ]]; then
    printf '%s of %s steps failed; logs are in %s\n' "${#failed[@]}" "${#summary[@]}" "$logs"
    exit 1
fi
echo "every step passed; logs are in $logs"
