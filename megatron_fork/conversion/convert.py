"""Hugging Face folder -> Megatron checkpoint and back, one parameter at a time, without ranks and without a GPU.

Memory holds about two parameters per worker, for any size of model. Megatron's `torch_dist` checkpoints fit every layout, so
there is none to choose. Before the folder gets its name, a conversion checks what it wrote: names both ways, shapes, dtypes
and the config; `verification.verify` compares every bit and the logits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import checkpoint
from megatron_fork.checkpoint import MANIFEST
from megatron_fork.conversion.agreement import check_folder, check_weights
from megatron_fork.conversion.hugging_face import SHARD_BYTES, files_beside, read_config, written_aside
from megatron_fork.conversion.located import MODEL_FILES, Located, locate
from megatron_fork.conversion.parameters import model_entries
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.shard_locations import MetaModel, ShardLocation, meta_model_of
from megatron_fork.conversion.torch_dist import Reader, write
from megatron_fork.conversion.weight_files import Specification, WeightFiles
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.errors import CheckpointError, ModelError
from megatron_fork.models import Entry, family_of

Dtype = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    tensors: int
    bytes: int


def to_megatron(
    hf_dir: Path, out: Path, *, dtype: Dtype | None = None, workers: int = 2, progress: Progress | None = None
) -> Converted:
    """Write `out` in Megatron-LM's form of a checkpoint: `latest_checkpointed_iteration.txt` and `release/`.

    Args:
        hf_dir: config.json, safetensors, and the other files of the model.
        out: appears complete or not at all; must not exist.
        dtype: of the written weights; by default each tensor keeps its own.
        workers: files written at the same time.
        progress: called with the number of parameters written and the total.

    """
    _refuse_existing(out)
    config = read_config(hf_dir)
    family_of(config)
    with closing(WeightFolder(hf_dir)) as weights, written_aside(out) as aside:
        entries = {entry.megatron: entry for entry in model_entries(config)}
        meta_model = meta_model_of(config)
        check_weights(weights, config)
        headers = PublishedWeights(weights.headers())
        wanted = {name: (meta_model.places[name], _dtype_of(entry, headers, dtype)) for name, entry in entries.items()}
        counter = _Counter(len(entries), progress)
        published = PublishedWeights(weights)

        def read(name: str) -> Tensor:
            tensors = [published[source] for source in entries[name].hugging_face]
            counter.advance()
            return entries[name].rule.shards(tensors, 1, config)[0].to(wanted[name][1])

        release = aside / "release"
        release.mkdir()
        write(
            release,
            wanted,
            read,
            objects=meta_model.objects,
            common={"checkpoint_version": 3.0, "iteration": 0},
            workers=workers,
        )
        check_places(Reader(release), wanted)
        carry_model_files(hf_dir, release / MODEL_FILES, dtype)
        _seal(release)
        (aside / "latest_checkpointed_iteration.txt").write_text("release\n")
    return Converted(out, len(entries), sum(torch.Size(p.shape).numel() * d.itemsize for p, d in wanted.values()))


def to_hf(
    megatron_dir: Path,
    out: Path,
    *,
    model_files: Path | None = None,
    dtype: Dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 2,
    progress: Progress | None = None,
) -> Converted:
    """Write the Hugging Face folder `out` from a Megatron checkpoint of any layout.

    Args:
        megatron_dir: any folder that `located.locate` recognises.
        out: appears complete or not at all; must not exist.
        model_files: folder with config.json and tokenizer, for checkpoints without them.
        dtype: of the written weights; by default each tensor keeps its own.
        shard_bytes: size of a safetensors file.
        workers: parameters read and written at the same time.
        progress: called with the number of parameters written and the total.

    """
    _refuse_existing(out)
    located = locate(megatron_dir)
    files = model_files or located.model_files
    if files is None:
        raise ModelError(
            f"{megatron_dir} ({located.writer}) has no config.json",
            hint="give the model's Hugging Face folder with --hf-files",
        )
    config = read_config(files)
    source = MegatronWeights(located, config)
    specifications = {name: source.specification(name, dtype) for name in source.hugging_face_names}
    counter = _Counter(len(source.entries), progress)
    with written_aside(out) as aside:
        carry_model_files(files, aside, dtype or source.dtype)
        with WeightFiles(aside, specifications, shard_bytes=shard_bytes) as weights:

            def convert(entry: Entry) -> None:
                for name, tensor in source.read(entry):
                    weights.write(name, tensor.to(specifications[name].dtype))
                counter.advance()

            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(convert, source.entries):
                    pass
        check_folder(aside, read_config(aside))
    return Converted(out, len(specifications), sum(each.bytes for each in specifications.values()))


class MegatronWeights:
    """A Megatron checkpoint as the Hugging Face tensors of `config`'s model, each read on demand."""

    def __init__(self, located: Located, config: PretrainedConfig) -> None:
        """Check names and shapes; raises `CheckpointError` if the checkpoint does not belong to this model."""
        family_of(config)
        self.config = config
        self.located = located
        self.entries = model_entries(config)
        self.outline: MetaModel = meta_model_of(config)
        self.reader = Reader(located.folder)
        places = {entry.megatron: self.outline.places[entry.megatron] for entry in self.entries}
        check_places(self.reader, {name: (place, None) for name, place in places.items()})
        self._entry_of = {name: entry for entry in self.entries for name in entry.hugging_face}

    @property
    def hugging_face_names(self) -> Iterable[str]:
        return self._entry_of

    @property
    def dtype(self) -> Dtype | None:
        """The dtype of the weights, if all have the same."""
        found = {self._stored(entry) for entry in self.entries}
        return next((name for name, dtype in _DTYPES.items() if found == {dtype}), None)

    def _stored(self, entry: Entry) -> torch.dtype:
        return self.reader.tensors[self.outline.places[entry.megatron].key].properties.dtype

    def specification(self, name: str, dtype: Dtype | None = None) -> Specification:
        """Dtype and shape of `name`, without reading it."""
        entry = self._entry_of[name]
        shard = torch.empty(self.outline.places[entry.megatron].parameter_shape, device="meta")
        tensor = entry.rule.join([shard], self.config)[entry.hugging_face.index(name)]
        return Specification(_DTYPES[dtype] if dtype else self._stored(entry), tuple(tensor.shape))

    def read(self, entry: Entry) -> Iterable[tuple[str, Tensor]]:
        """The Hugging Face tensors of one parameter."""
        place = self.outline.places[entry.megatron]
        shard = self.reader.read(place.key, place.offset, place.shape).reshape(place.parameter_shape)
        return zip(entry.hugging_face, entry.rule.join([shard], self.config), strict=True)


def check_places(reader: Reader, wanted: Mapping[str, tuple[ShardLocation, torch.dtype | None]]) -> None:
    """Raise `CheckpointError` unless the model's tensors in a checkpoint are exactly the wanted ones."""
    of_model = {key for key in reader.tensors if not key.startswith(("optimizer.", "chained_", "rng_state"))}
    keys = {place.key for place, _ in wanted.values()}
    hint = "config.json belongs to another model, or the checkpoint's architecture is not supported"
    if missing := sorted(keys - of_model):
        raise CheckpointError(f"{reader.folder} has no tensor {missing[0]}, and {len(missing) - 1} more", hint=hint)
    if surplus := sorted(of_model - keys):
        raise CheckpointError(
            f"{reader.folder} has a tensor {surplus[0]}, which the model does not have, and {len(surplus) - 1} more",
            hint=hint,
        )
    for place, dtype in wanted.values():
        stored = reader.tensors[place.key]
        rows_may_be_padded = place.flexible and stored.size[1:] == place.whole[1:] and stored.size[0] >= place.whole[0]
        if tuple(stored.size) != place.whole and not rows_may_be_padded:
            raise CheckpointError(
                f"{reader.folder} has {place.key} in the shape {list(stored.size)}, the model's is {list(place.whole)}",
                hint=hint,
            )
        if dtype is not None and stored.properties.dtype != dtype:
            raise CheckpointError(f"{reader.folder} has {place.key} as {stored.properties.dtype}, not {dtype}")


def carry_model_files(source: Path, target: Path, dtype: Dtype | None) -> None:
    """Copy config, tokenizer and generation config; config.json gets the dtype of the weights beside it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (Path("config.json"), *files_beside(source)):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    if dtype is not None:
        config = json.loads((target / "config.json").read_text())
        field = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[field] = str(_DTYPES[dtype]).removeprefix("torch.")
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _dtype_of(entry: Entry, headers: Mapping[str, Tensor], dtype: Dtype | None) -> torch.dtype:
    found = {headers[name].dtype for name in entry.hugging_face}
    if dtype is not None:
        return _DTYPES[dtype]
    if len(found) != 1:
        raise CheckpointError(
            f"{' and '.join(entry.hugging_face)} have dtypes {sorted(map(str, found))}, but are one tensor in Megatron",
            hint="choose one: --dtype bf16",
        )
    return found.pop()


def _seal(folder: Path) -> None:
    """Write a manifest, so that a copy with a missing file is detected."""
    files = checkpoint.flush_and_describe(folder, checkpoint.file_names(folder))
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out} exists already", hint="choose another folder, or remove it first")


class _Counter:
    """Reports the progress of a conversion; threads may race by one."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self._progress = 0, total, progress

    def advance(self) -> None:
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, self.total)
