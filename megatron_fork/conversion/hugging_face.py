"""Hugging Face model folders: read lazily into any layout, and written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from megatron_fork import models
from megatron_fork.conversion.agreement import check_weights
from megatron_fork.conversion.parameters import entries_of, local_parameters, tensor_group, unwrap_chunks
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.stream import hf_specifications, iter_hf_weights
from megatron_fork.conversion.weight_files import INDEX, SINGLE, WeightFiles
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.errors import CheckpointError, ModelError, way_out
from megatron_fork.files import replaced_folder
from megatron_fork.models import EMBEDDING, LM_HEAD, Entry, PackedModel, ValueModel


class HasModel(Protocol):
    """Anything that holds a model of this project, such as the policy."""

    @property
    def model(self) -> nn.Module | Sequence[nn.Module]: ...


GENERATION = "generation_config.json"
# Files beside weights and config.json; those that exist are copied unchanged.
_BESIDE = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
SHARD_BYTES = 5 * 10**9
_MOST_BYTES = 16 << 20  # of a file of fields

# A model, its virtual pipeline stages, or their holder.
Source = nn.Module | Sequence[nn.Module] | HasModel


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder; raises `ModelError` if there is none or it cannot be read."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder", hint="give the folder of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json", hint="give the folder that holds config.json and *.safetensors"
        )
    written = read_json(folder / "config.json")
    if not isinstance(written.get("model_type"), str):
        raise ModelError(
            f"{folder / 'config.json'} has model_type={models.shown(written.get('model_type'))}, which is not a model type",
            hint="it must be the config of a model that the installed transformers knows",
        )
    models.check_fields(written, f"{folder / 'config.json'}: ")
    try:
        # Code in the folder is not run, and transformers does not ask whether it should be.
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # config classes check their fields, and may raise anything
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {' '.join(str(error).split())[:300] or type(error).__name__}",
            hint="it must be the config of a model that the installed transformers knows",
        ) from error
    if elsewhere := vars(config).get("transformers_weights"):
        raise ModelError(
            f"{folder / 'config.json'} has transformers_weights={elsewhere}, a file name that is not read here",
            hint=f"name the file {SINGLE}, or the index {INDEX}, and remove the field",
        )
    return config


def read_json(file: Path) -> dict[str, Any]:
    """The fields of a JSON file beside the weights, empty if there is no file; raises `ModelError` if it is malformed."""
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark, which transformers and engines do not accept")
        fields = json.loads(text)
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="fetch it again, or save it as plain UTF-8") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{file} holds a {type(fields).__name__}, not fields", hint="fetch it again, or remove it")
    return fields


def files_beside(folder: Path) -> list[Path]:
    """Tokenizer, chat templates and generation config of a model folder, by their paths in it."""
    return [file.relative_to(folder) for name in _BESIDE for file in sorted(folder.glob(name)) if file.is_file()]


def load_hf(policy_or_model: Source, hf_dir: Path | str) -> None:
    """Load a Hugging Face folder into this rank's part of the model; raises `CheckpointError` if it is another model's."""
    with closing(WeightFolder(Path(hf_dir))) as weights:
        load_weights(_model_of(policy_or_model), weights)


def export_hf(policy_or_model: Source, out_dir: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json` and the weights; every rank must call it, rank 0 writes, the folder appears complete.

    Tensors are written as they arrive: no rank holds the model. Raises `CheckpointError` if writing fails.
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
    """A folder to write into; it replaces `out_dir` at the end, or is removed if something fails."""
    try:
        with replaced_folder(out_dir) as aside:
            yield aside
    except OSError as error:
        raise CheckpointError(
            f"{out_dir} cannot be written: {error.strerror or error}", hint=way_out(error, elsewhere="folder")
        ) from error


def _model_of(source: Source) -> nn.Module | Sequence[nn.Module]:
    return source if isinstance(source, nn.Module | Sequence) else source.model


@torch.no_grad()
def load_weights(model: nn.Module | Sequence[nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from Hugging Face tensors by name; raises `CheckpointError` as `check_weights` does.

    Args:
        model: this rank's model, or its virtual pipeline stages in order.
        weights: of the whole model, by the names of the published checkpoints; experts may be fused as transformers holds
            them in memory.

    """
    chunks = unwrap_chunks(model)
    check_weights(weights, chunks[0].hf_config, needs_head=not isinstance(chunks[0], ValueModel))
    weights = PublishedWeights(weights)
    table = {entry.megatron: entry for entry in entries_of(chunks[0])}
    # A tied model split over pipeline stages keeps a second copy of the embedding on the last stage.
    table.setdefault(LM_HEAD.megatron, Entry(LM_HEAD.megatron, EMBEDDING.hugging_face, LM_HEAD.rule))
    for name, parameter in local_parameters(chunks).items():
        if isinstance(chunks[0], ValueModel) and name == LM_HEAD.megatron:
            continue  # the critic's own head, which no language model has
        _load(table[name], parameter, weights, chunks[0])


def _load(entry: Entry, parameter: Tensor, weights: Mapping[str, Tensor], model: PackedModel) -> None:
    group = tensor_group(entry, model.pg_collection)
    tensors = [weights[source] for source in entry.hugging_face]
    parameter.copy_(entry.rule.shards(tensors, group.size(), model.hf_config)[group.rank()])
