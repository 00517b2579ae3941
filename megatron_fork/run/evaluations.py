"""The evaluations of a run: its held-out prompts and its prompt sets, each when it is due."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain

from megatron_fork.evaluation import evaluate, evaluate_set
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector
from megatron_fork.run.context import RunContext
from megatron_fork.run.prompt_sets import LoadedSet
from megatron_fork.run.record import trace_origin, warn_of_failures
from megatron_fork.run.state import RunState, is_due
from megatron_fork.run.traces import RowsOf, untrained_responses
from megatron_fork.traces import TracedResponse


def evaluate_all(context: RunContext, collector: Collector, step: int) -> dict[str, float]:
    """Evaluate the engine's weights on the held-out prompts and on every set, and record the result."""
    return _evaluate(context, collector, step, context.sets, held_out=bool(context.source.held_out))


def evaluate_where_due(context: RunContext, collector: Collector, state: RunState) -> dict[str, float]:
    """Evaluate after the last step what is due and not done yet."""
    if not state.owes_evaluation:
        return {}
    last, every = context.config.train.steps, context.config.evaluation.every
    found = _evaluate(
        context,
        collector,
        state.step,
        [each for each in context.sets if is_due(state.step, each.chosen.every, last)],
        held_out=bool(context.source.held_out) and is_due(state.step, every, last),
    )
    state.after = {**(state.after or {}), **found}
    state.owes_evaluation = False
    return found


def is_evaluated(context: RunContext, step: int) -> bool:
    """Whether anything is to be evaluated after `step`."""
    every = [context.config.evaluation.every] if context.source.held_out else []
    return any(
        is_due(step, each, context.config.train.steps) for each in (*every, *(s.chosen.every for s in context.sets))
    )


def _evaluate(
    context: RunContext, collector: Collector, step: int, sets: Iterable[LoadedSet], *, held_out: bool
) -> dict[str, float]:
    """One line of metrics and one file of traces for all that is evaluated after a step."""
    began = time.perf_counter()
    config = context.config
    metrics: dict[str, float] = {}
    traces: list[Iterable[TracedResponse]] = []
    if held_out:
        result = evaluate(
            collector, context.source.held_out, config.evaluation, stop_point=context.stop.local_stop_point
        )
        warn_of_failures(context, collector.rewards, result.failures, f"the evaluation after step {step}")
        metrics |= {
            "pass_rate": result.pass_rate,
            "pass_rate_se": result.standard_error,
            "greedy": result.greedy,
            "response_tokens": result.response_tokens,
            **result.failures.metrics(),
        }
        rows = RowsOf(context.source, "evaluation", set="held_out", step=step, samples=config.evaluation.samples)
        traces.append(untrained_responses(result.trajectories, rows, count=config.run.trace_trajectories))
    for each in sets:
        chosen = each.chosen
        with RewardPool(chosen.rewards) if chosen.rewards else nullcontext(collector.rewards) as rewards:
            found = evaluate_set(
                *(collector, each.name, each.source.held_out, chosen.samples),
                rewards=rewards,
                stop_point=context.stop.local_stop_point,
            )
            warn_of_failures(context, rewards, found.failures, f"the evaluation of {each.name} after step {step}")
        metrics |= found.metrics
        rows = RowsOf(each.source, "evaluation", set=each.name, step=step, samples=chosen.samples)
        traces.append(untrained_responses(found.trajectories, rows, count=config.run.trace_trajectories))
    context.folder.metrics("evaluation", step, {**metrics, "time/evaluation": time.perf_counter() - began})
    if context.folder.writes and config.run.trace_every:
        context.folder.traces(step, chain.from_iterable(traces), trace_origin(context), of="evaluation")
    return metrics
