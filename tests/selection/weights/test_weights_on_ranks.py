"""However responses are spread over ranks, every token has the same weight, and every rank reports the same."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from support.weighed import choose, mini_batch, take

from megatron_fork.selection import WEIGHTINGS, SelectionConfig
from megatron_fork.selection.config import SecondMoment, Stapo

RANKS, SEEDS = 2, range(5)
RESPONSES = 12


def configs() -> list[SelectionConfig]:
    strict: dict[str, Any] = {"stapo": Stapo(probability=0.3), "m2po": SecondMoment(moment=0.02)}
    each = [[name] for name in WEIGHTINGS]
    together = [["nat", "m2po", "soft_entropy"], ["quadrants", "stapo"]]
    return [
        SelectionConfig(tokens=tokens, ratio=0.4, scope=scope, weights=weights, **strict)
        for weights in [*each, *together]
        for tokens, scope in (("all", "minibatch"), ("top", "minibatch"), ("random", "sequence"))
    ]


def owners(seed: int) -> torch.Tensor:
    """The rank of each response; under the first seed all are on one."""
    if seed == 0:
        return torch.zeros(RESPONSES, dtype=torch.long)
    return torch.randint(RANKS, (RESPONSES,), generator=torch.Generator().manual_seed(seed))


def found(batch: dict[str, torch.Tensor], group: Any) -> list[Any]:
    made = []
    for config in configs():
        chosen = choose(batch, config, group=group, step=5, tie_tolerance=1e-5)
        counted = chosen.mask if chosen.counted is None else chosen.counted
        made.append(((chosen.mask, chosen.weight, counted), {"selected": chosen.selected, **chosen.measures}))
    return made


def on_rank() -> list[Any]:
    shares = [take(mini_batch(seed, responses=RESPONSES), owners(seed) == dist.get_rank()) for seed in SEEDS]
    return [found(share, dist.group.WORLD) for share in shares]


@pytest.mark.slow
def test_split_invariance() -> None:
    answers = run_on_ranks(on_rank, RANKS)
    acted = set()
    for seed in SEEDS:
        batch = mini_batch(seed, responses=RESPONSES)
        whole = found(batch, None)
        order = [(owners(seed) == rank)[batch["sequence"]] for rank in range(RANKS)]
        for number, (columns, measures) in enumerate(whole):
            for rank in range(RANKS):
                theirs, theirs_measures = answers[rank][seed][number]
                assert theirs_measures == pytest.approx(measures, rel=1e-9)
                for ours, part in zip(columns, theirs, strict=True):
                    torch.testing.assert_close(part, ours[order[rank]], rtol=1e-6, atol=0.0)
            if any(value < 1.0 for name, value in measures.items() if name.endswith("_kept")):
                acted.add(tuple(configs()[number].weights))
    assert len(acted) == len(WEIGHTINGS) - 1 + 2  # all but soft_entropy leave something out
