"""The device this process computes on, and how the ranks connect.

CUDA with NCCL if there is a GPU, otherwise the CPU with gloo. A single process needs no port: its store is in memory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_fork.distributed.launcher import launch
from megatron_fork.distributed.meeting import no_meeting, roll_call
from megatron_fork.errors import LayoutError


def device() -> torch.device:
    """The device of this rank: `cuda:LOCAL_RANK`, the only GPU that its launcher makes visible, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = launch()
    return torch.device("cuda", place.local_rank if place and torch.cuda.device_count() > 1 else 0)


# Dense products of bf16 a second, as NVIDIA's data sheets have them; the more particular name first.
_PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
}


def peak_flops(name: str | None = None) -> float | None:
    """Floating-point operations a second that this rank's GPU, or one of that name, can make in bf16; None where unknown."""
    if name is None:
        name = torch.cuda.get_device_name(device()) if torch.cuda.is_available() else ""
    return next((peak for each, peak in _PEAK_FLOPS.items() if each in name), None)


def peak_memory() -> tuple[float, float]:
    """GiB at the peak: of this process in the machine's memory, and of its tensors on the GPU since the last call (0: none)."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if not torch.cuda.is_available():
        return resident, 0.0
    on_device = torch.cuda.max_memory_allocated(device()) / 2**30
    torch.cuda.reset_peak_memory_stats(device())
    return resident, on_device


def is_launched() -> bool:
    """True under torchrun, srun or mpirun with several ranks."""
    return launch() is not None


def rank() -> int:
    """This process's rank; before `initialize` it is read from the launcher's variables."""
    if dist.is_initialized():
        return dist.get_rank()
    place = launch()
    return place.rank if place else 0


def world_size() -> int:
    """The number of ranks; before `initialize` it is read from the launcher's variables."""
    if dist.is_initialized():
        return dist.get_world_size()
    place = launch()
    return place.world_size if place else 1


def choose_threads() -> str:
    """Set how many threads this process uses on a CPU; returns the number and the reason.

    One, unless OMP_NUM_THREADS is set: two threads that share a core with another process wait for each other at every small
    operation. The network's passes have large operations and use two: see `threads_of_a_pass`.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return f"{torch.get_num_threads()} threads, from OMP_NUM_THREADS"
    if torch.cuda.is_available():
        return f"{torch.get_num_threads()} threads beside the GPU"
    torch.set_num_threads(1)
    passes = _threads_of_a_pass()
    return f"1 thread per process, {passes} for the network's passes; set OMP_NUM_THREADS for more with a large model"


def _threads_of_a_pass() -> int:
    """Two for a single process on two or more cores; ranks of one machine share its cores and use one."""
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return torch.get_num_threads()
    return 2 if not is_launched() and len(os.sched_getaffinity(0)) > 1 else 1


@contextmanager
def threads_of_a_pass() -> Iterator[None]:
    """A context for the network's forward and backward passes, which are large enough for a second thread.

    The number does not depend on the load: sums in another order differ in their last bits, and a run must repeat exactly.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(_threads_of_a_pass())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def initialize(*, timeout_minutes: float = 30.0) -> None:
    """Join the default process group, unless this process has already joined.

    Raises `LayoutError` if the launcher's variables are incomplete, its port cannot be used, the first rank not be reached or
    another does not come, and `RankLostError` if one has failed before that.
    """
    if dist.is_initialized():
        return
    choose_threads()
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    place = launch()
    if place is None:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    missing = [name for name, value in (("MASTER_ADDR", place.address), ("MASTER_PORT", place.port)) if not value]
    if missing:
        raise LayoutError(
            f"the launcher did not set {', '.join(missing)}",
            hint="start ranks with torchrun, or export them in the job script",
        )
    os.environ.update(place.variables)  # for torch, and for engines in this process
    with roll_call(seconds=timeout.total_seconds()):
        try:
            dist.init_process_group(backend, timeout=timeout)
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise no_meeting(place, error, timeout.total_seconds()) from error


def finalize() -> None:
    """Leave the process group, so that the other ranks do not wait for this one."""
    if dist.is_initialized():
        dist.destroy_process_group()
