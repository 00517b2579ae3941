"""Safetensors files that are filled tensor by tensor, in any order and by several threads.

The format is a header with the place of each tensor, and then the tensors (huggingface.co/docs/safetensors). The library writes
a whole file from memory; a model of 32B does not fit there, but its header is known before its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron_fork.conversion.journal import Journal, Part
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
_CHUNK_BYTES = 16 << 20


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
    file: str
    start: int


class WeightFiles:
    """The weights of a Hugging Face folder: one file, or shards with an index. An incomplete folder is an error at the end."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Specification],
        *,
        shard_bytes: int,
        journal: Journal | None = None,
        workers: int = 1,
    ) -> None:
        """Lay out the files.

        Args:
            folder: exists.
            tensors: every tensor that will be written, in the order of the files.
            shard_bytes: a file gets no further tensor if it would be larger.
            journal: of `folder`, if what is written of it is to be taken up; what it has already counts as written.
            workers: threads that look through what it has.

        """
        self._journal = journal
        self._workers = workers
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
        if self._journal is not None:
            self._journal.keep_intact(self._belongs, workers=self._workers)
            self._missing -= self._journal.parts.keys()
        return self

    def _belongs(self, name: str, part: Part) -> bool:
        home = self._homes.get(name)
        return home is not None and part == Part(home.file, home.start, self._tensors[name].bytes, part.sha256)

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
        descriptor = os.open(self._folder / file, os.O_WRONLY | os.O_CREAT, 0o644)
        self._descriptors.append(descriptor)
        _write_all(descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)
        start = 8 + len(text)
        for name in names:
            self._homes[name] = _Home(descriptor, file, start)
            start += self._tensors[name].bytes
        os.ftruncate(descriptor, start)

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
        content = memoryview(data.data)
        if self._journal is None:
            _write_all(home.descriptor, content, home.start)
        else:
            sha256 = hashlib.sha256()
            for start in range(0, len(content), _CHUNK_BYTES):
                chunk = content[start : start + _CHUNK_BYTES]
                sha256.update(chunk)
                _write_all(home.descriptor, chunk, home.start + start)
            self._journal.add(name, Part(home.file, home.start, announced.bytes, sha256.hexdigest()))
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
        if self._journal is not None:
            self._journal.flush()
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
