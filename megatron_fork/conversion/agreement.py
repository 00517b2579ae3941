"""Whether weights match the model that a config describes: the same check for everything that reads weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.conversion.parameters import model_entries
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.weight_folder import QUANTISED, WeightFolder
from megatron_fork.errors import CheckpointError
from megatron_fork.models import EMBEDDING, LM_HEAD

_BUFFERS = (".rotary_emb.inv_freq",)
_HEAD, _TABLE = LM_HEAD.hugging_face[0], EMBEDDING.hugging_face[0]
_OTHER_MODEL = "config.json and the weights are of different models"


@dataclass(frozen=True)
class Contents:
    """Names, files and size of a folder of weights."""

    names: frozenset[str]
    files: int
    bytes: int


def check_folder(folder: Path, config: PretrainedConfig) -> Contents:
    """`check_weights` for a folder; reads only the headers of its files, and a tied head if one is stored."""
    with closing(WeightFolder(folder)) as weights:
        check_weights(weights, config)
        total = sum(weights.specification(name).bytes for name in weights)
        return Contents(frozenset(weights), len(weights.files), total)


def check_weights(weights: Mapping[str, Tensor], config: PretrainedConfig, *, needs_head: bool = True) -> None:
    """Raise `CheckpointError` unless `weights` are exactly the tensors of `config`'s model.

    Names must match both ways, and so must dtypes and shapes. Buffers are allowed, and a tied head whose bytes are the
    embedding's. Only a folder's headers and that head are read.

    Args:
        weights: by their published names; experts may be fused as transformers holds them in memory.
        config: of a supported family.
        needs_head: False for a critic, which has its own head.

    """
    headers = PublishedWeights(weights.headers() if isinstance(weights, WeightFolder) else weights)
    found, wanted = set(headers), model_shapes(config)
    for name in wanted:
        if name in found:
            _check_tensor(name, headers[name], wanted[name])
    if missing := sorted(wanted.keys() - found - (set() if needs_head else {_HEAD})):
        raise CheckpointError(
            f"the checkpoint has no tensor {missing[0]}{_and_more(missing)}",
            hint="it is incomplete, or config.json belongs to another model",
        )
    surplus = {name for name in found - wanted.keys() if not name.endswith(_BUFFERS)}
    if config.tie_word_embeddings and _HEAD in surplus:
        if not _same_bytes(weights, _HEAD, _TABLE):
            raise CheckpointError(
                f"config.json ties the embeddings, but {_HEAD} differs from {_TABLE}",
                hint="set tie_word_embeddings=false in config.json: the model has its own head",
            )
        surplus.discard(_HEAD)
    if surplus:
        raise CheckpointError(
            f"the checkpoint has a tensor {min(surplus)}, which the model does not have{_and_more(surplus)}",
            hint="config.json belongs to another model (layers, biases), or the architecture is not supported",
        )


def model_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every published tensor of `config`'s model with its shape, from transformers' model on the meta device."""
    tensors = PublishedWeights(models.hugging_face_outline(config).state_dict())
    return {name: tuple(tensors[name].shape) for entry in model_entries(config) for name in entry.hugging_face}


def _check_tensor(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise CheckpointError(f"the checkpoint's {name} has dtype {tensor.dtype}", hint=QUANTISED)
    if tuple(tensor.shape) != wanted:
        raise CheckpointError(
            f"the checkpoint's {name} has the shape {list(tensor.shape)}, the model's {list(wanted)}", hint=_OTHER_MODEL
        )


def _same_bytes(weights: Mapping[str, Tensor], left: str, right: str) -> bool:
    if isinstance(weights, WeightFolder):
        if weights.specification(left) != weights.specification(right):
            return False
        return all(ours == theirs for ours, theirs in zip_longest(weights.chunks(left), weights.chunks(right)))
    ours, theirs = weights[left].detach(), weights[right].detach()
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def _and_more(names: set[str] | list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
