"""One run on this rank: its context, how its parts are built, what it writes and prints, and how it stops."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.run.asked import Asked
    from megatron_fork.run.checkpointing import checkpoint, checkpointing, save
    from megatron_fork.run.checks import (
        Checked,
        check,
        check_kernels,
        check_machine,
        check_settings,
        matching_ends,
        matching_model,
        matching_prompts,
    )
    from megatron_fork.run.console import Display, quiet_libraries
    from megatron_fork.run.context import RunContext, check_folder, prepare
    from megatron_fork.run.ending import end_with, explain, is_first_rank, leave, users_errors
    from megatron_fork.run.engine_side import collect, sync_weights
    from megatron_fork.run.evaluating import evaluate_model
    from megatron_fork.run.evaluations import evaluate_all, evaluate_where_due, is_evaluated
    from megatron_fork.run.folder import writing_to
    from megatron_fork.run.given import score_given
    from megatron_fork.run.interruption import StopRequest
    from megatron_fork.run.intervening import AskedCells, check_follows, intervene
    from megatron_fork.run.lensing import LENSES, AskedLenses, look
    from megatron_fork.run.masks import two_selections
    from megatron_fork.run.offline import ModelContext, load_policy, model_context
    from megatron_fork.run.place import checkpoint_of, config_of
    from megatron_fork.run.prompt_sets import LoadedSet, matching_sets
    from megatron_fork.run.record import finish, log_step, warn_of_failures
    from megatron_fork.run.scoring import (
        Scorer,
        check_vocabulary,
        entropies_of,
        models_of_run,
        origin_of,
        place_and_checkpoint,
        rescored,
        scorer,
        sequences_of,
    )
    from megatron_fork.run.selecting import selected_tokens
    from megatron_fork.run.server_scoring import ServerReader
    from megatron_fork.run.setup import (
        build_collector,
        build_engine,
        build_learner,
        build_models,
        start,
        warm_start,
        write_model,
    )
    from megatron_fork.run.state import PartialStep, RunState, is_due
    from megatron_fork.run.supervised import supervise
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "Asked",
    "AskedCells",
    "AskedLenses",
    "Checked",
    "Display",
    "LENSES",
    "LoadedSet",
    "ModelContext",
    "PartialStep",
    "RunContext",
    "RunState",
    "Scorer",
    "ServerReader",
    "StopRequest",
    "build_collector",
    "build_engine",
    "build_learner",
    "build_models",
    "check",
    "check_folder",
    "check_follows",
    "check_kernels",
    "check_machine",
    "check_settings",
    "check_vocabulary",
    "checkpoint",
    "checkpoint_of",
    "checkpointing",
    "collect",
    "config_of",
    "end_with",
    "entropies_of",
    "evaluate_all",
    "evaluate_model",
    "evaluate_where_due",
    "explain",
    "finish",
    "intervene",
    "is_due",
    "is_evaluated",
    "is_first_rank",
    "leave",
    "load_policy",
    "log_step",
    "look",
    "matching_ends",
    "matching_model",
    "matching_prompts",
    "matching_sets",
    "model_context",
    "models_of_run",
    "origin_of",
    "place_and_checkpoint",
    "prepare",
    "quiet_libraries",
    "rescored",
    "save",
    "score_given",
    "scorer",
    "selected_tokens",
    "sequences_of",
    "start",
    "supervise",
    "sync_weights",
    "two_selections",
    "users_errors",
    "warm_start",
    "warn_of_failures",
    "write_model",
    "writing_to",
]
