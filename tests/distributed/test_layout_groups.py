"""A layout that is left leaves nothing behind: one process can hold many, one after the other."""

from pathlib import Path

from support.ranks import run_on_ranks


def threads_inside_and_after() -> list[tuple[int, int]]:
    from megatron_fork.distributed import ParallelConfig, parallel_layout

    counts = []
    for _ in range(3):
        with parallel_layout(ParallelConfig(tensor=2)):
            inside = _threads()
        counts.append((inside, _threads()))
    return counts


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_groups_of_a_layout_end_with_it() -> None:
    for counts in run_on_ranks(threads_inside_and_after, 2):
        assert len(set(counts)) == 1
        inside, after = counts[0]
        assert after < inside
