"""All weights of one version in main memory, so that the next version can be sent, and taken, as what changed.

Both sides keep one. The trainer's is what its servers have said they have; a server's is in Hugging Face's layout, which its
engine's own may not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_fork.serving.deltas import apply, compressed, decompressed, difference, size_of
from megatron_fork.serving.messages import Message, described, unpacked

NamedTensors = Sequence[tuple[str, Tensor]]


class WeightCopy:
    """Between `begin` and `finish` it is no version, and after a `begin` without a `finish` it never is one again."""

    def __init__(self) -> None:
        self.version = ""
        """The label of what it holds; empty if it is no version."""
        self.base = ""
        """What it held when the present update began."""
        self.tensors: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._coming = ""

    def begin(self) -> None:
        self.base, self.version = self.version, ""
        self._seen, self._coming = set(), ""

    def finish(self) -> None:
        """It is the version now that the messages since `begin` named, without tensors that they did not."""
        for name in self.tensors.keys() - self._seen:
            del self.tensors[name]
        self.version = self._coming

    def send(self, bucket: NamedTensors, version: str, *, as_changes: bool, compress: bool) -> tuple[Message, Tensor]:
        """What tells a receiver of `bucket`, and the bytes `[message.bytes]`; the copy then has it."""
        message = described(bucket, version=version)
        self._coming = version
        if not as_changes:
            for name, tensor in bucket:
                self._keep(name, tensor)
            return message, torch.empty(0, dtype=torch.uint8)
        changes, pieces = [], []
        for name, tensor in bucket:
            old = self.tensors.get(name)
            change, piece = difference(old if old is None else old.to(tensor.device), tensor)
            changes.append(change)
            pieces.append(piece)
            if change[0]:
                self._keep(name, tensor)
            self._seen.add(name)
        data = torch.cat(pieces)
        small = compressed(data.cpu()) if compress else None
        message = replace(message, base=self.base, changes=changes, is_compressed=small is not None)
        data = data if small is None else small
        return replace(message, bytes=len(data)), data

    def receive(self, message: Message, data: Tensor) -> list[tuple[str, Tensor]]:
        """The whole tensors that a message means; raises `ValueError` if its changes are of other weights than these."""
        self.check(message)
        self._coming = message.version
        if not message.base:
            whole = unpacked(message, data)
            for name, tensor in whole:
                self._keep(name, tensor)
            return whole
        empty = [(name, torch.empty(shape, dtype=getattr(torch, dtype), device="meta"))
                 for name, dtype, shape in zip(message.names, message.dtypes, message.shapes, strict=True)]  # fmt: skip
        sizes = [
            size_of(change, tensor.nbytes, tensor.itemsize)
            for change, (_, tensor) in zip(message.changes, empty, strict=True)
        ]
        data = decompressed(data, sum(sizes)) if message.is_compressed else data.cpu()
        for change, (name, like), piece in zip(message.changes, empty, data.split(sizes), strict=True):
            old = self.tensors.get(name)
            if old is None or old.dtype != like.dtype or old.shape != like.shape:
                old = self.tensors[name] = torch.empty_like(like, device="cpu")
            try:
                apply(change, piece, old)
            except ValueError as error:
                raise ValueError(f"the changes of {name} do not apply: {error}") from error
            self._seen.add(name)
        return [(name, self.tensors[name]) for name in message.names]

    def check(self, message: Message) -> None:
        """Raise `ValueError` if the message's changes are of other weights than the update began with."""
        if message.base and message.base != self.base:
            raise ValueError(f"the changes are since the weights {message.base}, and here are {self.base or 'none'}")

    def _keep(self, name: str, tensor: Tensor) -> None:
        kept = self.tensors.get(name)
        if kept is None or kept.dtype != tensor.dtype or kept.shape != tensor.shape:
            kept = self.tensors[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
        kept.copy_(tensor.detach())
        self._seen.add(name)
