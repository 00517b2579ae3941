"""Functions on fresh processes of this machine: gloo ranks on the CPU, NCCL ranks on GPUs."""

from __future__ import annotations

import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

# A whole round of slow contenders may pass between two collectives of a rank.
_TIME_LIMIT = timedelta(hours=2)


def run_on_ranks(function: Callable[..., Any], ranks: int, device: str, *args: Any) -> list[Any]:
    """Call the module-level `function(rank, *args)` on `ranks` new processes; each rank's result, in order."""
    with tempfile.TemporaryDirectory(prefix="lm_head") as folder:
        spawn(_rank, (function, ranks, device, args, folder), nprocs=ranks, daemon=True)
        return [pickle.loads(_result(folder, rank).read_bytes()) for rank in range(ranks)]


def _result(folder: str, rank: int) -> Path:
    return Path(folder, f"result-{rank}")


def _rank(rank: int, function: Callable[..., Any], ranks: int, device: str, args: tuple[Any, ...], folder: str) -> None:
    # Megatron's import warns four times, on every rank, of what a benchmark of the LM head does not use.
    warnings.simplefilter("ignore")
    with joined(rank, ranks, device, folder):
        _result(folder, rank).write_bytes(pickle.dumps(function(rank, *args)))
        dist.barrier()


@contextmanager
def joined(rank: int, ranks: int, device: str, folder: str) -> Iterator[None]:
    """This process as one of `ranks`, which meet in `folder`."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    elif ranks > 1:
        # More threads than cores would measure the scheduler.
        torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    store = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=ranks, timeout=_TIME_LIMIT)
    # Megatron's and verl's functions find their group in Megatron's module state, with one rank too.
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks)
    yield
    dist.destroy_process_group()
