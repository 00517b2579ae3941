"""The run folder's place: room for what the run writes there, its speed, and whether every node sees the same folder."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from transformers import PretrainedConfig

from megatron_fork import models, planning
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.errors import MegatronForkError, PreflightError, size
from megatron_fork.preflight.findings import Finding
from megatron_fork.rollout import engine_kind
from megatron_fork.run import check_folder, writing_to

_MEBIBYTES = 32
# Of a traced token: its id, text, log-prob, entropy, mark and version, in Parquet; few repeat in a short response.
_TRACED_TOKEN_BYTES = 32


def place_of(config: RunConfig) -> Path:
    """The folder that exists and that the run's folder is, or will be made, in; relative if the recipe's is."""
    folder = Path(config.run.folder or "runs")
    return next(each for each in (folder, *folder.parents) if each.is_dir())


@contextmanager
def scratch(config: RunConfig) -> Iterator[Path]:
    """A new folder in the run's place, the same for all ranks; the first rank removes it at the end."""
    world, path, refusal = dist.group.WORLD if dist.is_initialized() else None, None, None
    try:
        if collectives.rank(world) == 0:
            place = place_of(config)
            with writing_to(place):
                # Relative as the recipe's: every rank must find it on its own.
                path = str(place / Path(tempfile.mkdtemp(prefix=".megatron-fork-doctor-", dir=place)).name)
    except MegatronForkError as error:
        refusal = error
    path, refusal = collectives.broadcast_object((path, refusal), world)
    if refusal is not None:
        raise refusal
    try:
        yield Path(path)
    finally:
        if collectives.rank(world) == 0:
            shutil.rmtree(path, ignore_errors=True)


def disk(config: RunConfig, hf_config: PretrainedConfig | None, folder: Path) -> Iterator[Finding]:
    """Every rank calls it with the same scratch `folder`; without `hf_config` what a run writes is not known."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    yield _claimed(config)
    yield from _shared(config, folder)
    yield _space(config, hf_config, folder)
    if first:
        with writing_to(folder):
            yield _speed(folder)


def _space(config: RunConfig, hf_config: PretrainedConfig | None, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    here = f"{size(free)} free in {place_of(config).absolute()}"
    if hf_config is None:
        return Finding("disk space", here, "what a run writes is not known without its model", "note")
    needed = bytes_written(config, hf_config)
    what = ", ".join(f"{size(amount)} {name}" for name, amount in needed.items() if amount)
    total = sum(needed.values())
    is_enough = total <= free
    return Finding(
        "disk space",
        f"{here}, a run writes about {size(total)}",
        what if is_enough else f"{what}: free some space, choose another run.folder, or lower run.keep_checkpoints",
        "ok" if is_enough else "fix",
    )


def bytes_written(config: RunConfig, hf_config: PretrainedConfig) -> dict[str, float]:
    """Bytes that a run leaves in its folder at most, by what they are."""
    parameters = models.count_parameters(hf_config)
    checkpoint, model = planning.checkpoint_bytes(config, parameters), planning.sync_bytes(config, parameters)
    run, steps = config.run, config.train.steps
    written = steps // run.checkpoint_every + 1 if run.checkpoint_every else 1
    kept = min(written, run.keep_checkpoints + 1) + (steps // run.keep_every if run.keep_every else 0)
    traces = steps // run.trace_every + 1 if run.trace_every else 0
    responses = config.train.prompts_per_step * config.rollout.samples
    if run.trace_trajectories is not None:
        responses = min(responses, run.trace_trajectories)
    by_disk = engine_kind(config.rollout.engine).has_servers and config.rollout.sync == "disk"
    return {
        f"of {kept} checkpoints": checkpoint * kept,
        "of the model": float(model * (2 if config.sft.steps else 1)),
        "of weights for servers": float(2 * model * by_disk),
        "of traces": float(traces * responses * config.rollout.max_response_tokens * _TRACED_TOKEN_BYTES),
    }


def _claimed(config: RunConfig) -> Finding:
    """Whether the folder is free for this run; raises on every rank what the first rank finds."""
    world, refusal = dist.group.WORLD if dist.is_initialized() else None, None
    try:
        if collectives.rank(world) == 0:
            check_folder(config)
    except MegatronForkError as error:
        refusal = error
    refusal = collectives.broadcast_object(refusal, world)
    if refusal is not None:
        raise refusal
    return Finding("run.folder", config.run.folder or f"runs/{config.run.name}-TIME", "no other run has it")


def _shared(config: RunConfig, folder: Path) -> Iterator[Finding]:
    """A file of the first rank's must be there for all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    world, token = dist.group.WORLD, folder / "seen"
    if dist.get_rank() == 0:
        with writing_to(token):
            token.touch()
    dist.barrier()
    seen = collectives.gather_objects((socket.gethostname(), token.is_file(), str(folder.parent.absolute())), world)
    blind = [f"rank {rank} on {host}" for rank, (host, sees, _) in enumerate(seen) if not sees]
    if blind:
        more = f" and {len(blind) - 4} more" if len(blind) > 4 else ""
        raise PreflightError(
            f"run.folder={config.run.folder} is not the same folder for all ranks: {', '.join(blind[:4])}"
            f"{more} cannot see what the first rank wrote in {seen[0][2]}",
            hint="name a folder of a file system that all nodes share, as an absolute path",
        )
    hosts = {host for host, *_ in seen}
    yield Finding("shared folder", f"{len(seen)} ranks on {len(hosts)} hosts see the first rank's file")


def _speed(folder: Path) -> Finding:
    """Write a file with a flush and read it again past the page cache, as far as the file system lets."""
    block, file = os.urandom(1 << 20), folder / "speed"
    began = time.perf_counter()
    with file.open("wb") as out:
        for _ in range(_MEBIBYTES):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    written = time.perf_counter() - began
    with file.open("rb") as back:
        os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        whole = all(back.read(1 << 20) == block for _ in range(_MEBIBYTES))
        read = time.perf_counter() - began
    file.unlink()
    if not whole:
        raise PreflightError(
            f"a file written to {folder.parent} was read back with other bytes", hint="choose another run.folder"
        )
    return Finding(
        "disk speed",
        f"{_MEBIBYTES / written:,.0f} MiB/s written, {_MEBIBYTES / read:,.0f} MiB/s read",
        f"a file of {_MEBIBYTES} MiB, flushed; a read may come from memory",
    )
