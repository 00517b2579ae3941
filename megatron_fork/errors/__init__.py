"""The user's error messages: one line each, without secrets and without control characters."""

from megatron_fork.errors.exceptions import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    LayoutError,
    MegatronForkError,
    ModelError,
    ObjectiveError,
    Preempted,
    RolloutError,
    RunFolderError,
    SelectionError,
    StatisticsError,
    StopRequested,
)
from megatron_fork.errors.masking import KEY_VARIABLE, MASK, hide, hide_logins, masked, shown
from megatron_fork.errors.wording import command, size, way_out

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "KEY_VARIABLE",
    "LayoutError",
    "MASK",
    "MegatronForkError",
    "ModelError",
    "ObjectiveError",
    "Preempted",
    "RolloutError",
    "RunFolderError",
    "SelectionError",
    "StatisticsError",
    "StopRequested",
    "command",
    "hide",
    "hide_logins",
    "masked",
    "shown",
    "size",
    "way_out",
]
