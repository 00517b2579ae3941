"""Rows are as long as their layout and the products of their layers ask for, on every rank that shares them."""

from typing import Any

import pytest
from support.layouts import model_config, trajectories
from support.ranks import run_on_ranks


def rows(parallel: dict[str, Any], recipe: str | None) -> list[tuple[int, int, list[int]]]:
    """(tokens of a rank's part, tokens of the whole row, its cumulative lengths) of each micro-batch."""
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig, split_into_mini_batches

    with parallel_layout(ParallelConfig(**parallel)) as layout:
        hf_config = model_config(tied=False, experts=False)
        config = PolicyConfig(precision="bf16", tokens_per_micro_batch=70)
        policy = Policy(config, OptimizerConfig(), hf_config, layout)
        if recipe:  # which asks for a GPU where a model is built with it
            policy.model[0].config.fp8, policy.model[0].config.fp8_recipe = "hybrid", recipe
        (batch,) = split_into_mini_batches(trajectories(), 24, group_size=4, seed=5)
        whole = policy.micro_batches(policy.share(batch))
        parts = policy.local(whole)
        return [
            (part.tokens, row.tokens, row.cumulative_lengths.tolist()) for part, row in zip(parts, whole, strict=True)
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{}, {"context": 2}, {"tensor": 2, "sequence": True}, {"tensor": 2}], ids=lambda fields: str(fields)
)
def test_every_rank_has_a_multiple(parallel: dict[str, Any]) -> None:
    ranks = max(1, parallel.get("tensor", 1) * parallel.get("context", 1))
    split = parallel["tensor"] if parallel.get("sequence") else 1
    for recipe, multiple in ((None, 1), ("tensorwise", 16), ("mxfp8", 32)):
        for found in run_on_ranks(rows, ranks, parallel, recipe):
            assert len(found) > 1
            for part, row, lengths in found:
                assert part % (multiple * split) == 0
                assert row == part * parallel.get("context", 1) == lengths[-1]
