"""One run on this rank: its context, the building of its parts, what it keeps and tells, and how it stops."""

from typing import TYPE_CHECKING

from megatron_fork import front_door

if TYPE_CHECKING:
    from megatron_fork.run.checks import check, check_import, check_kernels
    from megatron_fork.run.console import Display, quiet_libraries
    from megatron_fork.run.context import RunContext, prepare
    from megatron_fork.run.progress import Progress
    from megatron_fork.run.record import (
        finish,
        is_due,
        keep_responses,
        keep_state,
        measure,
        note_signal,
        save_state,
        save_while_drawing,
        stop_within_step,
        warn_of_failures,
    )
    from megatron_fork.run.setup import build_collector, build_engine, start, warm_start, write_model
    from megatron_fork.run.traces import trace_records
    from megatron_fork.run.unfinished import Unfinished
else:
    __getattr__ = front_door.opened(__name__, __file__)

__all__ = [
    "Display",
    "Progress",
    "Unfinished",
    "RunContext",
    "build_collector",
    "build_engine",
    "check",
    "check_import",
    "check_kernels",
    "finish",
    "is_due",
    "keep_responses",
    "keep_state",
    "measure",
    "note_signal",
    "prepare",
    "quiet_libraries",
    "save_state",
    "save_while_drawing",
    "start",
    "stop_within_step",
    "trace_records",
    "warm_start",
    "warn_of_failures",
    "write_model",
]
