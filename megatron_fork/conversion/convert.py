"""Hugging Face folder -> Megatron checkpoint and back, one parameter at a time, without ranks and without a GPU.

Memory holds about two parameters per worker, for any size of model. Megatron's `torch_dist` checkpoints fit every layout, so
there is none to choose. What is interrupted goes on later (`unfinished.py`). Before the folder gets its name, a conversion
checks what it wrote: names both ways, shapes, dtypes and the config; `verification.verify` compares every bit and the logits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_fork import checkpoint
from megatron_fork.checkpoint import MANIFEST
from megatron_fork.conversion.agreement import check_folder, check_weights
from megatron_fork.conversion.hugging_face import SHARD_BYTES, files_beside, read_config
from megatron_fork.conversion.journal import Journal
from megatron_fork.conversion.located import MODEL_FILES, locate
from megatron_fork.conversion.megatron_weights import DTYPES, Dtype, MegatronWeights, check_places
from megatron_fork.conversion.parameters import model_entries
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.shard_locations import meta_model_of
from megatron_fork.conversion.torch_dist import Reader, keep_written, write
from megatron_fork.conversion.unfinished import refuse_existing, require_room, subject_of, taken_up
from megatron_fork.conversion.weight_files import INDEX, WeightFiles
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.errors import CheckpointError, ModelError
from megatron_fork.models import Entry, family_of

Progress = Callable[[int, int], None]
StopPoint = Callable[[], None]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    tensors: int
    bytes: int
    kept: int
    """Parameters that an interrupted conversion had written."""


def to_megatron(
    hf_dir: Path,
    out: Path,
    *,
    dtype: Dtype | None = None,
    workers: int = 2,
    restart: bool = False,
    progress: Progress | None = None,
    stop_point: StopPoint = lambda: None,
) -> Converted:
    """Write `out` in Megatron-LM's form of a checkpoint: `latest_checkpointed_iteration.txt` and `release/`.

    Args:
        hf_dir: config.json, safetensors, and the other files of the model.
        out: appears complete or not at all; must not exist.
        dtype: of the written weights; by default each tensor keeps its own.
        workers: files written at the same time.
        restart: whether to begin anew where an earlier conversion was interrupted, and not to go on.
        progress: called with the number of parameters written and the total.
        stop_point: called between parameters; what it raises ends the conversion, which can be taken up again.

    """
    refuse_existing(out)
    config = read_config(hf_dir)
    family_of(config)
    with closing(WeightFolder(hf_dir, read_once=True)) as weights:
        entries = {entry.megatron: entry for entry in model_entries(config)}
        meta_model = meta_model_of(config)
        check_weights(weights, config)
        headers = PublishedWeights(weights.headers())
        wanted = {name: (meta_model.places[name], _dtype_of(entry, headers, dtype)) for name, entry in entries.items()}
        total = sum(torch.Size(place.shape).numel() * kept.itemsize for place, kept in wanted.values())
        published = PublishedWeights(weights)
        stored = [hf_dir / file for file in (*weights.files, INDEX) if (hf_dir / file).is_file()]
        described = partial(subject_of, stored, hf_dir, to="megatron", dtype=dtype)
        with taken_up(out, described, restart=restart) as journal:
            require_room(journal.folder, total)
            counter = _Counter(len(entries), progress, stop_point)
            release = journal.folder / "release"
            release.mkdir(exist_ok=True)
            keep_written(release, wanted, journal=journal, workers=workers)
            counter.keep(len(journal.parts))

            def read(name: str) -> Tensor:
                counter.advance()
                tensors = [published[source] for source in entries[name].hugging_face]
                return entries[name].rule.shards(tensors, 1, config)[0].to(wanted[name][1])

            write(
                release,
                wanted,
                read,
                objects=meta_model.objects,
                common={"checkpoint_version": 3.0, "iteration": 0},
                journal=journal,
                workers=workers,
            )
            check_places(Reader(release), wanted)
            carry_model_files(hf_dir, release / MODEL_FILES, dtype)
            _seal(release, journal)
            (journal.folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    return Converted(out, len(entries), total, counter.kept)


def to_hf(
    megatron_dir: Path,
    out: Path,
    *,
    model_files: Path | None = None,
    dtype: Dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 2,
    restart: bool = False,
    progress: Progress | None = None,
    stop_point: StopPoint = lambda: None,
) -> Converted:
    """Write the Hugging Face folder `out` from a Megatron checkpoint of any layout.

    Args:
        megatron_dir: any folder that `located.locate` recognises.
        out: appears complete or not at all; must not exist.
        model_files: folder with config.json and tokenizer, for checkpoints without them.
        dtype: of the written weights; by default each tensor keeps its own.
        shard_bytes: size of a safetensors file.
        workers: parameters read and written at the same time.
        restart: whether to begin anew where an earlier conversion was interrupted, and not to go on.
        progress: called with the number of parameters written and the total.
        stop_point: called between parameters; what it raises ends the conversion, which can be taken up again.

    """
    refuse_existing(out)
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
    total = sum(each.bytes for each in specifications.values())
    stored = [located.folder / name for name in checkpoint.file_names(located.folder)]
    described = partial(subject_of, stored, files, to="hugging face", dtype=dtype, shard_bytes=shard_bytes)
    with taken_up(out, described, restart=restart) as journal:
        require_room(journal.folder, total)
        carry_model_files(files, journal.folder, dtype or source.dtype)
        counter = _Counter(len(source.entries), progress, stop_point)
        with WeightFiles(
            journal.folder, specifications, shard_bytes=shard_bytes, journal=journal, workers=workers
        ) as weights:

            def convert(entry: Entry) -> None:
                counter.advance()
                for name, tensor in source.read(entry):
                    weights.write(name, tensor.to(specifications[name].dtype))

            missing = [entry for entry in source.entries if not journal.parts.keys() >= set(entry.hugging_face)]
            counter.keep(len(source.entries) - len(missing))
            with ThreadPoolExecutor(workers) as pool:
                # The largest first: at the end nothing else would be left to do beside them.
                for _ in pool.map(convert, sorted(missing, key=lambda entry: -source.elements(entry))):
                    pass
        check_folder(journal.folder, read_config(journal.folder))
    return Converted(out, len(specifications), total, counter.kept)


def carry_model_files(source: Path, target: Path, dtype: Dtype | None) -> None:
    """Copy config, tokenizer and generation config; config.json gets the dtype of the weights beside it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (Path("config.json"), *files_beside(source)):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    if dtype is not None:
        config = json.loads((target / "config.json").read_text())
        field = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[field] = str(DTYPES[dtype]).removeprefix("torch.")
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _dtype_of(entry: Entry, headers: Mapping[str, Tensor], dtype: Dtype | None) -> torch.dtype:
    found = {headers[name].dtype for name in entry.hugging_face}
    if dtype is not None:
        return DTYPES[dtype]
    if len(found) != 1:
        raise CheckpointError(
            f"{' and '.join(entry.hugging_face)} have dtypes {sorted(map(str, found))}, but are one tensor in Megatron",
            hint="choose one: --dtype bf16",
        )
    return found.pop()


def _seal(folder: Path, journal: Journal) -> None:
    """Write a manifest, so that a copy with a missing file is detected; the journal knows the large files' checksums."""
    known = {
        journal.folder / part.file: {"bytes": part.bytes, "sha256": part.sha256} for part in journal.parts.values()
    }
    names = [name for name in checkpoint.file_names(folder) if name != MANIFEST]
    others = checkpoint.flush_and_describe(folder, [name for name in names if folder / name not in known])
    files = {name: others[name] if name in others else known[folder / name] for name in names}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


class _Counter:
    """Reports the progress of a conversion, and lets it stop between parameters; threads may race by one."""

    def __init__(self, total: int, progress: Progress | None, stop_point: StopPoint) -> None:
        self.done, self.total = 0, total
        self.kept = 0
        self._progress, self._stop_point = progress, stop_point

    def keep(self, parameters: int) -> None:
        """So many were there already."""
        self.done = self.kept = parameters

    def advance(self) -> None:
        """The next parameter begins."""
        self._stop_point()
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, self.total)
