"""Whether weights have arrived: checksums of what the trainer sent, and of what each server's workers hold.

A worker holds parts of tensors; the checksum of a whole is the sum of its parts'.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from megatron_fork.rollout.servers.wire import ServerFault, quoted
from megatron_fork.rollout.weights import Bucket
from megatron_fork.serving import checksum

_MASK = (1 << 64) - 1
# What a server may hold weights in so that they can be compared: not what they are scaled and rounded to in 8 bits.
_TYPES = {
    str(each).removeprefix("torch."): each for each in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
_NAMED = 3

Extents = dict[tuple[int, int, int, int], set[int]]
"""The checksums of each extent of a tensor that some worker holds; two workers may hold the same one."""


@dataclass(frozen=True)
class Held:
    """What one worker says of one part that it holds: the words of `serving/held.py`."""

    tensor: str
    place: str
    dtype: str
    row: int
    column: int
    rows: int
    columns: int
    checksum: int

    @property
    def extent(self) -> tuple[int, int, int, int]:
        return self.row, self.column, self.rows, self.columns


def held_in(report: object) -> list[Held]:
    """The parts in one worker's report, which is JSON; raises `ServerFault` if it is none."""
    try:
        if not isinstance(report, str):
            raise TypeError("it is no text")
        return [_held(*row) for row in json.loads(report)]
    except (ValueError, TypeError) as error:
        raise ServerFault(f"its report of checksums cannot be read: {quoted(report, 60)}") from error


def _held(tensor: str, place: str, dtype: str, row: int, column: int, rows: int, columns: int, total: str) -> Held:
    if not all(type(number) is int for number in (row, column, rows, columns)):
        raise ValueError(f"{tensor} is not of whole rows and columns")
    return Held(str(tensor), str(place), str(dtype), row, column, rows, columns, int(total, 16))


class Arrival:
    """Of one update: `add` every bucket, then `fault_of` every server."""

    def __init__(self) -> None:
        self._types: dict[str, set[str]] = defaultdict(set)
        self._sums: dict[tuple[str, str], int] = {}
        self._sizes: dict[str, int] = {}

    def expect(self, types: Iterable[tuple[str, str]]) -> None:
        """(tensor, dtype) in which a server holds it: it compares with what was sent in that type."""
        for tensor, dtype in types:
            if dtype not in _TYPES:
                raise ServerFault(f"it says that {quoted(tensor, 60)} is of the type {quoted(dtype, 60)}")
            self._types[tensor].add(dtype)

    @property
    def tensors(self) -> int:
        """How many were sent."""
        return len(self._sizes)

    def add(self, bucket: Bucket) -> None:
        for name, tensor in bucket:
            self._sizes[name] = tensor.numel()
            for kind in {_TYPES[dtype] for dtype in self._types.get(name, ())} or {tensor.dtype}:
                self._sums[name, str(kind).removeprefix("torch.")] = checksum(tensor.to(kind))

    def fault_of(self, parts: Sequence[Held]) -> str:
        """Which tensors a server, of whose workers these are, does not hold as they were sent; empty if it holds all.

        What holds more numbers than the tensor has is padded for a kernel, and cannot be compared: see `unseen`.
        """
        wrong = []
        for (place, tensor, dtype), found in _by_place(parts).items():
            if any(len(sums) > 1 for sums in found.values()):
                wrong.append(f"{place} (its workers hold different ones)")
            elif self._can_compare(tensor, dtype, found) and not self._is_whole(tensor, dtype, found):
                wrong.append(place if place == tensor else f"{place} (tied to {tensor})")
        if not wrong:
            return ""
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        return f"it holds other weights than were sent: {', '.join(wrong[:_NAMED])}{more}"

    def unseen(self, parts: Sequence[Held]) -> list[str]:
        """Tensors that were sent and of which a server reports nothing that can be compared."""
        places = _by_place(parts).items()
        return sorted(
            self._sizes.keys()
            - {tensor for (_, tensor, dtype), found in places if self._can_compare(tensor, dtype, found)}
        )

    def _can_compare(self, tensor: str, dtype: str, found: Extents) -> bool:
        return (tensor, dtype) in self._sums and _numbers(found) <= self._sizes[tensor]

    def _is_whole(self, tensor: str, dtype: str, found: Extents) -> bool:
        total = sum(checksum for sums in found.values() for checksum in sums) & _MASK
        return _numbers(found) == self._sizes[tensor] and total == self._sums[tensor, dtype]


def _by_place(parts: Sequence[Held]) -> dict[tuple[str, str, str], Extents]:
    places: dict[tuple[str, str, str], Extents] = defaultdict(lambda: defaultdict(set))
    for part in parts:
        places[part.place, part.tensor, part.dtype][part.extent].add(part.checksum)
    return places


def _numbers(found: Extents) -> int:
    return sum(rows * columns for _, _, rows, columns in found)
