"""Hugging Face model folders: reading them lazily, and writing them whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from megatron_fork.checkpoint.bridge import load_weights
from megatron_fork.checkpoint.folder import flush_folder
from megatron_fork.checkpoint.parameters import unwrap_chunks
from megatron_fork.checkpoint.stream import hf_specifications, iter_hf_weights
from megatron_fork.checkpoint.weight_files import INDEX, Specification, WeightFiles
from megatron_fork.errors import CheckpointError, ModelError


class HasModel(Protocol):
    """Anything that holds a model of this project, such as the policy."""

    @property
    def model(self) -> nn.Module | Sequence[nn.Module]: ...


SHARD_BYTES = 5 * 10**9
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# A model, its virtual pipeline stages, or their holder.
Source = nn.Module | Sequence[nn.Module] | HasModel


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder; raises `ModelError` when there is none or it cannot be read."""
    if not folder.is_dir():
        raise ModelError(f"model.path={folder} is not a folder", hint="give the folder of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path={folder} has no config.json", hint="give the folder that holds config.json and *.safetensors"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {str(error).splitlines()[0]}",
            hint="it must be the config of a model that the installed transformers knows",
        ) from error


class WeightFolder(Mapping[str, Tensor]):
    """The tensors of a folder of safetensors files, each read into memory of its own when it is asked for.

    The library would map the files, and what was once read of them would count as this process's memory.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"model.path={folder} has no *.safetensors", hint="convert the weights to safetensors first"
            )
        self._stack = ExitStack()
        self._stored: dict[str, _Stored] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt"):  # checks the header against the file
                    self._stored.update(_header(self._stack.enter_context(file.open("rb")).fileno()))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file} cannot be read: {error}", hint="the file is truncated; fetch it again"
                ) from error
        self._check_index(folder)

    def _check_index(self, folder: Path) -> None:
        index = folder / INDEX
        if not index.is_file():
            return
        missing = sorted(set(json.loads(index.read_text())["weight_map"]) - set(self._stored))
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} tensors that its index names, first {missing[0]}",
                hint="a safetensors file is missing; fetch the folder again",
            )

    def __getitem__(self, name: str) -> Tensor:
        stored, wanted = self._stored[name], self.specification(name)
        data = bytearray(wanted.bytes)
        done = 0
        while done < len(data):
            read = os.preadv(stored.descriptor, [memoryview(data)[done:]], stored.start + done)
            if not read:
                raise CheckpointError(f"{name} ends before its last byte", hint="the file is truncated; fetch it again")
            done += read
        flat = torch.frombuffer(data, dtype=wanted.dtype) if data else torch.empty(0, dtype=wanted.dtype)
        return flat.view(wanted.shape)

    def specification(self, name: str) -> Specification:
        """Dtype and shape of a tensor, without reading it; raises `CheckpointError` where it is not of numbers in use."""
        stored = self._stored[name]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"the checkpoint's {name} is of dtype {stored.dtype}",
                hint="quantised weights are not supported: take the model's bf16 folder",
            )
        return Specification(_DTYPES[stored.dtype], stored.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def close(self) -> None:
        self._stack.close()


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


def load_hf(policy_or_model: Source, hf_dir: Path | str) -> None:
    """Load a Hugging Face folder into this rank's part of the model."""
    model = _model_of(policy_or_model)
    weights = WeightFolder(Path(hf_dir))
    try:
        load_weights(model, weights)
    finally:
        weights.close()


def export_hf(policy_or_model: Source, out_dir: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json` and the weights; every rank calls it, rank 0 writes, the folder appears complete.

    Tensors are written as they arrive: no rank holds the model. Raises `CheckpointError` when the disk refuses.
    """
    model = _model_of(policy_or_model)
    specifications, weights = hf_specifications(model), iter_hf_weights(model)
    if dist.get_rank() == 0:
        with written_aside(Path(out_dir)) as aside:
            unwrap_chunks(model)[0].hf_config.save_pretrained(aside)
            with WeightFiles(aside, specifications, shard_bytes=shard_bytes) as files:
                for name, tensor in weights:
                    files.write(name, tensor)
    else:
        for _ in weights:
            pass
    dist.barrier()


@contextmanager
def written_aside(out_dir: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out_dir` at the end, or goes away when something fails."""
    aside = out_dir.with_name(out_dir.name + ".partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        flush_folder(aside)
        shutil.rmtree(out_dir, ignore_errors=True)
        aside.rename(out_dir)
    except OSError as error:
        raise CheckpointError(
            f"{out_dir} cannot be written: {error.strerror or error}", hint="free some space and run again"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _model_of(source: Source) -> nn.Module | Sequence[nn.Module]:
    return source if isinstance(source, nn.Module | Sequence) else source.model
