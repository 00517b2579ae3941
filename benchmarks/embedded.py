"""Tokens a second of the embedded engine: an earlier state of the code and this one in turns, and whether they draw the same.

    git worktree add BEFORE COMMIT
    python -m megatron_fork train examples/quickstart.yaml run.folder=RUN
    python benchmarks/embedded.py --before BEFORE --model RUN/warm_start --out benchmarks/results/embedded_quickstart.json

Each state of the code in a process of its own with one thread, and both draw the same requests: prompts of the quickstart's
task with 16 responses each, or with `--random TOKENS` prompts of random tokens. Of each the fastest turn counts: whatever else
runs on the machine only makes a turn slower. A response is the same if all its tokens are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
RECIPE = PROJECT / "examples" / "quickstart.yaml"
SAMPLES = 16


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random ones of `length` tokens, or those of the quickstart if that is 0."""
    if length:
        generator = random.Random(0)
        return [[generator.randrange(2, vocabulary) for _ in range(length)] for _ in range(count)]
    from megatron_fork.config import load_config
    from megatron_fork.data import load_prompts

    return [list(prompt.tokens) for prompt in load_prompts(load_config(RECIPE).data, None).draw(count, start=0, seed=0)]


def worker(folder: Path, batch_size: int) -> None:
    """For each line of stdin, a list of [prompt, seed, most tokens]: seconds, peak memory and the responses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from megatron_fork.rollout import EmbeddedEngine, Request

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = EmbeddedEngine(
        config,
        stop_tokens=(config.eos_token_id,),
        pad_token=0,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    engine.update_weights(model.named_parameters(), 0)
    del model
    for line in sys.stdin:
        asked = [
            Request(number, tuple(prompt), seed, 1.0, most)
            for number, (prompt, seed, most) in enumerate(json.loads(line))
        ]
        before, started = time.process_time(), time.perf_counter()
        completions = sorted(engine.generate(asked), key=lambda completion: completion.number)
        seconds, processor = time.perf_counter() - started, time.process_time() - before
        answer = {
            "seconds": seconds,
            "processor_seconds": processor,
            "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "responses": [list(completion.tokens) for completion in completions],
            "logprobs": [list(completion.logprob) for completion in completions],
        }
        print(json.dumps(answer), flush=True)


def started(code: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as script:  # not beside the code of this state
        script.write(Path(__file__).read_text())
    command = [sys.executable, script.name, "--worker", "--model", options.model, "--batch-size", options.batch_size]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def answer_of(process: subprocess.Popen[str], asked: list[Any]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def row_of(requests: int, options: argparse.Namespace, engines: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    each = prompts(-(-requests // SAMPLES), options.random, vocabulary)
    asked = [[each[number // SAMPLES], number + 77, options.tokens] for number in range(requests)]
    turns = [{name: answer_of(engine, asked) for name, engine in engines.items()} for _ in range(options.turns)]
    best = {name: min((turn[name] for turn in turns), key=lambda turn: turn["seconds"]) for name in engines}
    tokens = sum(map(len, best["after"]["responses"]))
    same = [old == new for old, new in zip(*(best[name]["responses"] for name in ("before", "after")), strict=True)]
    logprobs = zip(same, *(best[name]["logprobs"] for name in ("before", "after")), strict=True)
    return {
        "requests": requests,
        "tokens": tokens,
        "tokens_per_second": {name: round(tokens / found["seconds"]) for name, found in best.items()},
        "ratio": round(best["before"]["seconds"] / best["after"]["seconds"], 2),
        "ratio_of_processor_seconds": round(
            min(turn["before"]["processor_seconds"] for turn in turns)
            / min(turn["after"]["processor_seconds"] for turn in turns),
            2,
        ),
        "peak_mebibytes": {name: round(found["peak_mebibytes"]) for name, found in best.items()},
        "same_responses": sum(same),
        "largest_logprob_difference": max(
            abs(a - b) for equal, old, new in logprobs if equal for a, b in zip(old, new, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--before", type=Path, help="a folder with the earlier state of the code")
    parser.add_argument("--requests", type=int, nargs="*", default=[256, 1056])
    parser.add_argument("--random", type=int, default=0, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=46, help="at which a response is cut")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.model, options.batch_size)
        return
    from served import write

    engines = {"before": started(options.before, options), "after": started(PROJECT, options)}
    rows = []
    for requests in options.requests:
        rows.append(row_of(requests, options, engines))
        print(json.dumps(rows[-1]), flush=True)
    for engine in engines.values():
        engine.communicate()
        Path(engine.args[1]).unlink()
    write(options.out, rows)


if __name__ == "__main__":
    main()
