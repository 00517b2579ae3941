"""When a run is saved, and how it ends if it is asked to stop: one `save` for every place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_fork.errors import GradientError, RolloutError, StopRequested
from megatron_fork.policy import TrainedModels
from megatron_fork.run.context import RunContext
from megatron_fork.run.state import RunState, is_due
from megatron_fork.run.step_files import write_groups, write_step


@contextmanager
def checkpointing(context: RunContext, models: TrainedModels, state: RunState) -> Iterator[None]:
    """Save a checkpoint if the steps in this context end early: by a stop request, an engine that fails, or bad gradients.

    `StopRequested` becomes `Interrupted`, which the command line understands; so does an engine's failure if the run was
    asked to stop.
    """
    with context.stop.remembered():
        try:
            yield
        except (StopRequested, RolloutError, GradientError) as error:
            if isinstance(error, GradientError):
                context.folder.ends_by_gradients(state.step + 1, error.message)
            _forget_untrusted(state, error)
            save(context, models, state)
            context.checkpoints.wait()
            if context.asked_to_stop():
                raise context.interrupted(f"stopped {state.reached(context.config.train.steps)}") from error
            raise


def _forget_untrusted(state: RunState, error: Exception) -> None:
    """Rollouts whose log-probs are not the policy's are drawn again when the run resumes."""
    partial = state.partial
    is_whole = partial is not None and partial.trajectories is not None and not partial.result.is_begun
    if isinstance(error, RolloutError) and is_whole:
        state.partial = None


def checkpoint(context: RunContext, models: TrainedModels, state: RunState) -> None:
    """Save after a whole step if a checkpoint is due; the last one is complete when this returns."""
    context.checkpoints.poll()
    config, is_last = context.config.run, state.step == context.config.train.steps
    if is_due(state.step, config.checkpoint_every, context.config.train.steps):
        save(context, models, state)
        if is_last or not config.checkpoint_async:
            context.checkpoints.wait()


def save(context: RunContext, models: TrainedModels, state: RunState) -> None:
    """Save the state as it is, unless a checkpoint of it exists; every rank must call it."""
    if state.partial.is_saved if state.partial is not None else context.checkpoints.holds(state.step):
        return

    def write_beside(folder: Path) -> None:
        if state.partial is not None:
            write_step(folder, state.partial, context.layout)
        write_groups(folder, (state.partial or state).in_flight)

    has_files = state.partial is not None or context.config.rollout.max_staleness > 0
    with context.stop.remembered():  # saving may fork a writer, and an exception raised during a fork is lost
        context.checkpoints.save(
            state.step,
            models.trained,
            dict(state.record()),
            is_whole=state.partial is None,
            write_beside=write_beside if has_files else None,
        )
