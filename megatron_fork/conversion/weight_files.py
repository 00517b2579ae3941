"""Safetensors files that are filled tensor by tensor, in any order and by several threads.

The format is a header with the place of each tensor, and then the tensors (huggingface.co/docs/safetensors). The library writes
a whole file from memory; a model of 32B does not fit there, but its header is known before its tensors.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron_fork.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Specification:
    """Dtype and shape of a tensor that may not exist yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class _Home:
    """Where a tensor's bytes are written."""

    descriptor: int
    start: int


class WeightFiles:
    """The weights of a Hugging Face folder: one file, or shards with an index. An incomplete folder is an error at the end."""

    def __init__(self, folder: Path, tensors: Mapping[str, Specification], *, shard_bytes: int) -> None:
        """Lay out the files.

        Args:
            folder: exists.
            tensors: every tensor that will be written, in the order of the files.
            shard_bytes: a file gets no further tensor if it would be larger.

        """
        self._folder = folder
        self._tensors = dict(tensors)
        self._missing = set(tensors)
        self._lock = threading.Lock()
        self._homes: dict[str, _Home] = {}
        self._descriptors: list[int] = []
        shards = list(_shards(self._tensors, shard_bytes))
        self._file_of = {name: _file_name(number, len(shards)) for number, names in enumerate(shards) for name in names}

    def __enter__(self) -> WeightFiles:
        for file in sorted(set(self._file_of.values())):
            self._lay_out(file, [name for name, home in self._file_of.items() if home == file])
        return self

    def _lay_out(self, file: str, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            tensor = self._tensors[name]
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + tensor.bytes],
            }
            end += tensor.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _HEADER_ALIGNMENT)
        descriptor = os.open(self._folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptors.append(descriptor)
        _write_all(descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)
        start = 8 + len(text)
        for name in names:
            self._homes[name] = _Home(descriptor, start)
            start += self._tensors[name].bytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor at its place; raises `CheckpointError` if it differs from its specification."""
        announced = self._tensors.get(name)
        if announced is None or announced != Specification(tensor.dtype, tuple(tensor.shape)):
            raise CheckpointError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, expected was {announced}",
                hint="config.json and the weights are of different models",
            )
        home = self._homes[name]
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        _write_all(home.descriptor, memoryview(data.data), home.start)
        with self._lock:
            self._missing.discard(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._complete()
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)

    def _complete(self) -> None:
        if self._missing:
            raise CheckpointError(
                f"{len(self._missing)} tensors were never written, first {min(self._missing)}",
                hint="the bridge is incomplete",
            )
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        if len(self._descriptors) > 1:
            total = sum(tensor.bytes for tensor in self._tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self._file_of.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Specification], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        if names and filled + tensor.bytes > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += tensor.bytes
    yield names


def _file_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    """Write all of `data`, since `pwrite` may write only a part."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + (1 << 30)], start + done)
