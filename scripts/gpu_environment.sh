#!/usr/bin/env bash
# Adds to the environment of scripts/environment.sh what a GPU has kernels for: Transformer Engine, whose torch extension is compiled
# here, Liger-Kernel, and flash-attn where it is asked for, which is compiled too and takes longest. docs/gpu.md says what each is for.
#   bash scripts/gpu_environment.sh [--flash-attn] [--jobs N] [--dry-run]
# What is there in the version of constraints/gpu.txt and can be imported stays as it is, so that a second call takes seconds.
# --dry-run installs nothing and needs no GPU: it asks the package index for every pin, for CUDA 12 and 13, and says what this
# machine lacks. $PYTHON: an environment with torch to add to, in place of .venv.
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
pins="$project/constraints/gpu.txt"
source "$project/scripts/pythons.sh"
flash=false dry=false jobs="${MAX_JOBS:-}"
while [ $# -gt 0 ]; do
    case "$1" in
        --flash-attn) flash=true ;;
        --dry-run) dry=true ;;
        --jobs) jobs="${2:-}" && shift ;;
        *) fail "$1 is not an option" "bash scripts/gpu_environment.sh [--flash-attn] [--jobs N] [--dry-run]" ;;
    esac
    shift
done
if [ -n "$jobs" ] && ! [[ "$jobs" =~ ^[1-9][0-9]*$ ]]; then fail "--jobs=$jobs is not a number above 0" "leave it out for one a 4 GiB of memory"; fi

# pins_for CUDA KIND: `package==version` lines for that CUDA major version; KIND: wheels or sdists.
pins_for() {
    local other=$((25 - $1))
    grep -vE '^#|^$' "$pins" | grep -vE "# cu$other" | { if [ "$2" = sdists ]; then grep '# sdist'; else grep -v '# sdist'; fi; } \
        | { if $flash; then cat; else grep -v '^flash-attn'; fi; } | sed 's/ *#.*//'
}

# What this machine lacks, a line each: the reason, a tab, the way out.
lacking() {
    local cuda="$1" driver wanted
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1 | cut -d. -f1)" || true
    wanted=$([ "$cuda" = 13 ] && echo 580 || echo 525)
    if ! [[ "$driver" =~ ^[0-9]+$ ]]; then
        printf 'no GPU is found by nvidia-smi\tinstall the driver of the GPU, or start the container with --gpus all\n'
    elif [ "$driver" -lt "$wanted" ]; then
        printf 'the driver %s is too old for CUDA %s\tit takes %s or later, or a torch for an older CUDA\n' "$driver" "$cuda" "$wanted"
    fi
    if ! command -v "${CXX:-g++}" >/dev/null 2>&1; then printf 'no C++ compiler\tapt-get install g++, or name one by CXX\n'; fi
    if ! has_header cuda_runtime.h || ! has_header cudnn.h; then
        printf 'no headers of CUDA and cuDNN\tinstall the CUDA toolkit, set CUDA_HOME, or take a devel image (docs/gpu.md)\n'
    fi
    if $flash && ! command -v nvcc >/dev/null 2>&1 && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        printf 'no nvcc, which compiles flash-attn\tinstall the CUDA toolkit, or leave out --flash-attn: cuDNN has attention too\n'
    fi
    if [ "$(df --output=avail -k "$place" | tail -1)" -lt $((6 * 1024 * 1024)) ]; then
        printf 'less than 6 GiB are free at %s\tfree some, or set MEGATRON_FORK_VENV to another disk\n' "$place"
    fi
}

headers() { ls -d "${CUDA_HOME:-/usr/local/cuda}/include" /usr/include "$packages"/nvidia/*/include 2>/dev/null || true; }
has_header() { local each; for each in $(headers); do if [ -e "$each/$1" ]; then return; fi; done; return 1; }

if $dry; then
    python="$(find_python)"
    packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" place="$project"
    for pin in $(for cuda in 12 13; do pins_for "$cuda" wheels && pins_for "$cuda" sdists; done | sort -u); do
        found="$("$python" -m pip index versions --disable-pip-version-check "${pin%%==*}" 2>/dev/null)" \
            || fail "the package index has no ${pin%%==*}" "check the network, and pip's index (pip config list)"
        grep -qE "[ (]${pin##*==}[,)]|[ ]${pin##*==}\$" <<<"$found" || fail "the package index has no $pin" "change constraints/gpu.txt"
    done
    for cuda in 12 13; do
        echo "CUDA $cuda: $(pins_for "$cuda" wheels | wc -l) packages and $(pins_for "$cuda" sdists | wc -l) to compile exist"
    done
    lacking 13 | while IFS=$'\t' read -r reason way; do echo "would stop: $reason ($way)"; done
    exit
fi

if [ -n "${PYTHON:-}" ] && "$PYTHON" -c 'import torch, megatron.core' 2>/dev/null; then python="$PYTHON"; else
    command -v nvidia-smi >/dev/null 2>&1 || fail "no GPU is found by nvidia-smi" "install the driver of the GPU, or start the container with --gpus all"
    source "$project/scripts/environment.sh"
    python="$environment/bin/python"
fi
read -r cuda torch packages < <("$python" -c '
import sysconfig, torch
print((torch.version.cuda or "0").split(".")[0], torch.__version__, sysconfig.get_path("purelib"))')
[ "$cuda" = 12 ] || [ "$cuda" = 13 ] || fail "torch $torch is built for CUDA $cuda" "install one for CUDA 12 or 13"
place="$packages"
IFS=$'\t' read -r reason way < <(lacking "$cuda") && fail "$reason" "$way"

# missing PIN...: those that are not installed in this version.
missing() {
    "$python" - "$@" <<'PY'
import importlib.metadata, sys
for pin in sys.argv[1:]:
    name, version = pin.split("==")
    try:
        if importlib.metadata.version(name) == version:
            continue
    except importlib.metadata.PackageNotFoundError:
        pass
    print(pin)
PY
}

if [ -z "$jobs" ]; then
    jobs=$(($(sed -n 's/MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / (4 * 1024 * 1024)))
    jobs=$((jobs < 1 ? 1 : jobs > $(nproc) ? $(nproc) : jobs))
fi
CPATH="$(headers | paste -sd:)${CPATH:+:$CPATH}"
export CPATH NVTE_FRAMEWORK=pytorch MAX_JOBS="$jobs"
wheels="$(missing $(pins_for "$cuda" wheels))" sdists="$(missing $(pins_for "$cuda" sdists))"
if [ -n "$wheels" ]; then
    echo "installing $(echo $wheels)"
    # Without dependencies: pip must neither replace torch nor put its older cuBLAS back.
    "$python" -m pip install --quiet --no-deps $wheels || fail "pip could not install these packages" "see its message above"
fi
if [ -n "$sdists" ]; then
    echo "compiling $(echo $sdists) with $jobs jobs"
    "$python" -m pip install --quiet packaging ninja wheel 'setuptools>=70' pybind11
    "$python" -m pip install --quiet --no-deps --no-build-isolation $sdists \
        || fail "the extension could not be compiled" "see the compiler's message above; --jobs 1 needs least memory"
fi
"$python" - <<'PY' || fail "what was installed cannot be used" "see the reason above, and docs/gpu.md"
import importlib, importlib.metadata, sys
import torch
for module, package in (("transformer_engine.pytorch", "transformer-engine"), ("liger_kernel", "liger-kernel"), ("flash_attn", "flash-attn")):
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        continue
    try:
        importlib.import_module(module)
    except Exception as error:
        sys.exit(f"{package} {version}: {' '.join(str(error).split())}")
    print(f"{package} {version}: can be imported")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")
PY
