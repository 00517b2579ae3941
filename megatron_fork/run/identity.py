"""Which run a recipe is: fingerprints of its settings, which stay the same when fields are added."""

from __future__ import annotations

from dataclasses import asdict

from megatron_fork.config import RunConfig
from megatron_fork.recipe import flat, letters

# Fields added after checkpoints got their present format, while a run's fingerprint still had every field, and those (or
# rooms) added since then.
_ADDED = ("data.columns.solution",)
_ADDED_LATER = (
    "cluster.",
    "compute.attention",
    "compute.elementwise",
    "evaluation.sets",
    "rollout.min_p",
    "rollout.remote.delta_updates",
    "rollout.remote.verify_weights",
    "rollout.replay_sampling_mask",
    "selection.m2po",
    "selection.nat",
    "selection.quadrants",
    "selection.soft_entropy",
    "selection.stapo",
    "selection.surprisal_band",
    "selection.weights",
    "train.max_skipped_updates",
    "vocab_parallel.fp32_head",
    "vocab_parallel.second_stream",
)


def fingerprint(config: RunConfig, *, leave_out: tuple[str, ...]) -> str:
    """A short hash of every field except those whose dotted names start with one of `leave_out`.

    Only values that differ from the default count, so that a field added by a later version does not change it. A default
    that has changed meanwhile shows in `resolved.yaml`, which has all values.
    """
    usual = dict(flat(asdict(RunConfig())))
    return letters(
        {
            name: value
            for name, value in flat(asdict(config))
            if not name.startswith(leave_out) and (name not in usual or usual[name] != value)
        }
    )


def former_fingerprints(config: RunConfig, *, leave_out: tuple[str, ...]) -> tuple[str, ...]:
    """The fingerprints of earlier versions, which hashed every field: with the fields that were added since, and without."""
    usual = dict(flat(asdict(RunConfig())))
    every = {
        name: value
        for name, value in flat(asdict(config))
        if not name.startswith(leave_out) and not (name.startswith(_ADDED_LATER) and value == usual.get(name))
    }
    older = {name: value for name, value in every.items() if name not in _ADDED or value != usual[name]}
    return letters(every), letters(older)
