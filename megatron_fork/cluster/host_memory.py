"""The memory of this host, and what of it this process may still take: the machine's, or less where a control group limits it.

Containers and Slurm limit jobs by control groups, and limits hold for all groups below. Both versions of them are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the machine or of the narrowest control group that this process is in."""

    total: int
    available: int
    """Without swapping; page cache that can be dropped counts."""


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory:
    """Of this process. `proc` and `cgroups`: where the system tells it."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used in _limits(proc / "self" / "cgroup", cgroups):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return HostMemory(total, available)


def _limits(membership: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without page cache that can be dropped) of each group around this process that has a limit."""
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be that of the host, and only the root be seen.
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder == root.parent:
                break
            yield from _limit(folder, *names)


def _limit(folder: Path, limit_file: str, used_file: str, droppable: str) -> Iterator[tuple[int, int]]:
    try:
        limit = (folder / limit_file).read_text().strip()
        used = int((folder / used_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no such group is seen here, or the root, which has no limit
        return
    if limit.isdecimal():
        yield int(limit), used - int(stat.get(droppable, 0))
