"""Memory that is reused from tile to tile: on a CPU fresh pages cost as much as the arithmetic done in them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Named pieces of memory that only grow; a piece taken again is the same memory, so one caller at a time."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor with whatever values."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype or held.device != device:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=device)
        return held[:size].view(shape)
