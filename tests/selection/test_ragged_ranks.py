"""On one to four ranks, of which some hold nothing: the k-th largest of one list, and the selection of one process."""

import functools
import itertools
import math
import random

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from support.restated import SPECIAL, restated

from megatron_fork.errors import SelectionError
from megatron_fork.selection import PRESETS, SelectionConfig, kth_largest, select_tokens

RANKS = 4
MANY = 3 * 2**19
CONFIGS = [
    *(SelectionConfig(preset=preset) for preset in PRESETS),
    *(SelectionConfig(preset=preset, tokens="bottom", ratio=0.8) for preset in PRESETS),
    *(SelectionConfig(tokens=tokens, rule="exact_k", ratio=0.7, seed=5) for tokens in ("top", "random", "all")),
    *(SelectionConfig(tokens=tokens, scope="microbatch_global", rule="exact_k") for tokens in ("top", "random")),
    *(SelectionConfig(tokens=tokens, scope="sequence", rule="exact_k") for tokens in ("bottom", "random")),
]


def seeds(ranks: int) -> tuple[int, ...]:
    """Of the spreads over so many ranks; each leaves another rank empty."""
    return (0,) if ranks < RANKS else (0, 3)


def owners(units: int, ranks: int, seed: int) -> torch.Tensor:
    """The rank of each unit; where there are several ranks, each seed leaves another one empty."""
    generator = random.Random(f"{units}/{ranks}/{seed}")
    able = [rank for rank in range(ranks) if ranks == 1 or rank != seed % ranks]
    return torch.tensor([generator.choice(able) for _ in range(units)], dtype=torch.int64)


@functools.cache
def mini_batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(entropies, candidates, segments): ties, special values, ragged segments, none."""
    made = []
    for size in (5, 90):
        generator = random.Random(size)
        values = [generator.choice([*SPECIAL, generator.expovariate(1.0)]) for _ in range(size)]
        # Infinite cuts have no mean.
        entropy = torch.tensor([min(value, 1e30) for value in values], dtype=torch.float32)
        mask = torch.tensor([generator.random() < 0.8 for _ in range(size)], dtype=torch.bool)
        made.append(
            (entropy, mask, torch.tensor([generator.choice([0, 1, 1, 1, 4]) for _ in range(size)], dtype=torch.int64))
        )
    return [*made, (torch.ones(9), torch.zeros(9, dtype=torch.bool), torch.arange(9))]


def values_of(name: str) -> torch.Tensor:
    if name == "few":
        return torch.tensor([0.5, -1.0, 3.0, 3.0, math.inf, 3.0, -0.0, 0.0, 1e-45, -math.inf, 2.0, 3.0000002])
    exponential = torch.empty(MANY).exponential_(1.0, generator=torch.Generator().manual_seed(9))
    return exponential if name == "many" else exponential.where(exponential > 0.7, 0.0)


def spread(values: torch.Tensor, ranks: int, seed: int) -> list[torch.Tensor]:
    """Ragged shares, one of them empty where there are several ranks."""
    generator = random.Random(f"{ranks}/{seed}")
    weights = [0.0 if ranks > 1 and rank == seed % ranks else generator.random() ** 3 for rank in range(ranks)]
    ends = [round(end / sum(weights) * len(values)) for end in itertools.accumulate(weights, initial=0.0)]
    return [values[first:last] for first, last in itertools.pairwise(ends)]


def ks(count: int) -> list[int]:
    return list(range(1, count + 1)) if count < 100 else [1, count // 5, count // 2, count]


def on_every_group() -> list[dict[str, object]]:
    """What this rank sees in the groups of the first one, two, three and four ranks that it belongs to."""
    groups = [dist.new_group(list(range(ranks))) for ranks in range(1, RANKS + 1)]
    return [in_group(group) for ranks, group in enumerate(groups, start=1) if dist.get_rank() < ranks]


def in_group(group: dist.ProcessGroup) -> dict[str, object]:
    ranks, rank = group.size(), group.rank()
    found = {}
    for name in ("few", "many", "ties"):
        values = values_of(name)
        for seed in seeds(ranks):
            share = spread(values, ranks, seed)[rank]
            found[name, seed] = [kth_largest(share, k, group=group) for k in ks(len(values))]
    for index, (entropy, mask, segments) in enumerate(mini_batches()):
        for number, config in enumerate(CONFIGS):
            for seed in seeds(ranks):
                # A micro-batch or sequence of one rank's own scope is whole on a rank.
                whole = config.scope in ("microbatch", "sequence")
                owner = owners(5, ranks, seed)[segments.clamp(max=4)] if whole else owners(len(entropy), ranks, seed)
                ids = (owner == rank).nonzero()[:, 0]
                ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
                chosen = select_tokens(
                    entropy[ids], mask[ids], config, group=group, segments=segments[ids], token_ids=ids, step=3
                )
                report = (chosen.threshold, chosen.selected, chosen.candidates)
                found[index, number, seed] = (ids[chosen.mask].tolist(), *report)
    return {"found": found, "errors": errors_in(group), "places": random_by_place(group)}


def errors_in(group: dist.ProcessGroup) -> list[str]:
    """Mistakes of the last rank alone; every rank has to hear of them, and go on together."""
    last = group.rank() == group.size() - 1
    mask = torch.ones(3, dtype=torch.bool)
    nan = torch.tensor([0.0, 1.0, math.nan if last else 2.0])
    negative = torch.tensor([0, -2 if last else 1, 1])

    def select(entropy: torch.Tensor, scope: str, segments: torch.Tensor | None = None) -> None:
        select_tokens(entropy, mask, SelectionConfig(scope=scope), group=group, segments=segments)

    attempts = [
        lambda: kth_largest(nan, 1, group=group),
        lambda: kth_largest(nan[:2], 2 * group.size() + 1, group=group),
        lambda: select(nan, "minibatch"),
        lambda: select(nan, "sequence"),
        lambda: select(torch.zeros(3), "microbatch_global", negative),
        lambda: select(torch.zeros(3), "microbatch", negative),
    ]
    messages = []
    for attempt in attempts:
        try:
            attempt()
        except SelectionError as error:
            messages.append(error.message)
    return messages


def random_by_place(group: dist.ProcessGroup) -> list[bool]:
    """Without ids, a token's place in the concatenation of all ranks stands for it."""
    share = torch.zeros(group.rank() * 10)
    flags = torch.ones(len(share), dtype=torch.bool)
    return select_tokens(share, flags, SelectionConfig(tokens="random", ratio=0.5), group=group).mask.tolist()


@pytest.mark.slow
def test_groups_of_one_to_four_ranks() -> None:
    answers = run_on_ranks(on_every_group, RANKS)
    for ranks in range(1, RANKS + 1):
        of_group = [answers[rank][ranks - 1 - rank] for rank in range(ranks)]
        check_kth([answer["found"] for answer in of_group])
        check_selection([answer["found"] for answer in of_group])
        for answer in of_group:
            assert answer["errors"] == [
                f"value 2 of rank {ranks - 1} is NaN",
                f"k={2 * ranks + 1} is not between 1 and the {2 * ranks} values of all ranks",
                *[f"value 2 of rank {ranks - 1} is NaN"] * 2,
                *["segment -2 is negative"] * 2,
            ]
        count = sum(10 * rank for rank in range(ranks))
        alone = select_tokens(
            torch.zeros(count), torch.ones(count, dtype=torch.bool), SelectionConfig(tokens="random", ratio=0.5)
        )
        assert [flag for answer in of_group for flag in answer["places"]] == alone.mask.tolist()


def check_kth(found: list[dict]) -> None:
    for name in ("few", "many", "ties"):
        falling = values_of(name).sort(descending=True).values
        expected = [falling[k - 1].item() for k in ks(len(falling))]
        for answer in found:
            for seed in seeds(len(found)):
                assert answer[name, seed] == expected


def check_selection(found: list[dict]) -> None:
    for index, (entropy, mask, segments) in enumerate(mini_batches()):
        for number, config in enumerate(CONFIGS):
            alone = select_tokens(
                entropy, mask, config, segments=segments, token_ids=torch.arange(len(entropy)), step=3
            )
            if config.tokens in ("top", "bottom"):
                assert alone.mask.tolist() == restated(entropy, mask, config, segments=segments)[0]
            for seed in seeds(len(found)):
                shares = [answer[index, number, seed] for answer in found]
                assert sorted(token for share in shares for token in share[0]) == alone.mask.nonzero()[:, 0].tolist()
                for _, threshold, selected, candidates in shares:
                    assert (selected, candidates) == (alone.selected, alone.candidates)
                    assert threshold == pytest.approx(alone.threshold, rel=1e-12, nan_ok=True)
                    if config.scope in ("minibatch", "microbatch_global") and not math.isnan(threshold):
                        assert threshold == alone.threshold
