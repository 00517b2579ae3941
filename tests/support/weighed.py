"""Mini-batches with every column that a weighting may read, and the weights that `select_tokens` gives on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_fork.selection import ChosenTokens, Selection, SelectionConfig, Weighed, select_tokens

Columns = dict[str, Tensor]


def mini_batch(seed: int, *, responses: int = 12, longest: int = 15) -> Columns:
    """Responses of 1 to `longest` tokens, half of them nearly certain; copies of the first stand for shared prefixes."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (responses,), generator=generator)
    lengths[-1] = lengths[0]
    sequence = torch.arange(responses).repeat_interleave(lengths)
    tokens, first = len(sequence), int(lengths[0])

    def normal(spread: float) -> Tensor:
        return spread * torch.randn(tokens, generator=generator, dtype=torch.float64)

    entropy = 2.0 * torch.rand(tokens, generator=generator, dtype=torch.float64)
    entropy = torch.where(torch.rand(tokens, generator=generator) < 0.5, 1e-3 * entropy, entropy)
    old = -entropy * (2.0 * torch.rand(tokens, generator=generator, dtype=torch.float64)) - normal(1.0).abs()
    made = {
        "entropy": entropy,
        "old_logprob": old,
        "logprob": (old + normal(0.3)).clamp(max=0.0),
        "rollout_logprob": (old + normal(0.1)).clamp(max=0.0),
        "advantage": torch.randint(-4, 5, (responses,), generator=generator)[sequence] / 2.0,
        "candidate": (torch.rand(responses, generator=generator) < 0.9)[sequence],
    }
    for column in made.values():
        column[-first:] = column[:first].clone()
    return {
        **{name: column.float() if column.is_floating_point() else column for name, column in made.items()},
        "sequence": sequence,
        "response": 100 + 7 * sequence,
        "place": torch.cat([torch.arange(int(length)) for length in lengths]),
    }


def take(batch: Columns, mine: Tensor) -> Columns:
    """The responses `mine`, bool `[responses]`; they are numbered from 0 again."""
    here = mine[batch["sequence"]]
    taken = {name: column[here] for name, column in batch.items()}
    return {**taken, "sequence": taken["sequence"].unique(return_inverse=True)[1]}


def choose(batch: Columns, config: SelectionConfig, **options: Any) -> Selection:
    """`select_tokens` with every column of the batch; sequences are the segments."""
    others = {name: column for name, column in batch.items() if name not in ("entropy", "candidate")}
    return select_tokens(
        batch["entropy"],
        batch["candidate"],
        config,
        segments=batch["sequence"],
        token_ids=batch["response"] * 2**24 + batch["place"],
        columns=others,
        **options,
    )


def by_place(tokens: ChosenTokens) -> Weighed:
    """A weighting whose name another test's has too."""
    return Weighed(tokens.needed("place").float())
