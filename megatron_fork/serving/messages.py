"""A bucket of weights as one message: whole tensors one after another, or what changed in them since another version."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_fork.serving.deltas import Change


@dataclass(frozen=True)
class Message:
    """What a receiver is told of the `bytes` that come next; names are Hugging Face's, dtypes torch's."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    bytes: int
    version: str = ""
    """The weights are to be kept under this label, for changes that come later; empty: they are not."""
    base: str = ""
    """The version in which `changes` were found; empty: whole tensors."""
    changes: list[Change] = field(default_factory=list)
    is_compressed: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """As JSON has them."""
        return dict(vars(self))


def described(bucket: Sequence[tuple[str, Tensor]], *, version: str = "") -> Message:
    """Of whole tensors."""
    return Message(
        [name for name, _ in bucket],
        [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        [list(tensor.shape) for _, tensor in bucket],
        sum(tensor.nbytes for _, tensor in bucket),
        version,
    )


def unpacked(message: Message, data: Tensor) -> list[tuple[str, Tensor]]:
    """The whole tensors of a message, in its own memory."""
    tensors, place = [], 0
    for name, dtype, shape in zip(message.names, message.dtypes, message.shapes, strict=True):
        kind = getattr(torch, dtype)
        size = math.prod(shape) * kind.itemsize
        tensors.append((name, data[place : place + size].view(kind).view(shape)))
        place += size
    return tensors


def write_message(folder: Path, number: int, message: Message, data: Tensor) -> None:
    """As two files of a folder, whose messages are numbered from 1 on."""
    data.cpu().numpy().tofile(folder / f"message-{number:05d}.bin")
    (folder / f"message-{number:05d}.json").write_text(json.dumps(message.fields))


def messages_in(folder: Path) -> Iterator[tuple[Message, Tensor]]:
    """In their order; raises `ValueError` if a file has not the bytes that it is said to have."""
    for file in sorted(folder.glob("message-*.json")):
        message = Message(**json.loads(file.read_text()))
        data = file.with_suffix(".bin")
        if data.stat().st_size != message.bytes:
            raise ValueError(f"{data} has {data.stat().st_size} bytes, not {message.bytes}")
        yield message, torch.from_file(str(data), shared=False, size=message.bytes, dtype=torch.uint8)
