"""What a trainer step has done so far, and the learning rates that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_fork.experience import Batch
from megatron_fork.policy.update_metrics import Metrics


@dataclass
class StepResult:
    """What a trainer step has done: all of it, or the updates before a stop; a resumed run makes the rest."""

    metrics: Metrics = field(default_factory=dict)
    """Of the step, over all ranks."""
    updates: list[Metrics] = field(default_factory=list)
    """Of each update."""
    critic_updates: list[Metrics] = field(default_factory=list)
    """Of each update of the critic, which come after those of the policy."""
    shares: list[Batch] = field(default_factory=list)
    """This rank's part of each mini-batch, with its columns."""
    columns: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    """Columns of every sequence by its number, from the checkpoint of an interrupted step; `shares` are restored from them."""

    @property
    def is_begun(self) -> bool:
        """Whether the step has results that a checkpoint must keep."""
        return bool(self.shares or self.columns)

    def restored(self, share: Batch) -> Batch:
        """The share, under any layout, with its columns from the checkpoint."""
        if not share.sequences:
            some = next(iter(self.columns.values()), {})
            return share.with_columns(**{name: column_t[:0] for name, column_t in some.items()})
        names = self.columns[share.sequences[0].number]
        return share.with_columns(
            **{name: torch.cat([self.columns[each.number][name] for each in share.sequences]) for name in names}
        )


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of a step; the policy is not updated if its rate is 0."""

    policy: float
    critic: float = 0.0
