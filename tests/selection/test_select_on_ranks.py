"""However the tokens of a mini-batch are spread over ranks, the same tokens are marked and the same counts reported."""

import math
import random

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks

from megatron_fork.selection import SelectionConfig, select_tokens

CONFIGS = [
    SelectionConfig(tokens=tokens, rule=rule, scope=scope, ratio=ratio, seed=7)
    for tokens, rule in [
        ("top", "threshold"),
        ("bottom", "threshold"),
        ("top", "exact_k"),
        ("bottom", "exact_k"),
        ("top", "quantile"),
        ("random", "threshold"),
        ("all", "threshold"),
    ]
    for scope, ratio in (("minibatch", 0.2), ("microbatch_global", 0.7))
]


def mini_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(entropies, candidates) with many ties, one of them without any candidate."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for tokens in (97, 31, 3, 1):
        entropy = torch.randint(0, 12, (tokens,), generator=generator) / 8
        made.append((entropy, torch.rand(tokens, generator=generator) < 0.8))
    return [*made, (torch.zeros(20), torch.zeros(20, dtype=torch.bool))]


def owners(tokens: int, ranks: int, seed: int) -> torch.Tensor:
    """The rank of each token; under each seed another rank has none."""
    generator = random.Random(f"{seed}/{tokens}")
    return torch.tensor([generator.choice([rank for rank in range(ranks) if rank != seed]) for _ in range(tokens)])


def select_share(seed: int) -> list[tuple[list[int], float, int, int]]:
    """(ids marked on this rank, threshold, global counts) for every mini-batch and config."""
    results = []
    for entropy, mask in mini_batches():
        ids = (owners(len(entropy), dist.get_world_size(), seed) == dist.get_rank()).nonzero()[:, 0]
        for config in CONFIGS:
            found = select_tokens(
                entropy[ids], mask[ids], config, group=dist.group.WORLD, token_ids=ids, segments=ids * 0, step=3
            )
            results.append((ids[found.mask].tolist(), found.threshold, found.selected, found.candidates))
    return results


def select_splits(seeds: tuple[int, ...]) -> list[list[tuple[list[int], float, int, int]]]:
    return [select_share(seed) for seed in seeds]


@pytest.mark.slow
def test_split_invariance() -> None:
    ranks, seeds = 3, (0, 2, 9)
    whole = [select_tokens(entropy, mask, config, step=3) for entropy, mask in mini_batches() for config in CONFIGS]
    answers = run_on_ranks(select_splits, ranks, seeds)
    for split in range(len(seeds)):
        for place, reference in enumerate(whole):
            shares = [answers[rank][split][place] for rank in range(ranks)]
            assert sorted(token for share in shares for token in share[0]) == reference.mask.nonzero()[:, 0].tolist()
            for _, threshold, selected, candidates in shares:
                assert threshold == reference.threshold or (math.isnan(threshold) and math.isnan(reference.threshold))
                assert (selected, candidates) == (reference.selected, reference.candidates)


def select_locally() -> tuple[list[bool], float, int, int]:
    """Ten tokens on the first rank, four on the second, in two sequences there."""
    share = torch.arange(10.0) if dist.get_rank() == 0 else torch.tensor([[100.0, 101.0], [102.0, 103.0]])
    scope = SelectionConfig(scope="sequence" if dist.get_rank() else "microbatch", ratio=0.5)
    found = select_tokens(share, torch.ones_like(share, dtype=torch.bool), scope, group=dist.group.WORLD)
    return found.mask.flatten().tolist(), found.threshold, found.selected, found.candidates


@pytest.mark.slow
def test_local_scopes_cut_each_share_and_count_globally() -> None:
    first, second = run_on_ranks(select_locally, 2)
    assert first[0] == [False] * 5 + [True] * 5
    assert second[0] == [False, True, False, True]
    for _, threshold, selected, candidates in (first, second):
        assert (selected, candidates) == (7, 14)
        assert threshold == pytest.approx((5.0 * 10 + 101.0 * 2 + 103.0 * 2) / 14, rel=1e-12)
