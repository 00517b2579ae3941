# Makes `.venv` (or $MEGATRON_FORK_VENV) with everything pinned, or reuses it. Sourced by the other scripts.
#
# torch: with a GPU the torch that is already importable is used (the environment sees the system's packages), and the rest is what
# constraints/newest.txt was tested with (Python 3.11: constraints/cpu.txt). Without a GPU torch's CPU build is installed. Where the
# package index only has CUDA builds, give an index that has CPU ones, or allow the large build, which runs without a GPU too:
#   TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu bash scripts/quickstart.sh
#   MEGATRON_FORK_TORCH=any bash scripts/quickstart.sh
# $MEGATRON_FORK_CONSTRAINTS: `cpu` (as is) or `newest`, a file of constraints/.

set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$project"
environment="${MEGATRON_FORK_VENV:-$project/.venv}"
constraints="$project/constraints/${MEGATRON_FORK_CONSTRAINTS:-cpu}.txt"

fail() {
    echo "error: $1" >&2
    echo "  $2" >&2
    exit 1
}

is_supported() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null
}

# $PYTHON and no other where it is set. pyenv keeps versions that its command of the name does not start.
find_python() {
    local names=(python3.11 python3.12 python3) name
    if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        if is_supported "$name"; then command -v "$name" && return; fi
        name="$(pyenv prefix "${name#python}" 2>/dev/null)/bin/$name"
        if is_supported "$name"; then echo "$name" && return; fi
    done
    fail "no Python 3.11 or 3.12 by the name of ${names[*]}" "install one, or name it: PYTHON=/path/to/python3.11 bash scripts/quickstart.sh"
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

install_torch_for_cpu() {
    local index=()
    if [ -n "${TORCH_INDEX_URL:-}" ]; then index=(--index-url "$TORCH_INDEX_URL"); fi
    local version
    version="$(sed -n 's/^torch==//p' "$constraints")"
    # Ask what would be installed before gigabytes are fetched.
    local plan
    plan="$("$environment/bin/pip" install --quiet --dry-run --report - ${index[@]+"${index[@]}"} "torch==$version" 2>/dev/null)" \
        || fail "torch $version cannot be found" "check the network, or set TORCH_INDEX_URL to an index that has it"
    if [ "${MEGATRON_FORK_TORCH:-}" != any ] && grep -q '"name": "nvidia-' <<<"$plan"; then
        fail "torch $version would come with CUDA packages, and this machine has no GPU" \
            "set TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu, or MEGATRON_FORK_TORCH=any, and run the same command again"
    fi
    "$environment/bin/pip" install --quiet ${index[@]+"${index[@]}"} "torch==$version"
}

# On a GPU machine: torch and what belongs to it stay as they are, everything else is what was tested.
install_beside_torch() {
    local tested="$constraints" pins
    if "$environment/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then tested="$project/constraints/newest.txt"; fi
    pins="$(mktemp)"
    grep -vE '^(torch|triton|numpy|pillow)==' "$tested" >"$pins"
    "$environment/bin/pip" install --quiet --constraint "$pins" --editable '.[dev]'
    rm -f "$pins"
}

install_environment() {
    local python
    python="$(find_python)"
    echo "making $environment with $python (once; a few minutes)"
    rm -rf "$environment"
    if has_gpu; then
        "$python" -m venv --system-site-packages "$environment"
        "$environment/bin/python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
            || fail "this machine has a GPU, but $python has no torch that sees it" "install torch for your CUDA version first"
        install_beside_torch
    else
        "$python" -m venv "$environment"
        install_torch_for_cpu
        "$environment/bin/pip" install --quiet --constraint "$constraints" --editable '.[dev]'
    fi
    "$environment/bin/python" -c 'import megatron_fork' || fail "the installation is broken" "remove $environment and run again"
    cp "$stamp_now" "$environment/installed"
}

# A change of what is to be installed makes the environment anew; otherwise it is reused as it is.
stamp_now="$(mktemp)"
cat setup.py "$constraints" >"$stamp_now"
if has_gpu; then cat "$project/constraints/newest.txt" >>"$stamp_now"; fi
if ! cmp --silent "$stamp_now" "$environment/installed"; then install_environment; fi
rm -f "$stamp_now"
export PATH="$environment/bin:$PATH"
