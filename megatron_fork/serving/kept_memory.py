"""Main memory that is used again: what the system gives anew it must find and clear first, which takes longer than to fill it.

Torch keeps no main memory that it has freed, as it does a GPU's.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

# Of the list, and of the question itself: whoever else refers to a piece is a tensor that lies in it.
_OWN_REFERENCES = 2


class KeptMemory:
    """A few pieces; each is given out again once no tensor is left that lies in it."""

    def __init__(self, most: int = 2) -> None:
        """Keeps `most` pieces; where more are in use at a time, the others are ordinary memory."""
        self._most = most
        self._pieces: list[np.ndarray] = []

    def take(self, size: int) -> Tensor:
        """`[size]` uint8 of any content."""
        for place in self._free():
            if len(self._pieces[place]) >= size:
                return torch.from_numpy(self._pieces[place])[:size]
        for place in reversed(self._free()):  # too short: it goes before a longer one comes
            del self._pieces[place]
        made = np.empty(size, dtype=np.uint8)
        if len(self._pieces) < self._most:
            self._pieces.append(made)
        return torch.from_numpy(made)

    def _free(self) -> list[int]:
        places = range(len(self._pieces))
        return [place for place in places if sys.getrefcount(self._pieces[place]) <= _OWN_REFERENCES]
