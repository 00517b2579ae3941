"""Tokens a second of each engine, what the client costs on top of the engine's own batch call, and what an update costs.

    bash scripts/engine_environment.sh vllm && bash scripts/engine_environment.sh sglang
    python benchmarks/engines.py --out benchmarks/results/engines.json

A real server of each on this machine, one after the other, with random weights of the quickstart's architecture or those of
`--model`; trainer and server have one thread each. The same prompts for all. The engine's own batch call takes turns with the
client: vLLM's is `LLM.generate` in a process of its own (benchmarks/vllm_batch.py), SGLang's one HTTP request with all prompts.
Of each the median is taken, of their ratio the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import httpx
import torch
from served import PROJECT, environment_of, serving, write
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.rollout import EmbeddedEngine, RemoteConfig, RemoteEngine, Request, RolloutConfig
from megatron_fork.rollout.pending import PendingRequest, vllm_sampling

RECIPE = PROJECT / "examples" / "quickstart.yaml"
STOP = 1  # never drawn: the model's longest responses are wanted, so that all runs have equally many tokens


def requests(count: int, tokens: int, vocabulary: int) -> list[Request]:
    generator = random.Random(0)
    prompts = [tuple(generator.randrange(2, vocabulary) for _ in range(16)) for _ in range(count)]
    return [Request(number, prompt, number, 1.0, tokens) for number, prompt in enumerate(prompts)]


@contextmanager
def own_batch_call(engine: str, url: str, folder: Path, asked: list[Request]) -> Iterator[Callable[[], int]]:
    """The engine's own way to draw a batch, with what the client asks for; its number of tokens."""
    prompts = [list(request.tokens) for request in asked]
    if engine == "sglang":
        fields = [
            {"temperature": request.temperature, "max_new_tokens": request.max_tokens, "stop_token_ids": [STOP]}
            for request in asked
        ]
        body = {"input_ids": prompts, "return_logprob": True, "sampling_params": fields}

        def one_request() -> int:
            answer = httpx.post(f"{url}/generate", json=body, timeout=600.0, trust_env=False).raise_for_status().json()
            return sum(len(each["output_ids"]) for each in answer)

        yield one_request
        return
    sampling = [vllm_sampling(PendingRequest.of(request, Queue()), STOP, stream_interval=1 << 20) for request in asked]
    line = json.dumps({"prompts": prompts, "sampling": sampling}) + "\n"
    command = [environment_of("vllm") / "bin" / "python", PROJECT / "benchmarks" / "vllm_batch.py", folder]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    variables = {**os.environ, **quiet, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdin is not None and process.stdout is not None

        def batch() -> int:
            process.stdin.write(line)
            process.stdin.flush()
            return int(process.stdout.readline())

        yield batch
        process.stdin.close()


def client_call(engine: RemoteEngine | EmbeddedEngine, asked: list[Request]) -> int:
    return sum(len(completion.tokens) for completion in engine.generate(asked))


def rates(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each call, in turns, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            tokens = call()
            if repeat:
                found[name].append(tokens / (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--engines", nargs="*", default=["vllm", "sglang"])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interval", type=int, default=32, help="rollout.remote.stream_interval")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="engines") as scratch:
        folder = arguments.model or random_model(Path(scratch, "model"))
        hf_config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
        asked = requests(arguments.requests, arguments.tokens, hf_config.vocab_size)
        embedded = EmbeddedEngine(
            hf_config, stop_tokens=(STOP,), pad_token=0, batch_size=256, device=torch.device("cpu"), dtype=torch.float32
        )
        embedded.update_weights(weights, 0)
        calls = {"client": lambda: client_call(embedded, asked)}
        rows = [{"engine": "embedded", "rates": rates(calls, arguments.repeats)}]
        for name in arguments.engines:
            with serving(name, folder, Path(scratch)) as (server,):
                rows.append(row_of(name, server.url, folder, arguments, hf_config, weights, asked))
    for row in rows:
        found = row.pop("rates")
        row["tokens_per_second"] = {call: round(statistics.median(each), 1) for call, each in found.items()}
        if "own" in found:
            pairs = zip(found["client"], found["own"], strict=True)
            row["client_to_own"] = round(statistics.median(client / own for client, own in pairs), 3)
        print(json.dumps(row), flush=True)
    write(arguments.out, rows)


def random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(resolve_config(load_config(RECIPE).model)).save_pretrained(folder)
    return folder


def row_of(
    name: str, url: str, folder: Path, arguments: argparse.Namespace, hf_config, weights, asked: list[Request]
) -> dict:
    row: dict = {"engine": name, "update": {}}
    for sync in ("disk", "gloo"):
        remote = RemoteConfig(stream_interval=arguments.interval)
        config = RolloutConfig(engine=name, servers=[url], sync=sync, remote=remote)
        with tempfile.TemporaryDirectory(prefix="weights") as files:
            engine = RemoteEngine(config, hf_config, stop_tokens=(STOP,), folder=Path(files), world=None)
            seconds = []
            for version in range(arguments.repeats + 1):  # the first one makes the group
                engine.update_weights(weights, version)
                seconds.append(engine.update_seconds)
            row["update"][sync] = {
                "bytes": engine.update_bytes,
                "first_seconds": round(seconds[0], 3),
                "seconds": round(statistics.median(seconds[1:]), 3),
            }
            if sync == "gloo":
                with own_batch_call(name, url, folder, asked) as own:
                    calls = {"own": own, "client": lambda engine=engine: client_call(engine, asked)}
                    row["rates"] = rates(calls, arguments.repeats)
            engine.close()
    return row


if __name__ == "__main__":
    main()
