"""The engine's side of a step: collecting rollouts from it and sending it the policy's new weights."""

from __future__ import annotations

from megatron_fork.errors import RolloutError, StopRequested
from megatron_fork.policy import Policy, groups_with_signal, with_advantages
from megatron_fork.rollout import Collector, Engine, PolicyWeights, probe
from megatron_fork.run.context import RunContext
from megatron_fork.run.record import warn_of_failures
from megatron_fork.run.state import PartialStep, RunState


def collect(context: RunContext, collector: Collector, state: RunState) -> PartialStep:
    """The rollouts of the next step with their advantages; if an interrupted run left some, those.

    If the run is asked to stop or the engine fails, `state` keeps what has been collected.
    """
    context.stop_point()
    if state.partial is not None and state.partial.trajectories is not None:
        state.partial.is_saved = False
        return state.partial
    objective, samples = context.config.objective, context.config.rollout.samples
    try:
        rollouts = collector.collect(
            start=state.prompts_drawn,
            version=state.step,
            seen=state.signal,
            stop_point=context.stop.local_stop_point,
        )
    except (StopRequested, RolloutError):
        if collector.is_stream:  # its responses are kept, not drawn again
            state.partial = PartialStep(collector.counts(), in_flight=collector.in_flight())
        raise
    warn_of_failures(context, collector.rewards, rollouts.failures, f"step {state.step + 1}")
    with_signal = groups_with_signal(rollouts.trajectories, objective, group_size=samples)
    state.partial = PartialStep(
        rollouts.counts,
        with_advantages(rollouts.trajectories, objective, group_size=samples),
        {**rollouts.metrics(version=state.step), "rollout/groups_with_signal": with_signal},
        dropped=rollouts.dropped,
        in_flight=collector.in_flight(),
    )
    return state.partial


def sync_weights(context: RunContext, policy: Policy, engine: Engine, version: int) -> None:
    """Send the policy's weights to the engine, and verify by log-probs that it has them."""
    engine.update_weights(PolicyWeights(policy), version)
    probe(engine, policy, context.source.held_out or context.source.training, context.config.rollout)
