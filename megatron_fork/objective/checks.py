"""Refusals of columns that do not fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError


def refuse_other_shapes(reference_name: str, reference: Tensor, columns: dict[str, Tensor | None]) -> None:
    """Raises for the first of `columns` that has not the shape of the reference."""
    for name, column in columns.items():
        if column is not None and column.shape != reference.shape:
            raise ObjectiveError(
                f"{name} has shape {list(column.shape)}, {reference_name} {list(reference.shape)}",
                hint="one value a token",
            )


def refuse_other_than_flags(columns: dict[str, Tensor | None]) -> None:
    """Raises for the first of `columns` that is not bool: as an index, numbers would pick tokens, not mark them."""
    for name, column in columns.items():
        if column is not None and column.dtype != torch.bool:
            raise ObjectiveError(f"{name} is {column.dtype}, not bool", hint="pass a flag for every token")
