"""How this process was launched: its rank, the world size, and the address where the ranks connect.

torchrun sets RANK and WORLD_SIZE; srun and mpirun have their own variables. If they were ignored, every task would be a
separate run of one rank.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_fork.errors import LayoutError


@dataclass(frozen=True)
class Launch:
    """This process's place among the ranks that were started together."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    """Its place among the ranks of this machine."""
    address: str
    """The machine where the ranks connect; empty if no variable names it."""
    port: int

    @property
    def variables(self) -> dict[str, str]:
        """The variables that torchrun would have set."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


@dataclass(frozen=True)
class _Variables:
    """The names of a launcher's variables; of several names the first that is set counts."""

    launcher: str
    rank: str
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]


_TORCHRUN = _Variables("torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",))
_SLURM = _Variables(
    "srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_LOCALID",)
)
_OTHERS = (
    _Variables("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    _Variables("mpirun", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID",)),
)
# Below Linux's range of ports for outgoing connections, so that none of those uses it.
_FIRST_PORT, _PORTS = 15_000, 15_000
# Set once for the life of the process, as torch's default group is.
_comes = threading.Event()


def launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched; None if it was started alone.

    Raises `LayoutError` if a launcher's variables contradict each other, or do not say where the ranks connect.
    """
    given = {name: value for name, value in environment.items() if value.strip()}
    if "RANK" in given or "WORLD_SIZE" in given:
        missing = [name for name in ("RANK", "WORLD_SIZE") if name not in given]
        if missing:
            raise LayoutError(
                f"the launcher did not set {', '.join(missing)}",
                hint="start ranks with torchrun, or export them in the job script",
            )
        return _place(_TORCHRUN, given)
    for names in (_SLURM, *_OTHERS):
        if names.rank in given and _first(names.world_size, given, 1) > 1:
            found = _place(names, given)
            return _meeting_of_slurm(found, given) if names is _SLURM else _with_address(found)
    return None


def comes() -> None:
    """This process comes to where the ranks meet: from here on the others hear of its end."""
    _comes.set()


def awaits_others() -> Launch | None:
    """This process's place among ranks that it has not come to meet; None if it is alone, has, or does not know where."""
    try:
        place = None if _comes.is_set() else launch()
    except LayoutError:
        return None
    return place if place is not None and place.world_size > 1 and place.address and place.port else None


def another_prints(environment: Mapping[str, str] = os.environ) -> bool:
    """After `launch` has raised: whether the first rank raises the same error, so that this one need not print it.

    False if this rank's own variables are wrong, since the others do not see those.
    """
    given = {name: value for name, value in environment.items() if value.strip()}
    names = next((each for each in (_TORCHRUN, _SLURM, *_OTHERS) if each.rank in given), None)
    if names is None or (names is _SLURM and "SLURM_STEP_NUM_TASKS" not in given):
        return False
    try:
        rank, _ = _number(names.rank, given), _first(names.local_rank, given, 0)
    except LayoutError:
        return False
    try:
        world_size = _first(names.world_size, given, 0)
    except LayoutError:
        return rank > 0
    return rank > 0 and not 0 < world_size <= rank


def _place(names: _Variables, given: Mapping[str, str]) -> Launch:
    rank, world_size = _number(names.rank, given), _first(names.world_size, given, 1)
    if not 0 <= rank < world_size:
        raise LayoutError(
            f"{names.rank}={rank} is not a rank of a world of {world_size}",
            hint="let the launcher set both, or neither",
        )
    port = _number("MASTER_PORT", given) if "MASTER_PORT" in given else 0
    if not 0 <= port < 1 << 16:
        raise LayoutError(f"MASTER_PORT={port} is not a port", hint="choose a free one from 1024 to 65535")
    local_rank = _first(names.local_rank, given, 0)
    return Launch(names.launcher, rank, world_size, local_rank, given.get("MASTER_ADDR", ""), port)


def _meeting_of_slurm(found: Launch, given: Mapping[str, str]) -> Launch:
    """The first node of the job step, which has its first rank, and a port computed from the step's number."""
    alone = _first(("SLURM_STEP_NUM_NODES",), given, 0) == 1
    node = "127.0.0.1" if alone else first_host(given.get("SLURM_STEP_NODELIST", ""))
    if "SLURM_STEP_NUM_TASKS" not in given and not (found.address and found.port):
        raise LayoutError(
            f"the job has SLURM_NTASKS={found.world_size} tasks, but this process was not started by srun",
            hint="start it with `srun megatron-fork ...` or torchrun; for a run of one rank, with `srun --ntasks=1`",
        )
    step = sum(_first((name,), given, 0) * factor for name, factor in (("SLURM_JOB_ID", 7), ("SLURM_STEP_ID", 1)))
    address, port = found.address or node, found.port or _FIRST_PORT + step % _PORTS
    return _with_address(Launch(found.launcher, found.rank, found.world_size, found.local_rank, address, port))


def _with_address(found: Launch) -> Launch:
    missing = [name for name, value in (("MASTER_ADDR", found.address), ("MASTER_PORT", found.port)) if not value]
    if missing:
        raise LayoutError(
            f"this is rank {found.rank} of {found.world_size} of {found.launcher}, but {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set",
            hint="export the first rank's machine and a free port on it to every rank, or start them with torchrun",
        )
    return found


def first_host(nodes: str) -> str:
    """The first machine of Slurm's list: `n01` of `n[01-03,7],m2`; empty for an empty list."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _first(names: tuple[str, ...], given: Mapping[str, str], default: int) -> int:
    return next((_number(name, given) for name in names if name in given), default)


def _number(name: str, given: Mapping[str, str]) -> int:
    try:
        return int(given[name])
    except ValueError:
        raise LayoutError(
            f"{name}={given[name]!r} is not a number", hint="let the launcher set it, or unset it"
        ) from None
