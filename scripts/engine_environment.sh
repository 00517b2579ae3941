#!/usr/bin/env bash
# Makes the environment of a rollout engine for the CPU, apart from the trainer's: `.venv-vllm` or `.venv-sglang`.
#   bash scripts/engine_environment.sh vllm|sglang
# $MEGATRON_FORK_ENGINES names another folder for both; TORCH_INDEX_URL is for torch, as in environment.sh. On GPUs take the
# engine's own image and put this project on its PYTHONPATH: nothing more of it is needed there.
set -euo pipefail
engine="${1:?which engine? vllm or sglang}"
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
pins="$project/constraints/$engine-cpu.txt"
if [ ! -f "$pins" ]; then
    echo "error: $engine is not an engine" >&2
    echo "  vllm or sglang" >&2
    exit 1
fi
environment="${MEGATRON_FORK_ENGINES:-$project}/.venv-$engine"
if cmp --silent "$pins" "$environment/installed"; then exit 0; fi

python="${PYTHON:-python3.11}"
echo "making $environment with $python (once; a few minutes)"
rm -rf "$environment"
"$python" -m venv "$environment"
index=()
if [ -n "${TORCH_INDEX_URL:-}" ]; then index=(--index-url "$TORCH_INDEX_URL"); fi
"$environment/bin/pip" install --quiet ${index[@]+"${index[@]}"} "$(grep '^torch==' "$pins")"
# Without dependencies: the wheels ask for CUDA packages, and for exact versions that a CPU has no builds of.
"$environment/bin/pip" install --quiet --no-deps --requirement "$pins"
cp "$pins" "$environment/installed"
