#!/usr/bin/env bash
# Makes the trainer's and the engines' environments once, then tests against real engines.
#   bash scripts/test_engines.sh [pytest argument ...]      e.g. -k vllm
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for engine in vllm sglang vllm-colocated; do bash scripts/engine_environment.sh "$engine"; done
exec python -m pytest tests/engines "$@"
