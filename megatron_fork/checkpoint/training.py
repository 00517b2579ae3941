"""The state of a run on disk: complete, or not there at all.

A checkpoint is written aside by Megatron's distributed writer, then described by a manifest (sizes and checksums of all its
files), then renamed; `LATEST` is replaced last, in one step. Whatever stops the machine in between leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

from megatron_fork.distributed import collectives
from megatron_fork.errors import CheckpointError

_MANIFEST = "manifest.json"
_OPTIMIZER_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}


class Trained(Protocol):
    """A model and its optimizer, such as the policy and the critic."""

    @property
    def model(self) -> Sequence[MegatronModule]: ...

    @property
    def optimizer(self) -> MegatronOptimizer: ...


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint and what the run wrote down beside its tensors."""

    folder: Path
    progress: dict[str, Any]


def save_training_state(
    folder: Path,
    step: int,
    networks: Mapping[str, Trained],
    progress: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write `folder/step-NNNNNN`, each network in a folder of its name; every rank calls it. The newest `keep` stay.

    Raises `CheckpointError` when the disk refuses; the previous checkpoint is then still whole.
    """
    complete = folder / f"step-{step:06d}"
    aside = folder / f"step-{step:06d}.partial"
    writes = dist.get_rank() == 0
    try:
        if writes:
            shutil.rmtree(aside, ignore_errors=True)
            for name in networks:
                (aside / name).mkdir(parents=True)
        dist.barrier()
        for name, network in networks.items():
            _refuse_what_would_be_cut_off(network.optimizer)
            with _one_thread():
                dist_checkpointing.save(_sharded(network, loading=False), str(aside / name))
        dist.barrier()
        if writes:
            _seal(aside, progress)
            shutil.rmtree(complete, ignore_errors=True)
            aside.rename(complete)
            _point_to(folder, complete.name)
            for old in sorted(folder.glob("step-??????"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, CheckpointingException, CheckpointException) as error:
        raise CheckpointError(
            f"checkpoint {complete} cannot be written: {str(error).splitlines()[-1]}",
            hint="free some space and start the same command again: it resumes from the previous checkpoint",
        ) from error
    dist.barrier()
    return complete


def latest(folder: Path) -> Saved | None:
    """The checkpoint that `LATEST` names, verified against its manifest; None when the folder has none."""
    pointer = folder / "LATEST"
    if not pointer.is_file():
        return None
    complete = folder / pointer.read_text().strip()
    manifest = complete / _MANIFEST
    hint = f"remove {pointer} to start anew, or write the name of another checkpoint into it"
    if not manifest.is_file():
        raise CheckpointError(f"checkpoint {complete} has no {_MANIFEST}", hint=hint)
    try:
        record = json.loads(manifest.read_text())
        files, progress = record["files"], record["progress"]
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{manifest} cannot be read: {error!r}", hint=hint) from error
    for name, expected in files.items():
        if not (complete / name).is_file() or _describe(complete / name) != expected:
            raise CheckpointError(
                f"checkpoint file {complete / name} is missing or differs from its manifest", hint=hint
            )
    return Saved(complete, progress)


def load_training_state(saved: Saved, networks: Mapping[str, Trained]) -> None:
    """Fill models and optimizers from a checkpoint, under the present layout."""
    for name, network in networks.items():
        try:
            state = dist_checkpointing.load(_sharded(network, loading=True), str(saved.folder / name))
        except (CheckpointingException, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {saved.folder} does not fit this {name}: {str(error).splitlines()[0]}",
                hint="resume with the model and optimizer settings of the run's resolved.yaml",
            ) from error
        for name_of_chunk, chunk in _chunks(network).items():
            chunk.load_state_dict(state[name_of_chunk])
        network.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Megatron's writer forks; a child whose parent had OpenMP threads hangs at its first parallel region."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sharded(network: Trained, *, loading: bool) -> dict[str, Any]:
    states = {name: chunk.sharded_state_dict() for name, chunk in _chunks(network).items()}
    optimizer_state = network.optimizer.sharded_state_dict(
        states if len(states) > 1 else states["model"], is_loading=loading, metadata=_OPTIMIZER_METADATA
    )
    return {**states, "optimizer": optimizer_state}


def _refuse_what_would_be_cut_off(optimizer: MegatronOptimizer) -> None:
    """Megatron 0.16.1 fills with zeros what lies past a buffer's unpadded size, where parameters of odd sizes are padded to."""
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    buffers = [buffer for part in parts if isinstance(part, DistributedOptimizer) for buffer in part.buffers]
    cut_off = any(
        max(end for _, end, _ in buffer.param_index_map.values()) > buffer.numel_unpadded for buffer in buffers
    )
    if any(collectives.gather_objects(cut_off, dist.group.WORLD)):
        raise CheckpointError(
            "optimizer.distributed=true: Megatron would cut off the state of this model's odd-sized parameters",
            hint="set optimizer.distributed=false; models whose sizes are multiples of 64 are not concerned",
        )


def _chunks(network: Trained) -> dict[str, MegatronModule]:
    """A model, or its virtual pipeline stages, under the names that Megatron's optimizer looks for."""
    if len(network.model) == 1:
        return {"model": network.model[0]}
    return {f"model{index}": chunk for index, chunk in enumerate(network.model)}


def _seal(aside: Path, progress: dict[str, Any]) -> None:
    """Flush every file, then write the manifest that makes the checkpoint count as complete."""
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    record = {"progress": progress, "files": {str(path.relative_to(aside)): _describe(path) for path in files}}
    with (aside / _MANIFEST).open("w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _point_to(folder: Path, name: str) -> None:
    aside = folder / "LATEST.partial"
    with aside.open("w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / "LATEST")


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
