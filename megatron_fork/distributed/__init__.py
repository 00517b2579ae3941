"""Process groups, layouts, the device backend and the few collectives; the only room that knows Megatron's global state."""

from megatron_fork.distributed.backend import (
    choose_threads,
    device,
    finalize,
    initialize,
    is_launched,
    rank,
    threads_of_a_pass,
    world_size,
)
from megatron_fork.distributed.layout import Config, Layout, parallel_layout

__all__ = [
    "Config",
    "Layout",
    "choose_threads",
    "device",
    "finalize",
    "initialize",
    "is_launched",
    "parallel_layout",
    "rank",
    "threads_of_a_pass",
    "world_size",
]
