"""Tokens a second of each engine, what the client costs on top of the engine's own batch call, and what an update costs.

    bash scripts/serve_engine.sh vllm MODEL 8011 &  bash scripts/serve_engine.sh sglang MODEL 8021 &
    python benchmarks/engines.py --model MODEL --vllm http://127.0.0.1:8011 --sglang http://127.0.0.1:8021 --out FILE

The same prompts for all. The engine's own batch call is one HTTP request with all prompts, whose answer comes as a whole; it
takes turns with the client, and of each the median is taken.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_fork.rollout import Config, EmbeddedEngine, RemoteConfig, RemoteEngine, Request

STOP = 1  # never drawn: the model's longest responses are wanted, so that all runs have equally many tokens


def requests(count: int, tokens: int, vocabulary: int) -> list[Request]:
    generator = random.Random(0)
    prompts = [tuple(generator.randrange(2, vocabulary) for _ in range(16)) for _ in range(count)]
    return [Request(number, prompt, number, 1.0, tokens) for number, prompt in enumerate(prompts)]


def own_batch_call(engine: str, url: str, asked: list[Request], model: str) -> int:
    """Tokens of one call; log-probs as the client asks for them."""
    prompts, tokens = [list(request.tokens) for request in asked], asked[0].max_tokens
    if engine == "sglang":
        body = {
            "input_ids": prompts,
            "return_logprob": True,
            "sampling_params": {"temperature": 1.0, "max_new_tokens": tokens, "stop_token_ids": [STOP]},
        }
        answer = httpx.post(f"{url}/generate", json=body, timeout=600.0, trust_env=False).raise_for_status().json()
        return sum(len(each["output_ids"]) for each in answer)
    body = {
        "model": model,
        "prompt": prompts,
        "max_tokens": tokens,
        "temperature": 1.0,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "stop_token_ids": [STOP],
    }
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=600.0, trust_env=False)
    return sum(len(choice["token_ids"]) for choice in answer.raise_for_status().json()["choices"])


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
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm")
    parser.add_argument("--sglang")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interval", type=int, default=32, help="rollout.remote.stream_interval")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hf_config = AutoConfig.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    asked = requests(arguments.requests, arguments.tokens, hf_config.vocab_size)
    embedded = EmbeddedEngine(
        hf_config, stop_token=STOP, pad_token=0, batch_size=256, device=torch.device("cpu"), dtype=torch.float32
    )
    embedded.update_weights(weights, 0)
    rows = [{"engine": "embedded", "rates": rates({"client": lambda: client_call(embedded, asked)}, arguments.repeats)}]
    for name in ("vllm", "sglang"):
        url = vars(arguments)[name]
        if url:
            rows.append(row_of(name, url, arguments, hf_config, weights, asked))
    for row in rows:
        row["tokens_per_second"] = {call: round(statistics.median(each), 1) for call, each in row.pop("rates").items()}
        if "own" in row["tokens_per_second"]:
            row["client_to_own"] = round(row["tokens_per_second"]["client"] / row["tokens_per_second"]["own"], 3)
        print(json.dumps(row), flush=True)
    if arguments.out:
        command = " ".join(["python", "benchmarks/engines.py", *sys.argv[1:]])
        record = {"command": command, "processor": platform.processor() or platform.machine(), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def row_of(name: str, url: str, arguments: argparse.Namespace, hf_config, weights, asked: list[Request]) -> dict:
    row: dict = {"engine": name, "update": {}}
    for sync in ("disk", "gloo"):
        remote = RemoteConfig(stream_interval=arguments.interval)
        config = Config(engine=name, servers=[url], sync=sync, remote=remote)
        with tempfile.TemporaryDirectory(prefix="engines") as folder:
            engine = RemoteEngine(config, hf_config, stop_token=STOP, folder=Path(folder), world=None)
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
                calls = {
                    "own": lambda: own_batch_call(name, url, asked, str(arguments.model)),
                    "client": lambda engine=engine: client_call(engine, asked),
                }
                row["rates"] = rates(calls, arguments.repeats)
            engine.close()
    return row


if __name__ == "__main__":
    main()
