"""One run on this rank: its context, how its parts are built, what it writes and prints, and how it stops."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.run.checkpointing import checkpoint, checkpointing, save
    from megatron_fork.run.checks import (
        check,
        check_import,
        check_kernels,
        check_settings,
        matching_model,
        matching_prompts,
    )
    from megatron_fork.run.console import Display, quiet_libraries
    from megatron_fork.run.context import RunContext, prepare
    from megatron_fork.run.engine_side import collect, sync_weights
    from megatron_fork.run.record import evaluate_held_out, evaluate_where_due, finish, log_step, warn_of_failures
    from megatron_fork.run.setup import (
        build_collector,
        build_engine,
        build_learner,
        start,
        warm_start,
        write_model,
    )
    from megatron_fork.run.state import PartialStep, RunState, is_due
    from megatron_fork.run.supervised import supervise
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "Display",
    "PartialStep",
    "RunContext",
    "RunState",
    "build_collector",
    "build_engine",
    "build_learner",
    "check",
    "check_import",
    "check_kernels",
    "check_settings",
    "checkpoint",
    "checkpointing",
    "collect",
    "evaluate_held_out",
    "evaluate_where_due",
    "finish",
    "is_due",
    "log_step",
    "matching_model",
    "matching_prompts",
    "prepare",
    "quiet_libraries",
    "save",
    "start",
    "supervise",
    "sync_weights",
    "warm_start",
    "warn_of_failures",
    "write_model",
]
