"""What an evaluation adds to the engine's own time: judging, writing traces, counting, intervals, majorities.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json
    python benchmarks/evaluation.py --hidden 128 --layers 2 --out benchmarks/results/evaluation_quickstart.json

The model has random weights and the tokenizer of the quickstart; with 128 and 2 it has the quickstart's size, and draws tens of
thousands of tokens a second on one core. The slower a model, the smaller the share that is added to it. The embedded engine
draws nothing while its responses are judged and written.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_fork import run
from megatron_fork.data import tokenizer_of_task
from megatron_fork.evaluation import held_out_set


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
    """Seconds of one evaluation by what they went to."""
    words = [
        *("data.source=reach", f"data.held_out={prompts}", "rewards.kind=reach", "rewards.workers=0"),
        *("rollout.max_response_tokens=46", f"rollout.batch_size={batch}", "rollout.mismatch_limit=.inf"),
    ]
    config = run.config_of(model, words)
    chosen = replace(held_out_set(config.evaluation, config.data), samples=samples)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run.evaluate_model(config, run.Asked([chosen], out), run.Display(speaks=False))
        results = json.loads((out / "evaluation.json").read_text())
    tokens = results["sets"]["held_out"]["response_tokens"]["mean"] * prompts * samples
    return {**results["provenance"]["seconds"], "tokens": tokens}


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
    shares = sorted((each["drawing"] + each["counting"]) / each["engine"] - 1 for each in rounds)
    found = {
        "model": f"Qwen3, width {given.hidden}, {given.layers} layers",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "prompts": given.prompts,
        "samples": given.samples,
        "rounds": rounds,
        "added_to_the_engine": {"median": shares[len(shares) // 2], "largest": shares[-1]},
        "tokens_per_second_of_the_engine": max(each["tokens"] / each["engine"] for each in rounds),
    }
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
