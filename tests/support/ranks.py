"""Run a function on several gloo ranks of this machine, and fail loudly rather than hang."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_on_ranks(
    function: Callable[..., Any],
    ranks: int,
    *args: Any,
    time_limit: float = 180.0,
    have_children: bool = False,
    are_new: bool = False,
) -> list[Any]:
    """Call the module-level `function(*args)` on `ranks` processes that share a gloo world; each rank's result, in order.

    Fails with the traceback of the first rank that raised, and kills all ranks after `time_limit` seconds. Ranks that are to
    `have_children`, as Megatron's checkpoint writer wants, are not ended with a parent that is killed. Ranks that `are_new`
    have imported nothing; others are forks of a process that has imported the program.
    """
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        context = multiprocessing.start_processes(
            _rank,
            (function, ranks, args, folder),
            nprocs=ranks,
            join=False,
            daemon=not have_children,
            start_method="spawn" if are_new else "forkserver",
        )
        deadline = time.monotonic() + time_limit
        try:
            while not context.join(timeout=max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{function.__name__} on {ranks} ranks took more than {time_limit:.0f} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(ranks)]


def _result(folder: str, rank: int) -> Path:
    return Path(folder, f"result-{rank}.pt")


def _rank(rank: int, function: Callable[..., Any], ranks: int, args: tuple[Any, ...], folder: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(function(*args), _result(folder, rank))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
