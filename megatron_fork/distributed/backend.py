"""The device this process computes on, and how its ranks find each other.

CUDA with NCCL where a GPU is present, else the CPU with gloo. One process needs no port: its store lives in memory.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_fork.errors import LayoutError

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def device() -> torch.device:
    """The device of this rank: `cuda:LOCAL_RANK` or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def is_launched() -> bool:
    """True under torchrun, srun or any launcher that sets RANK and WORLD_SIZE."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process's rank, known before `initialize` from the launcher's variables."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Ranks that were started, known before `initialize` from the launcher's variables."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def initialize(*, timeout_minutes: float = 30.0) -> None:
    """Join the default process group, unless this process has joined already.

    Raises `LayoutError` when the launcher's variables are incomplete or its port cannot be had.
    """
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    if not is_launched():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise LayoutError(
            f"the launcher did not set {', '.join(missing)}",
            hint="start ranks with torchrun, or export it in the job script",
        )
    # Oversubscribed cores make CPU ranks several times slower: one thread a rank unless the user says otherwise.
    if backend == "gloo" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        reason = str(error).splitlines()[0]
        raise LayoutError(
            f"MASTER_ADDR:MASTER_PORT={address} cannot be used: {reason}",
            hint="another job may hold the port: choose a free one with MASTER_PORT or `torchrun --master-port`",
        ) from error


def finalize() -> None:
    """Leave the process group, so that the other ranks are not left waiting."""
    if dist.is_initialized():
        dist.destroy_process_group()
