#!/usr/bin/env bash
# Starts a rollout server for a Hugging Face folder on this machine's CPU, on loopback, in the engine's own environment.
#   bash scripts/serve_engine.sh vllm|sglang MODEL_FOLDER PORT [option of the engine ...]
# With $MEGATRON_FORK_API_KEY set, only requests that carry it are answered. docs/engines.md has the same for GPUs.
set -euo pipefail
engine="${1:?which engine? vllm or sglang}"
model="${2:?which model folder?}"
port="${3:?which port?}"
shift 3
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "$engine" in
vllm | sglang) ;;
*)
    echo "error: $engine is not an engine" >&2
    echo "  vllm or sglang" >&2
    exit 1
    ;;
esac
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"
exec "${MEGATRON_FORK_ENGINES:-$project}/.venv-$engine/bin/python" -m megatron_fork.serving.start "$engine" "$model" --port "$port" "$@"
