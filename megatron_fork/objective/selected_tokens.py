"""The columns of the selected tokens of one call, for losses and regularizers, and checks of their shapes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.config import ObjectiveConfig

# e^80 is finite in float32; infinity times the 0 gradient of a clipped token would be NaN.
LARGEST_LOG_RATIO = 80.0


@dataclass(frozen=True)
class SelectedTokens:
    """The columns of the selected tokens, `[selected]`; `log_ratio` and `ratio` are of the policy to the old one."""

    config: ObjectiveConfig
    mask: Tensor
    optional: dict[str, Tensor | None]
    """Columns of all tokens, `[...]`, as they were passed."""
    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    log_ratio: Tensor
    ratio: Tensor

    @classmethod
    def of(
        cls,
        logprob: Tensor,
        old_logprob: Tensor,
        advantage: Tensor,
        mask: Tensor,
        config: ObjectiveConfig,
        optional: dict[str, Tensor | None],
    ) -> SelectedTokens:
        """Raises `ObjectiveError` if shapes or dtypes do not match, or a selected advantage is not finite."""
        columns = {"old_logprob": old_logprob, "advantage": advantage, "mask": mask, **optional}
        refuse_other_shapes("logprob", logprob, columns)
        refuse_other_than_flags({name: columns[name] for name in ("mask", "forking", "covered", "accepted")})
        logprob, old_logprob, advantage = logprob[mask], old_logprob[mask], advantage[mask]
        if not torch.isfinite(advantage).all():
            raise ObjectiveError("advantage holds a value that is not finite", hint="check the rewards")
        log_ratio = logprob - old_logprob
        ratio = exponential(log_ratio)
        return cls(config, mask, optional, logprob, old_logprob, advantage, log_ratio, ratio)

    def given(self, name: str) -> Tensor | None:
        """`[selected]`: an optional column, None if it was not passed."""
        column = self.optional[name]
        return None if column is None else column[self.mask]

    def needed(self, name: str, field: str) -> Tensor:
        """`[selected]`: the optional column that `config.<field>` needs; raises `ObjectiveError` if it was not passed."""
        column = self.given(name)
        if column is None:
            raise ObjectiveError(
                f"objective.{field} needs {name}; {field} is {vars(self.config)[field]}",
                hint=f"pass {name} to policy_loss; a loss of your own names it: Loss(..., columns=('{name}',))",
            )
        return column


def exponential(log_ratio: Tensor) -> Tensor:
    """e^log_ratio, finite and without gradient beyond e^80."""
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()


def refuse_other_shapes(reference_name: str, reference: Tensor, columns: dict[str, Tensor | None]) -> None:
    """Raise `ObjectiveError` for the first of `columns` whose shape differs from the reference."""
    for name, column in columns.items():
        if column is not None and column.shape != reference.shape:
            raise ObjectiveError(
                f"{name} has shape {list(column.shape)}, {reference_name} {list(reference.shape)}",
                hint="give one value per token",
            )


def refuse_other_than_flags(columns: dict[str, Tensor | None]) -> None:
    """Raise `ObjectiveError` for the first of `columns` that is not bool: numbers as an index would pick tokens by place."""
    for name, column in columns.items():
        if column is not None and column.dtype != torch.bool:
            raise ObjectiveError(f"{name} is {column.dtype}, not bool", hint="pass a flag for every token")
