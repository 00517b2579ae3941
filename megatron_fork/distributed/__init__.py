"""Process groups, layouts, the device backend and collectives; the only room that uses Megatron's global state."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.distributed.backend import (
        choose_threads,
        device,
        finalize,
        initialize,
        is_launched,
        peak_flops,
        peak_memory,
        rank,
        threads_of_a_pass,
        world_size,
    )
    from megatron_fork.distributed.config import ParallelConfig
    from megatron_fork.distributed.early_failure import telling_others
    from megatron_fork.distributed.launcher import another_prints, awaits_others, launch
    from megatron_fork.distributed.layout import Layout, parallel_layout
    from megatron_fork.distributed.meeting import roll_call
    from megatron_fork.distributed.rank_watch import NoWatch, RankWatch, watching_ranks
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "ParallelConfig"})

__all__ = [
    "ParallelConfig",
    "Layout",
    "NoWatch",
    "RankWatch",
    "another_prints",
    "awaits_others",
    "choose_threads",
    "device",
    "finalize",
    "initialize",
    "is_launched",
    "launch",
    "parallel_layout",
    "peak_flops",
    "peak_memory",
    "rank",
    "roll_call",
    "telling_others",
    "threads_of_a_pass",
    "watching_ranks",
    "world_size",
]
