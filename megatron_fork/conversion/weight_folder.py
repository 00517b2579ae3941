"""The weights of a Hugging Face folder: which file holds each of them, and its bytes when they are asked for.

What stands beside the files that count is not read: backups, shards of an earlier export, `consolidated.safetensors`, adapters.
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
_PIECE_BYTES = 16 << 20
_LONGEST_NAME = 255


class WeightFolder(Mapping[str, Tensor]):
    """The tensors of a folder, each read into memory of its own from the file that `weight_map` names.

    The library would map the files: all that was once read of them would count as this process's memory, and a file that
    somebody cuts meanwhile would end the process (SIGBUS) in place of an error. Raises `ModelError` where there are no weights
    that could be read, `CheckpointError` where files, headers and index do not go together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
                hint="a safetensors file is missing or another's; fetch the folder again",
            )

    def _opened(self, file: str) -> dict[str, _Stored]:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt"):  # checks the header against the file
                stored = _header(self._stack.enter_context(path.open("rb")).fileno())
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", hint="the file is truncated or no safetensors; fetch it again"
            ) from error
        self.files.append(file)
        return stored

    def __getitem__(self, name: str) -> Tensor:
        wanted = self.specification(name)
        data = bytearray(wanted.bytes)
        done = 0
        for piece in self.pieces(name):
            data[done : done + len(piece)] = piece
            done += len(piece)
        flat = torch.frombuffer(data, dtype=wanted.dtype) if data else torch.empty(0, dtype=wanted.dtype)
        _check_finite(name, flat)
        return flat.view(wanted.shape)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor as the file has them, a few at a time."""
        stored, left = self._stored[name], self.specification(name).bytes
        start = stored.start
        while left:
            piece = os.pread(stored.descriptor, min(left, _PIECE_BYTES), start)
            if not piece:
                raise CheckpointError(f"{name} ends before its last byte", hint="the file is truncated; fetch it again")
            yield piece
            start, left = start + len(piece), left - len(piece)

    def specification(self, name: str) -> Specification:
        """Dtype and shape of a tensor, without reading it; raises `CheckpointError` where it is not of numbers in use."""
        stored = self._stored[name]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"the checkpoint's {name} is of dtype {stored.dtype}, as of weights that are quantised",
                hint=QUANTISED,
            )
        return Specification(_DTYPES[stored.dtype], stored.shape)

    def headers(self) -> dict[str, Tensor]:
        """Every tensor without its bytes."""
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


def file_of_tensors(folder: Path) -> dict[str, str] | None:
    """The file of each tensor as the folder's index says; None where there is no index and `model.safetensors` has all.

    Raises `ModelError` where there is neither, and where there are both and they are not the same: transformers would then read
    the single file, vLLM the others.
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
            hint="engines and trainer would read different weights: remove the one that is not the model's",
        )
    return file_of


def _read_index(index: Path) -> dict[str, str]:
    hint = "the index is cut or not of these files; fetch the folder again"
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
                f"{index}: weight_map gives {models.shown(name)} the file {models.shown(file)}, which is no name",
                hint=hint,
            )
        if file in ("", ".", "..") or set(file) & {"/", "\\", "\0"}:
            raise CheckpointError(
                f"{index}: weight_map gives {name} the file {file!r}, which is not one of its folder",
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
    """What there is in place of weights that count."""
    names = sorted(path.name for path in folder.glob("*"))
    if pickled := [name for name in _PICKLED if name in names]:
        return ModelError(
            f"{folder} has {pickled[0]}, and no safetensors",
            hint="loading it would run what is written in it: save the model with transformers, which writes safetensors",
        )
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        return ModelError(f"{folder} has an adapter, and no {SINGLE}", hint="merge the adapter into its model first")
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
    """Raise `CheckpointError` for NaN and infinity; either is an extreme, so one pass without a copy finds them."""
    if not flat.numel():
        return
    least, most = flat.aminmax()
    if not (least.isfinite() and most.isfinite()):
        kind = "NaN" if least.isnan() else "infinity"
        raise CheckpointError(
            f"the checkpoint's {name} holds {kind}",
            hint="the training that wrote it had diverged, or the file is damaged: take an earlier one, or fetch it again",
        )


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in an open file."""

    descriptor: int
    start: int
    dtype: str
    shape: tuple[int, ...]


def _header(descriptor: int) -> dict[str, _Stored]:
    """What a safetensors file says of its tensors: eight bytes of length, JSON, then the tensors."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    entries = json.loads(os.pread(descriptor, length, 8))
    return {
        name: _Stored(descriptor, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }
