"""Hugging Face model folders: reading them lazily, and writing them whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from megatron_fork.checkpoint.bridge import iter_hf_weights, load_weights
from megatron_fork.checkpoint.parameters import unwrap_chunks
from megatron_fork.errors import CheckpointError, ModelError


class HasModel(Protocol):
    """Anything that holds a model of this project, such as the policy."""

    @property
    def model(self) -> nn.Module | Sequence[nn.Module]: ...


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
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {str(error).splitlines()[0]}",
            hint="it must be the config of a model that the installed transformers knows",
        ) from error


class WeightFolder(Mapping[str, Tensor]):
    """The tensors of a folder of safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"model.path={folder} has no *.safetensors", hint="convert the weights to safetensors first"
            )
        self._stack = ExitStack()
        self._file_of = {}
        for file in files:
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise CheckpointError(
                    f"{file} cannot be read: {error}", hint="the file is truncated; fetch it again"
                ) from error
            self._file_of.update(dict.fromkeys(handle.keys(), handle))
        self._check_index(folder)

    def _check_index(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            return
        missing = sorted(set(json.loads(index.read_text())["weight_map"]) - set(self._file_of))
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} tensors that its index names, first {missing[0]}",
                hint="a safetensors file is missing; fetch the folder again",
            )

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def close(self) -> None:
        self._stack.close()


def load_hf(policy_or_model: Source, hf_dir: Path | str) -> None:
    """Load a Hugging Face folder into this rank's part of the model."""
    model = _model_of(policy_or_model)
    weights = WeightFolder(Path(hf_dir))
    try:
        load_weights(model, weights)
    finally:
        weights.close()


def export_hf(policy_or_model: Source, out_dir: Path | str) -> None:
    """Write `config.json` and `model.safetensors`; every rank calls it, rank 0 writes, the folder appears complete."""
    model = _model_of(policy_or_model)
    out_dir = Path(out_dir)
    writes = dist.get_rank() == 0
    weights = {}
    for name, tensor in iter_hf_weights(model):
        if writes:
            weights[name] = tensor.cpu().clone()
    if writes:
        _write_folder(out_dir, unwrap_chunks(model)[0].hf_config, weights)
    dist.barrier()


def _model_of(source: Source) -> nn.Module | Sequence[nn.Module]:
    return source if isinstance(source, nn.Module | Sequence) else source.model


def _write_folder(out_dir: Path, config: PretrainedConfig, weights: dict[str, Tensor]) -> None:
    try:
        aside = out_dir.with_name(out_dir.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        config.save_pretrained(aside)
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        shutil.rmtree(out_dir, ignore_errors=True)
        aside.rename(out_dir)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out_dir} cannot be written: {error}", hint="free some space and run again") from error
