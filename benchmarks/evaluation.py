"""What an evaluation adds to the engine's own time: judging, writing traces, counting, intervals, majorities.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json
    python benchmarks/evaluation.py --hidden 128 --layers 2 --out benchmarks/results/evaluation_quickstart.json

The model has random weights and the tokenizer of the quickstart; with 128 and 2 it has the quickstart's size, and draws tens of
thousands of tokens a second on one core. The slower a model, the smaller the share that is added to it. Before and after each
evaluation the engine draws the same responses alone; what an evaluation takes more than the mean of both is what it adds.
`processor` is the same in seconds of the processor, of the whole evaluation with its start and end against the engine's with
its start: other work on the machine changes it less.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_fork import run
from megatron_fork.config import RunConfig
from megatron_fork.data import tokenizer_of_task
from megatron_fork.evaluation import PromptSet, held_out_set, missing, problems_of
from megatron_fork.rollout import request_for
from megatron_fork.run.offline import build_engine, give_weights
from megatron_fork.run.prompt_sets import load_set


def random_model(folder: Path, hidden: int, layers: int) -> None:
    """A model of random weights with the tokenizer of the reach task."""
    tokenizer = tokenizer_of_task("reach")
    heads = hidden // 32
    config = Qwen3Config(
        vocab_size=135,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measured(model: Path, prompts: int, samples: int, batch: int) -> dict[str, float]:
    """Seconds of one evaluation, and of the engine alone before and after it."""
    words = [
        *("data.source=reach", f"data.held_out={prompts}", "rewards.kind=reach", "rewards.workers=0"),
        *("rollout.max_response_tokens=46", f"rollout.batch_size={batch}", "rollout.mismatch_limit=.inf"),
    ]
    config = run.config_of(model, words)
    chosen = replace(held_out_set(config.evaluation, config.data), samples=samples)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        before = alone(config, chosen)
        began = time.process_time()
        run.evaluate_model(config, run.Asked([chosen], out), run.Display(speaks=False))
        whole = time.process_time() - began
        after = alone(config, chosen)
        results = json.loads((out / "evaluation.json").read_text())
    tokens = results["sets"]["held_out"]["response_tokens"]["mean"] * prompts * samples
    seconds = results["provenance"]["seconds"]
    processor = {"evaluation": whole, "alone": (before.whole + after.whole) / 2, "engine": after.processor}
    return {
        "alone_before": before.seconds,
        "alone_after": after.seconds,
        **seconds,
        **{f"processor_{name}": each for name, each in processor.items()},
        "tokens": tokens,
    }


class Alone(NamedTuple):
    """Seconds of the engine alone; `whole` with its start."""

    seconds: float
    processor: float
    whole: float


def alone(config: RunConfig, chosen: PromptSet) -> Alone:
    """The engine draws the responses of an evaluation, and nothing else is done."""
    start = time.process_time()
    with run.model_context(config, run.Display(speaks=False)) as context:
        source = load_set(chosen, config, context.hf_config, context.tokenizer).source
        wanted = missing(problems_of(chosen.name, source), chosen.samples, set())
        requests = [
            request_for(each.problem.prompt, number, each.seed(config.seed), config.rollout)
            for number, each in enumerate(wanted)
        ]
        with closing(build_engine(context, folder=Path(), longest_prompt=source.longest_prompt)) as engine:
            give_weights(context, run.load_policy(context), engine, source)
            began, began_processor = time.perf_counter(), time.process_time()
            for first in range(0, len(requests), config.rollout.batch_size):
                for _ in engine.generate(requests[first : first + config.rollout.batch_size]):
                    pass
            seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
    return Alone(seconds, processor, time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run.quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder) / "model", given.hidden, given.layers)
        rounds = [
            measured(Path(folder) / "model", given.prompts, given.samples, given.batch) for _ in range(given.rounds)
        ]
    shares = sorted(
        2 * (each["drawing"] + each["counting"]) / (each["alone_before"] + each["alone_after"]) - 1 for each in rounds
    )
    processor = sorted(
        (each["processor_evaluation"] - each["processor_alone"]) / each["processor_engine"] for each in rounds
    )
    found = {
        "model": f"Qwen3, width {given.hidden}, {given.layers} layers",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "prompts": given.prompts,
        "samples": given.samples,
        "rounds": rounds,
        "added_to_the_engine": {"median": shares[len(shares) // 2], "largest": shares[-1]},
        "added_to_its_processor_time": {"median": processor[len(processor) // 2], "largest": processor[-1]},
        "tokens_per_second_of_the_engine": max(each["tokens"] / each["alone_after"] for each in rounds),
    }
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
