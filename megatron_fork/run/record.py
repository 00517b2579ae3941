"""What a run records: metrics and traces of steps, evaluations, and at the end the summary and the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch

from megatron_fork import __version__, distributed, models
from megatron_fork.analysis import Outcome, read_outcome, write_report
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.evaluation import Evaluation, evaluate
from megatron_fork.experience import Trajectory
from megatron_fork.rewards import Failures
from megatron_fork.rollout import Collector
from megatron_fork.run.context import RunContext
from megatron_fork.run.provenance import provenance
from megatron_fork.run.state import PartialStep, RunState, is_due
from megatron_fork.run.traces import RowsOf, trained_responses, untrained_responses
from megatron_fork.traces import Origin, vocabulary_fingerprint


def evaluate_held_out(context: RunContext, collector: Collector, step: int) -> dict[str, float]:
    """Evaluate the engine's weights on the held-out prompts and record the result."""
    began = time.perf_counter()
    result: Evaluation = evaluate(
        collector, context.source.held_out, context.config.evaluation, stop_point=context.stop.local_stop_point
    )
    warn_of_failures(context, collector, result.failures, f"the evaluation after step {step}")
    metrics = {
        "pass_rate": result.pass_rate,
        "pass_rate_se": result.standard_error,
        "greedy": result.greedy,
        "response_tokens": result.response_tokens,
        **result.failures.metrics(),
    }
    context.folder.metrics("evaluation", step, {**metrics, "time/evaluation": time.perf_counter() - began})
    keep_responses(context, result.trajectories, step, "evaluation")
    return metrics


def keep_responses(
    context: RunContext, responses: list[Trajectory], step: int, kind: Literal["without_signal", "evaluation"]
) -> None:
    """Write a few responses that are not trained on beside the traces, with the verifier's reasons."""
    if context.folder.writes and context.config.run.trace_every:
        config = context.config
        held_out = kind == "evaluation"
        rows = RowsOf(
            context.source,
            kind,
            set="held_out" if held_out else "training",
            step=step,
            samples=(config.evaluation if held_out else config.rollout).samples,
        )
        few = untrained_responses(responses, rows, count=config.run.trace_trajectories)
        context.folder.traces(step, few, trace_origin(context), of="evaluation" if held_out else "step")


def evaluate_where_due(context: RunContext, collector: Collector, state: RunState) -> dict[str, float]:
    """Evaluate after the last step if that is due and not done yet."""
    if not state.owes_evaluation:
        return {}
    state.after = evaluate_held_out(context, collector, state.step)
    state.owes_evaluation = False
    return state.after


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
            keep_responses(context, done.dropped, state.step, "without_signal")
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


def warn_of_failures(context: RunContext, collector: Collector, failures: Failures, where: str) -> None:
    """Print a warning if the verifier failed on many responses; raises `RewardError` if it has never judged one."""
    warning = collector.rewards.watch.look(failures, where)
    if warning is not None:
        context.display.say(warning)


def finish(context: RunContext, state: RunState, *, parameters: int, seconds: float) -> None:
    """Write summary.json and the report, with the evaluations before and after training."""
    if not context.folder.writes:
        return
    before, after = state.before or {}, state.after or state.before or {}
    outcome = read_outcome(context.folder.path)
    summary: dict[str, Any] = {
        **{f"{name}_before": before[name] for name in ("pass_rate", "greedy")},
        **{f"{name}_after": after[name] for name in ("pass_rate", "greedy")},
        "pass_rate_before_se": before["pass_rate_se"],
        "pass_rate_after_se": after["pass_rate_se"],
        "steps": state.step,
        "seed": context.config.seed,
        "parameters": parameters,
        "world_size": context.layout.world.size(),
        "layout": str(context.layout),
        "wall_seconds": seconds,
        **asdict(outcome),
        "provenance": provenance(str(context.layout)),
    }
    summary["seconds"]["other"] = max(0.0, seconds - sum(outcome.seconds.values()))
    context.folder.summary(summary)
    report = write_report(context.folder.path)
    context.display.say(
        f"pass rate {before['pass_rate']:.3f} +- {before['pass_rate_se']:.3f} -> "
        f"{after['pass_rate']:.3f} +- {after['pass_rate_se']:.3f}   "
        f"greedy {before['greedy']:.3f} -> {after['greedy']:.3f}   {seconds:.0f} s"
    )
    warn_without_signal(context, outcome)
    context.display.say(f"report {report}")


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
