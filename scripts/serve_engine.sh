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
environment="${MEGATRON_FORK_ENGINES:-$project}/.venv-$engine"
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -n "${MEGATRON_FORK_API_KEY:-}" ]; then export VLLM_API_KEY="$MEGATRON_FORK_API_KEY"; fi # not on a command line: `ps` shows that

case "$engine" in
vllm)
    # The routes for training are vLLM's development routes.
    export VLLM_SERVER_DEV_MODE=1 VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-WARNING}" VLLM_NO_USAGE_STATS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
    exec "$environment/bin/python" -m vllm.entrypoints.openai.api_server --model "$model" --host 127.0.0.1 --port "$port" \
        --enable-scale-out --dtype float32 --skip-tokenizer-init --generation-config vllm --enforce-eager --kv-cache-memory-bytes 256M \
        --logprobs-mode processed_logprobs --disable-uvicorn-access-log \
        --worker-extension-cls megatron_fork.serving.vllm_worker.WeightReceiver \
        --weight-transfer-config '{"backend": "megatron_fork"}' \
        --logits-processors megatron_fork.serving.vllm_temperature:EntropyTemperatureProcessor "$@"
    ;;
sglang)
    export SGLANG_USE_CPU_ENGINE=1
    # Without its CUDA kernels and the packages for images, SGLang starts with stand-ins for their names.
    export PYTHONPATH="$project/tests/engines/stand_ins:$PYTHONPATH"
    # An idle server would keep a core busy, of which the trainer has need.
    exec "$environment/bin/python" -m megatron_fork.serving.sglang_server --model-path "$model" --host 127.0.0.1 --port "$port" \
        --device cpu --dtype float32 --skip-tokenizer-init --attention-backend torch_native --sampling-backend pytorch \
        --disable-overlap-schedule --incremental-streaming-output --skip-server-warmup --mem-fraction-static 0.3 --max-total-tokens 32768 \
        --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled --log-level warning --sleep-on-idle \
        --enable-custom-logit-processor "$@"
    ;;
*)
    echo "error: $engine is not an engine" >&2
    echo "  vllm or sglang" >&2
    exit 1
    ;;
esac
