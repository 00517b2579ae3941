"""What a run records: metrics and traces of steps, evaluations, and at the end the summary and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from megatron_fork import __version__, distributed, models
from megatron_fork.analysis import Outcome, read_outcome, write_report
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.experience import Trajectory
from megatron_fork.rewards import Failures, RewardPool
from megatron_fork.run.context import RunContext
from megatron_fork.run.provenance import provenance
from megatron_fork.run.state import PartialStep, RunState, is_due
from megatron_fork.run.traces import RowsOf, trained_responses, untrained_responses
from megatron_fork.traces import Origin, vocabulary_fingerprint

_WHEN = ("before", "after")


def keep_dropped(context: RunContext, responses: list[Trajectory], step: int) -> None:
    """Write a few responses of groups without signal, which are not trained on, with the verifier's reasons."""
    run, samples = context.config.run, context.config.rollout.samples
    if context.folder.writes and run.trace_every:
        rows = RowsOf(context.source, "without_signal", set="training", step=step, samples=samples)
        few = untrained_responses(responses, rows, count=run.trace_trajectories)
        context.folder.traces(step, few, trace_origin(context))


def log_step(context: RunContext, state: RunState, done: PartialStep, seconds: Mapping[str, float]) -> dict[str, float]:
    """Record metrics, updates and traces of the step `done`; every rank must call it."""
    assert done.trajectories is not None
    metrics = {**done.rollout_metrics, **done.result.metrics, **seconds}
    metrics["tokens_per_second"] = sum(len(each.response) for each in done.trajectories) / metrics["time/step"]
    metrics |= utilization(context, done.trajectories, metrics.get("time/update", 0.0))
    metrics |= memory(context)
    context.folder.metrics("train", state.step, metrics)
    context.folder.updates(state.step, done.result.updates)
    has_signal = note_signal(context, state, metrics, updates=len(done.result.updates))
    if is_traced(state, context.config, has_signal=has_signal):
        if done.result.shares:
            samples = context.config.rollout.samples
            responses = trained_responses(
                done.trajectories,
                done.result.shares,
                RowsOf(context.source, "trained", set="training", step=state.step, samples=samples),
                count=context.config.run.trace_trajectories,
                seed=state.step,
                group=context.layout.data,
            )
            context.folder.traces(state.step, responses, trace_origin(context))
        else:
            keep_dropped(context, done.dropped, state.step)
    return metrics


def trace_origin(context: RunContext) -> Origin:
    """What the run's trace files say of themselves."""
    return Origin(
        model=str(context.folder.path),
        tokenizer=vocabulary_fingerprint(context.source.tokenizer),
        vocab_size=int(context.hf_config.vocab_size),
        temperature=context.config.rollout.temperature,
        written_by=f"megatron-fork train {__version__}",
    )


def memory(context: RunContext) -> dict[str, float]:
    """The largest peak of any rank: of a process since it began, of a GPU's tensors since the step before; collective."""
    peaks = torch.tensor(distributed.peak_memory(), device=distributed.device())
    resident, on_device = collectives.all_reduce_max(peaks, context.layout.world).tolist()
    return {"memory/resident": resident, **({"memory/device": on_device} if on_device else {})}


def utilization(context: RunContext, trained: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Model FLOPs utilization of the updates, on GPUs whose peak is known: all tokens count, whichever were selected."""
    peak = distributed.peak_flops()
    if peak is None or not seconds:
        return {}
    flops = models.training_flops(context.hf_config, [len(each.prompt.tokens) + len(each.response) for each in trained])
    return {"update/mfu": flops / (seconds * peak * context.layout.world.size())}


def is_traced(state: RunState, config: RunConfig, *, has_signal: bool) -> bool:
    """Whether to trace the step: if that is due, or if it is the 1st, 2nd, 4th, 8th ... step without signal."""
    if not config.run.trace_every:
        return False
    nth = 0 if has_signal else state.steps_without_signal
    is_power_of_two = nth > 0 and nth & (nth - 1) == 0
    return state.step == 1 or is_power_of_two or is_due(state.step, config.run.trace_every, config.train.steps)


def note_signal(context: RunContext, state: RunState, metrics: dict[str, float], *, updates: int) -> bool:
    """Whether any group of the step had signal; if none had, count the step and print a line."""
    # A step that an earlier version began does not have this metric.
    if metrics.get("rollout/groups_with_signal", 1) > 0:
        return True
    state.steps_without_signal += 1
    rate = metrics["rollout/pass_rate"]
    alike = {0.0: ": every response was wrong", 1.0: ": every response was right"}.get(rate, "")
    made = "no update" if not updates else f"its {updates} updates had no advantages"
    context.display.say(
        f"step {state.step}: 0 of {metrics['rollout/groups_sampled']:.0f} groups had signal{alike}; {made}"
    )
    return False


def warn_of_failures(context: RunContext, rewards: RewardPool, failures: Failures, where: str) -> None:
    """Print a warning if the verifier failed on many responses; raises `RewardError` if it has never judged one."""
    warning = rewards.watch.look(failures, where)
    if warning is not None:
        context.display.say(warning)


def finish(context: RunContext, state: RunState, *, parameters: int, seconds: float) -> None:
    """Write summary.json and the report, with the evaluations before and after training."""
    if not context.folder.writes:
        return
    before, after = state.before or {}, {**(state.before or {}), **(state.after or {})}
    outcome = read_outcome(context.folder.path)
    names = [name for name in ("pass_rate", "greedy") if name in before]
    summary: dict[str, Any] = {
        **{f"{name}_before": before[name] for name in names},
        **{f"{name}_after": after[name] for name in names},
        **{
            f"pass_rate_{when}_se": found["pass_rate_se"]
            for when, found in zip(_WHEN, (before, after), strict=True)
            if names
        },
        "steps": state.step,
        "seed": context.config.seed,
        "parameters": parameters,
        "world_size": context.layout.world.size(),
        "layout": str(context.layout),
        "wall_seconds": seconds,
        **asdict(outcome),
        "provenance": provenance(str(context.layout)),
    }
    if context.sets:
        summary["sets"] = {
            each.name: {when: of_set(each.name, found) for when, found in zip(_WHEN, (before, after), strict=True)}
            for each in context.sets
        }
    summary["seconds"]["other"] = max(0.0, seconds - sum(outcome.seconds.values()))
    context.folder.summary(summary)
    report = write_report(context.folder.path)
    first, *others = _changes(context, before, after)
    for line in (f"{first}   {seconds:.0f} s", *others):
        context.display.say(line)
    warn_without_signal(context, outcome)
    context.display.say(f"report {report}")


def of_set(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a set, without its name."""
    return {
        metric.removeprefix(f"{name}/"): value for metric, value in metrics.items() if metric.startswith(f"{name}/")
    }


def _changes(context: RunContext, before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    """What training changed, a line for the held-out prompts and for each set."""
    if "pass_rate" in before:
        yield (
            f"pass rate {before['pass_rate']:.3f} +- {before['pass_rate_se']:.3f} -> "
            f"{after['pass_rate']:.3f} +- {after['pass_rate_se']:.3f}   "
            f"greedy {before['greedy']:.3f} -> {after['greedy']:.3f}"
        )
    for each in context.sets:
        name = f"{each.name}/avg@{each.chosen.samples}"
        yield (
            f"{name} {before[name]:.3f} +- {before[f'{name}_se']:.3f} -> {after[name]:.3f} +- {after[f'{name}_se']:.3f}"
        )


def warn_without_signal(context: RunContext, outcome: Outcome) -> None:
    """Print a warning at the end of a run whose steps had nothing to learn from."""
    if not outcome.steps_without_signal:
        return
    unchanged = ", and there was no update: the model is unchanged" if not outcome.updates else ""
    context.display.say(
        f"warning: {outcome.steps_without_signal} of {outcome.steps} steps had no group with signal{unchanged}"
    )
    context.display.say(
        f"  responses and the verifier's reasons are in {context.folder.path / 'traces'} and the report; if all are wrong, "
        "check the verifier, the answer format and rollout.max_response_tokens, or use easier prompts; if all are right, "
        "use harder ones"
    )
