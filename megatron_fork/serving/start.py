"""Starts a rollout server for a Hugging Face folder, with the options that training needs, in the engine's environment.

    python -m megatron_fork.serving.start vllm|sglang MODEL_FOLDER --port PORT [--host HOST] [--tensor GPUS] [--fp32-head]
        [OPTION ...]

The folder may also be named as the engines do, by --model or --model-path: the images' words are an engine's. On a machine
without a GPU it serves in float32 on the CPU. With --fp32-head an engine in bf16 leaves its logits in float32, as the trainer
does. With $MEGATRON_FORK_API_KEY set, only requests that carry it are answered. OPTIONs are the engine's own, such as those
that replay needs (docs/engines.md). This process becomes the server, so that signals reach it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_fork.errors import KEY_VARIABLE

# Without its CUDA kernels and the packages for images, SGLang starts with stand-ins for their names, which a checkout has.
_STAND_INS = Path(__file__).parents[2] / "tests" / "engines" / "stand_ins"
_MASKS = "--return-sampling-mask"
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def vllm(model: str, host: str, port: int, tensor: int, *, on_gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Words after `python`, and variables; the routes for training are vLLM's development routes."""
    words = [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", host, "--port", str(port)),
        *("--enable-scale-out", "--skip-tokenizer-init", "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log"),
        *("--worker-extension-cls", "megatron_fork.serving.vllm_worker.WeightReceiver"),
        *("--weight-transfer-config", '{"backend": "megatron_fork"}'),
        *("--logits-processors", "megatron_fork.serving.vllm_temperature:EntropyTemperatureProcessor"),
        *("--tensor-parallel-size", str(tensor)),
    ]
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")
    if not on_gpu:
        words += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "256M"]
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return words, variables


def sglang(model: str, host: str, port: int, tensor: int, *, on_gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Words after `python`, and variables."""
    words = [
        *("-m", "megatron_fork.serving.sglang_server", "--model-path", model, "--host", host, "--port", str(port)),
        *("--skip-tokenizer-init", "--incremental-streaming-output", "--skip-server-warmup", "--log-level", "warning"),
        *("--tp-size", str(tensor)),
        *("--custom-weight-loader", "megatron_fork.serving.sglang_weights.answer"),
    ]
    # It executes what clients send: on loopback only.
    if host in ("127.0.0.1", "localhost", "::1"):
        words.append("--enable-custom-logit-processor")
    if on_gpu:
        return words, {}
    words += [
        *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
        *("--sampling-backend", "pytorch", "--disable-overlap-schedule", "--mem-fraction-static", "0.3"),
        *("--max-total-tokens", "32768", "--cuda-graph-backend-decode", "disabled"),
        # An idle server would keep a core busy, of which the trainer has need.
        *("--cuda-graph-backend-prefill", "disabled", "--sleep-on-idle"),
    ]
    paths = [str(_STAND_INS)] if _STAND_INS.is_dir() else []
    python_path = ":".join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return words, {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": python_path}


ENGINES = {"vllm": vllm, "sglang": sglang}
# The engines' own ways not to round the product of the LM head.
FP32_HEAD = {"vllm": ("--hf-overrides", '{"head_dtype": "float32"}'), "sglang": ("--enable-fp32-lm-head",)}


def environment(given: Mapping[str, str], *, on_gpu: bool) -> dict[str, str]:
    """The variables that every engine is started with; what is set already counts."""
    found = {**_QUIET, **given}
    if not on_gpu:
        found.setdefault("OMP_NUM_THREADS", "1")
    # Not on a command line: `ps` shows that.
    if found.get(KEY_VARIABLE):
        found["VLLM_API_KEY"] = found[KEY_VARIABLE]
    return found


def main() -> None:
    """Replace this process by the server."""
    parser = argparse.ArgumentParser(prog="python -m megatron_fork.serving.start", allow_abbrev=False)
    parser.add_argument("engine", choices=tuple(ENGINES))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--model", "--model-path", dest="named", help="the same")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tensor", type=int, default=1, help="GPUs of the server")
    parser.add_argument("--fp32-head", action="store_true", help="logits in float32 whatever the engine's dtype")
    asked, options = parser.parse_known_args()
    model = asked.named or asked.model
    if model is None:
        parser.error("which model folder?")
    on_gpu = shutil.which("nvidia-smi") is not None
    words, variables = ENGINES[asked.engine](model, asked.host, asked.port, asked.tensor, on_gpu=on_gpu)
    if asked.fp32_head:
        words += FP32_HEAD[asked.engine]
    variables = {**environment(os.environ, on_gpu=on_gpu), **variables}
    # With it vLLM takes no logits processor: there is no entropy-dependent temperature then.
    if _MASKS in options and "--logits-processors" in words:
        place = words.index("--logits-processors")
        del words[place : place + 2]
    os.execve(sys.executable, [sys.executable, *words, *options], variables)


if __name__ == "__main__":
    main()
