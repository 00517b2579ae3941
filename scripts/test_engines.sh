#!/usr/bin/env bash
# Makes the trainer's and the engines' environments once, then tests against real engines.
#   bash scripts/test_engines.sh [pytest argument ...]
# Everything takes most of an hour on two cores; -m "not slow" is what CI runs: answers, weight updates, abort and continue, and
# short runs through both kinds of server. $MEGATRON_FORK_ENGINES names another folder for the engines' environments.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ "$*" == *"not slow"* ]]; then engines=(vllm sglang); else engines=(vllm sglang vllm-colocated); fi
for engine in "${engines[@]}"; do bash scripts/engine_environment.sh "$engine"; done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest tests/engines "$@"
