"""The weights of a Hugging Face folder: which file holds each of them, and their bytes on demand.

Other files are not read: backups, shards of an earlier export, `consolidated.safetensors`, adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_fork import models
from megatron_fork.conversion.weight_files import INDEX, SINGLE, Specification
from megatron_fork.errors import CheckpointError, ModelError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTISED = "quantised weights are not supported: take the model's bf16 folder"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CHUNK_BYTES = 16 << 20
_LONGEST_NAME = 255


class WeightFolder(Mapping[str, Tensor]):
    """The tensors of a folder, each read into its own memory from the file that `weight_map` names.

    The library would map the files: everything read from them would count as this process's memory, and a file that is
    truncated meanwhile would kill the process (SIGBUS) instead of raising an error. Raises `ModelError` if there are no weights
    that can be read, `CheckpointError` if files, headers and index do not match.
    """

    def __init__(self, folder: Path, *, read_once: bool = False) -> None:
        """Read the headers.

        Args:
            folder: with `model.safetensors`, or shards and their index.
            read_once: whether the system need not keep what was read. It then takes the same pages of its cache again, which
                costs much less than new ones. For what no other process reads at the same time.

        """
        self.folder = folder
        self._read_once = read_once
        self.files: list[str] = []
        self._stack = ExitStack()
        self._stored: dict[str, _Stored] = {}
        try:
            file_of = file_of_tensors(folder)
            if file_of is None:
                self._stored = self._opened(SINGLE)
            else:
                self._take(file_of)
        except BaseException:
            self.close()
            raise

    def _take(self, file_of: Mapping[str, str]) -> None:
        lacking: dict[str, str] = {}
        for file in sorted(set(file_of.values())):
            names = [name for name, home in file_of.items() if home == file]
            is_there = (self.folder / file).is_file()
            stored = self._opened(file) if is_there else {}
            reason = f"{file} does not hold it" if is_there else f"there is no {file}"
            lacking.update(dict.fromkeys([name for name in names if name not in stored], reason))
            self._stored.update({name: stored[name] for name in names if name in stored})
        if lacking:
            first = min(lacking)
            raise CheckpointError(
                f"{self.folder} lacks {len(lacking)} tensors that its index names, first {first}: {lacking[first]}",
                hint="a safetensors file is missing or belongs to another model; fetch the folder again",
            )

    def _opened(self, file: str) -> dict[str, _Stored]:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt"):  # checks the header against the file
                stored = _header(self._stack.enter_context(path.open("rb")).fileno())
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", hint="the file is truncated or not safetensors; fetch it again"
            ) from error
        self.files.append(file)
        return stored

    def __getitem__(self, name: str) -> Tensor:
        wanted = self.specification(name)
        data = torch.empty(wanted.bytes, dtype=torch.uint8)
        memory, start = memoryview(data.numpy().data), self._stored[name].start
        done = 0
        while done < wanted.bytes:
            count = os.preadv(self._stored[name].descriptor, [memory[done : done + _CHUNK_BYTES]], start + done)
            if not count:
                raise _truncated(name)
            if self._read_once:
                os.posix_fadvise(self._stored[name].descriptor, start + done, count, os.POSIX_FADV_DONTNEED)
            done += count
        flat = data.view(wanted.dtype)
        _check_finite(name, flat)
        return flat.view(wanted.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor as they are in the file, 16 MiB at a time."""
        stored, left = self._stored[name], self.specification(name).bytes
        start = stored.start
        while left:
            chunk = os.pread(stored.descriptor, min(left, _CHUNK_BYTES), start)
            if not chunk:
                raise _truncated(name)
            yield chunk
            start, left = start + len(chunk), left - len(chunk)

    def specification(self, name: str) -> Specification:
        """Dtype and shape of a tensor, without reading it; raises `CheckpointError` if the dtype is not supported."""
        stored = self._stored[name]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"the checkpoint's {name} has dtype {stored.dtype}, which only quantised weights have",
                hint=QUANTISED,
            )
        return Specification(_DTYPES[stored.dtype], stored.shape)

    def headers(self) -> dict[str, Tensor]:
        """Every tensor on the meta device, without its bytes."""
        specifications = {name: self.specification(name) for name in self}
        return {name: torch.empty(of.shape, dtype=of.dtype, device="meta") for name, of in specifications.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def close(self) -> None:
        self._stack.close()


def _truncated(name: str) -> CheckpointError:
    return CheckpointError(f"{name} ends before its last byte", hint="the file is truncated; fetch it again")


def file_of_tensors(folder: Path) -> dict[str, str] | None:
    """The file of each tensor by the folder's index; None if there is no index and `model.safetensors` has all.

    Raises `ModelError` if there is neither, or if there are both and they differ: transformers would then read the single file,
    vLLM the others.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_file():
        if not single.is_file():
            raise _no_weights(folder)
        return None
    file_of = _read_index(index)
    others = set(file_of.values()) - {SINGLE}
    is_incomplete = SINGLE in file_of.values() and not all((folder / file).is_file() for file in others)
    if single.is_file() and others and not is_incomplete:
        raise ModelError(
            f"{folder} has both {SINGLE} and {INDEX}, which names {min(others)}",
            hint="engines and trainer would read different weights: remove the one that does not belong to the model",
        )
    return file_of


def _read_index(index: Path) -> dict[str, str]:
    hint = "the index is truncated or belongs to other files; fetch the folder again"
    try:
        record = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}", hint=hint) from error
    file_of = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise CheckpointError(f"{index} has no weight_map of tensors", hint=hint)
    for name, file in file_of.items():
        if not isinstance(file, str) or len(file) > _LONGEST_NAME or len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{index}: weight_map gives {models.shown(name)} the file {models.shown(file)}, which is not a file name",
                hint=hint,
            )
        if file in ("", ".", "..") or set(file) & {"/", "\\", "\0"}:
            raise CheckpointError(
                f"{index}: weight_map gives {name} the file {file!r}, which is not in its folder",
                hint="only files beside the index are read: put the file there and name it without its folder",
            )
    return file_of


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it names {models.shown(name)} twice")
        found[name] = value
    return found


def _no_weights(folder: Path) -> ModelError:
    """The error for a folder without readable weights, by what it has instead."""
    names = sorted(path.name for path in folder.glob("*"))
    if pickled := [name for name in _PICKLED if name in names]:
        return ModelError(
            f"{folder} has {pickled[0]}, but no safetensors",
            hint="loading it could run any code in it: save the model with transformers, which writes safetensors",
        )
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        return ModelError(f"{folder} has an adapter, but no {SINGLE}", hint="merge the adapter into its model first")
    if others := [name for name in names if name.endswith(".safetensors")]:
        return ModelError(
            f"{folder} has neither {SINGLE} nor {INDEX}; {others[0]} is not read",
            hint=f"rename it to {SINGLE} if it is the whole model, or fetch the index of the shards",
        )
    return ModelError(
        f"{folder} has no *.safetensors",
        hint=f"the weights are {SINGLE}, or shards with {INDEX}: fetch them, or convert the weights to safetensors",
    )


def _check_finite(name: str, flat: Tensor) -> None:
    """Raise `CheckpointError` for NaN and infinity; both show in the extremes, so one pass without a copy finds them."""
    if not flat.numel():
        return
    least, most = flat.aminmax()
    if not (least.isfinite() and most.isfinite()):
        kind = "NaN" if least.isnan() else "infinity"
        raise CheckpointError(
            f"the checkpoint's {name} holds {kind}",
            hint="the training that wrote it diverged, or the file is damaged: take an earlier one, or fetch it again",
        )


@dataclass(frozen=True)
class _Stored:
    """Where a tensor is in an open file."""

    descriptor: int
    start: int
    dtype: str
    shape: tuple[int, ...]


def _header(descriptor: int) -> dict[str, _Stored]:
    """The tensors of a safetensors file by its header: eight bytes of length, JSON, then the tensors."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    entries = json.loads(os.pread(descriptor, length, 8))
    return {
        name: _Stored(descriptor, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }
