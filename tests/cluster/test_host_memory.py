"""What a process may still take is the narrowest of the machine and every control group around it, in both versions of them."""

from pathlib import Path

import pytest

from megatron_fork.cluster import HostMemory, host_memory

GIB = 2**30


def host(root: Path, membership: str, groups: dict[str, tuple[str, int, int]]) -> HostMemory:
    """A machine of 64 GiB, 40 of them free; groups by folder: limit, bytes used, bytes of page cache among them."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {40 << 20} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(membership)
    for name, (limit, used, cached) in groups.items():
        folder = root / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        is_first_version = name.startswith("memory")
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        files = files if is_first_version else ("memory.max", "memory.current", "inactive_file")
        (folder / files[0]).write_text(limit + "\n")
        (folder / files[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{files[2]} {cached}\n")
    return host_memory(root / "proc", root / "groups")


@pytest.mark.parametrize(
    ("membership", "groups", "total", "available"),
    [
        ("0::/\n", {}, 64, 40),
        ("0::/job\n", {"job": ("max", 8 * GIB, 0)}, 64, 40),
        # Slurm: the limit is of the job, the process in a group of its task.
        ("0::/job/task\n", {"job": (str(16 * GIB), 8 * GIB, 2 * GIB), "job/task": ("max", GIB, 0)}, 16, 10),
        ("0::/job/task\n", {"job": (str(16 * GIB), GIB, 0), "job/task": (str(4 * GIB), GIB, 0)}, 4, 3),
        # A container's view: the path is the host's, the limit at the root of what is mounted.
        ("0::/../of/the/host\n", {".": (str(4 * GIB), 5 * GIB, 0)}, 4, 0),
        ("9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n", {"memory/a": (str(32 * GIB), 2 * GIB, GIB)}, 32, 31),
        ("4:memory:/a\n", {"memory/a": ("9223372036854771712", GIB, 0)}, 64, 40),
    ],
)
def test_the_narrowest_limit_counts(
    membership: str, groups: dict[str, tuple[str, int, int]], total: int, available: int, tmp_path: Path
) -> None:
    assert host(tmp_path, membership, groups) == HostMemory(total * GIB, available * GIB)


def test_this_machine_tells_it() -> None:
    found = host_memory()
    assert 0 <= found.available <= found.total and found.total > 2**27
