#!/usr/bin/env bash
# What an image does with its words: `self-test`, or the trainer's commands, or a server's options after those that training needs.
# Any user may run it: where the home cannot be written, caches go to a folder of their own.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ ! -w "${HOME:-/nonexistent}" ]; then
    HOME="$(mktemp -d)"
    export HOME
fi
if [ "${1:-}" = self-test ]; then exec python3 "$here/self_test.py" "$MEGATRON_FORK_IMAGE"; fi
if [ "$MEGATRON_FORK_IMAGE" = trainer ]; then exec python3 -m megatron_fork "$@"; fi
host=(--host "$MEGATRON_FORK_HOST" --port "$MEGATRON_FORK_PORT")
if [ "$MEGATRON_FORK_IMAGE" = sglang ]; then
    exec python3 -m megatron_fork.serving.sglang_server "${host[@]}" --incremental-streaming-output "$@"
fi
# The routes for training are vLLM's development routes; its key is given where `ps` does not show it.
export VLLM_SERVER_DEV_MODE=1
if [ -n "${MEGATRON_FORK_API_KEY:-}" ]; then export VLLM_API_KEY="$MEGATRON_FORK_API_KEY"; fi
exec python3 -m vllm.entrypoints.openai.api_server "${host[@]}" --enable-scale-out --logprobs-mode processed_logprobs \
    --worker-extension-cls megatron_fork.serving.vllm_worker.WeightReceiver \
    --weight-transfer-config '{"backend": "megatron_fork"}' \
    --logits-processors megatron_fork.serving.vllm_temperature:EntropyTemperatureProcessor "$@"
