"""A response of 29,696 tokens through statistics pass, selection and update: memory, seconds, and equality with one rank.

    python benchmarks/long_context.py --out benchmarks/results/long_context.json

A Qwen3 with Qwen's vocabulary of 151,936 and a small body, float32, on CPU ranks with one thread each. A mini-batch is one long
response and seven short ones, packed into one row; the top 20 % of its tokens are trained. Each arm runs in processes of its
own and makes two steps; the second is measured, when Adam's state is there. Memory is the resident peak over what is held
before the call. The logits alone of the longest row would take 17 GiB.

flat     MiB a rank by length: a longer row must cost what its hidden states and kept layer inputs cost, no more
context  two context ranks against one: the same log-probs, entropies, threshold, selected tokens and gradients, half the row
floor    an arm without recomputation, in the same run: what is kept if nothing is recomputed
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from head.measure import machine, peak_mebibytes
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_fork import objective, selection
from megatron_fork.clock import Clock
from megatron_fork.conversion import iter_hf_weights, load_weights
from megatron_fork.distributed import ParallelConfig, parallel_layout
from megatron_fork.experience import Prompt, Trajectory, logprob_array, token_array
from megatron_fork.models import ComputeConfig
from megatron_fork.policy import (
    Learner,
    LearningRates,
    OptimizerConfig,
    Policy,
    PolicyConfig,
    TrainedModels,
    split_into_mini_batches,
)
from megatron_fork.run.console import quiet_libraries

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.layouts import differences
from support.ranks import run_on_ranks

PROMPT, SHORT = 512, (100, 200, 300, 400, 500, 600, 700)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32_768,
    # With less, every entropy is nearly that of the uniform distribution, and rounding decides which are above the cut.
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


def trajectories(longest: int) -> list[Trajectory]:
    """One prompt group: a response of `longest` tokens and seven short ones."""
    draw = random.Random(0)
    prompt = Prompt(0, "", tuple(draw.randrange(CONFIG["vocab_size"]) for _ in range(PROMPT)), "")
    return [
        Trajectory(
            number=number,
            prompt=prompt,
            response=token_array(draw.randrange(CONFIG["vocab_size"]) for _ in range(length)),
            rollout_logprob=logprob_array(-11.9 for _ in range(length)),
            finish_reason="stop",
            weight_version=0,
            advantage=draw.uniform(-1, 1),
        )
        for number, length in enumerate((longest, *SHORT))
    ]


def _arm(longest: int, context: int, recompute: str) -> dict[str, Any]:
    """On one rank: figures of the second step, and the first step's results for the comparison."""
    quiet_libraries()
    torch.manual_seed(0)
    config = Qwen3Config(**CONFIG)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    row = longest + sum(SHORT) + (1 + len(SHORT)) * (PROMPT + 2 * context)
    with parallel_layout(ParallelConfig(context=context)) as layout:
        policy = Policy(
            PolicyConfig(tokens_per_micro_batch=row, tokens_per_statistics_batch=row),
            OptimizerConfig(learning_rate=1e-5),
            config,
            layout,
            compute=ComputeConfig(recompute=recompute),  # type: ignore[arg-type]
        )
        load_weights(policy.model, weights)
        policy.weights_changed()
        del weights
        learner = Learner(
            TrainedModels(policy), selection.SelectionConfig(), objective.ObjectiveConfig(), mismatch_limit=1e3
        )
        (batch,) = split_into_mini_batches(trajectories(longest), 1, group_size=1 + len(SHORT), seed=0)
        first = learner.step([batch], step=1, rates=LearningRates(1e-5), clock=Clock())
        (share,) = first.shares
        compared = {
            "metrics": [{name: first.metrics[name] for name in ("loss", "gradient_norm", "selection/threshold")}],
            "tokens": [
                {
                    "logprob": share.old_logprob_t,
                    "entropy": share.entropy_t,
                    "selected": share.token_id_t[share.selected_t],
                }
            ],
            "weights": {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)},
            "gradients": {
                f"{number}": parameter.main_grad.clone()
                for number, parameter in enumerate(each for chunk in policy.model for each in chunk.parameters())
            },
        }
        figures = _measured(lambda: policy.statistics(batch), "statistics") | _measured(
            lambda: learner.step([batch], step=2, rates=LearningRates(1e-5), clock=Clock()), "step"
        )
        held = sum(parameter.numel() for chunk in policy.model for parameter in chunk.parameters()) * 16 / 2**20
    return {"figures": {**figures, "weights_gradients_optimizer_mib": round(held)}, "compared": compared}


def _measured(action: Callable[[], Any], name: str) -> dict[str, float]:
    taken = []

    def timed() -> None:
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)

    peak = peak_mebibytes(timed, "cpu")
    return {f"{name}_mib": round(peak), f"{name}_seconds": round(taken[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--response", type=int, nargs="+", default=[3_712, 7_424, 14_848, 29_696], help="tokens")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/long_context.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine("cpu"),
        "model": CONFIG,
        "results": [],
    }
    for longest in options.response:
        reference: dict[str, Any] | None = None
        for context, recompute in ((1, "full"), (2, "full"), (1, "none")):
            ranks = run_on_ranks(_arm, context, longest, context, recompute, time_limit=1800.0)
            reference = reference or ranks[0]["compared"]
            found = {
                "response": longest,
                "context": context,
                "recompute": recompute,
                "logits_would_be_mib": round(longest * CONFIG["vocab_size"] * 4 / 2**20),
                **{name: max(rank["figures"][name] for rank in ranks) for name in ranks[0]["figures"]},
                "against_one_rank": differences(ranks[0]["compared"], reference),
            }
            print(json.dumps(found), flush=True)
            record["results"].append(found)
            if options.out:
                options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
