"""What a run writes down: evaluations, checkpoints, and at the end the summary and the report."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from megatron_fork.analysis import Outcome, read_outcome, write_report
from megatron_fork.evaluation import Evaluation, evaluate
from megatron_fork.experience import Trajectory
from megatron_fork.policy import Lesson, TrainedModels
from megatron_fork.rewards import Failures
from megatron_fork.rollout import Collector
from megatron_fork.run.context import RunContext
from megatron_fork.run.progress import Progress
from megatron_fork.run.provenance import provenance
from megatron_fork.run.traces import response_records
from megatron_fork.run.unfinished import Unfinished, write_groups


def is_due(step: int, every: int, last: int) -> bool:
    """Every `every` steps, and at the end."""
    return step == last or (every > 0 and step % every == 0)


def measure(context: RunContext, collector: Collector, step: int) -> dict[str, float]:
    """Evaluate the engine's weights on the held-out prompts and write the result down."""
    began = time.perf_counter()
    result: Evaluation = evaluate(
        collector, context.source.held_out, context.config.evaluation, should_stop=context.stop.is_asked
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
    """Write a few responses that are not trained on beside the traces, with what the verifier said of them."""
    run = context.config.run
    if context.folder.writes and run.trace_every:
        records = response_records(
            responses, context.source.tokenizer, step=step, count=run.trace_trajectories, kind=kind
        )
        context.folder.traces(step, records, of="evaluation" if kind == "evaluation" else "step")


def note_signal(context: RunContext, progress: Progress, metrics: dict[str, float], *, updates: int) -> bool:
    """Whether any group of the step had signal; count the step, and say it, where none had."""
    # Of a step that an earlier version began it is not known.
    if metrics.get("rollout/groups_with_signal", 1) > 0:
        return True
    progress.steps_without_signal += 1
    rate = metrics["rollout/pass_rate"]
    alike = {0.0: ": every response was wrong", 1.0: ": every response was right"}.get(rate, "")
    made = "no update" if not updates else f"its {updates} updates had no advantages"
    context.display.say(
        f"step {progress.step}: 0 of {metrics['rollout/groups_sampled']:.0f} groups had signal{alike}; {made}"
    )
    return False


def warn_of_failures(context: RunContext, collector: Collector, failures: Failures, where: str) -> None:
    """Say it where the verifier failed on many responses; raises `RewardError` where it has never judged one."""
    warning = collector.rewards.watch.look(failures, where)
    if warning is not None:
        context.display.say(warning)


def keep_state(context: RunContext, networks: TrainedModels, progress: Progress, *, stop: bool) -> None:
    """Save where it is due; where the run was asked to stop, save and raise `Interrupted`."""
    context.checkpoints.poll()
    finished = progress.step == context.config.train.steps
    if stop or finished or is_due(progress.step, context.config.run.checkpoint_every, context.config.train.steps):
        save_state(context, networks, progress)
        if stop or finished or not context.config.run.checkpoint_async:
            context.checkpoints.wait()
    if stop and not finished:
        raise context.interrupted(f"stopped after step {progress.step} of {context.config.train.steps}")


def stop_within_step(
    context: RunContext, networks: TrainedModels, progress: Progress, begun: Unfinished, lesson: Lesson | None
) -> NoReturn:
    """Save a step that was stopped between two updates, or before the first, and raise `Interrupted`."""
    made = len(lesson.updates) if lesson else 0

    def write_beside(folder: Path) -> None:
        begun.write(folder, lesson, context.layout)
        write_groups(folder, progress.under_way)

    record = replace(progress, unfinished=begun.record()).record()
    context.checkpoints.save(progress.step, networks.trained, record, write_beside=write_beside)
    context.checkpoints.wait()
    raise context.interrupted(
        f"stopped within step {progress.step + 1} of {context.config.train.steps}, after {made} updates"
    )


def save_while_drawing(context: RunContext, networks: TrainedModels, progress: Progress, collector: Collector) -> None:
    """A checkpoint of the last whole step with what was drawn for the next; every rank calls it."""
    begun = replace(progress, under_way=collector.under_way(), drawing=asdict(collector.tally()))
    groups = partial(write_groups, groups=begun.under_way)
    context.checkpoints.save(progress.step, networks.trained, begun.record(), write_beside=groups)
    context.checkpoints.wait()


def save_state(context: RunContext, networks: TrainedModels, progress: Progress) -> None:
    """A checkpoint of the last whole step, unless there is one; every rank calls it."""
    if context.checkpoints.holds(progress.step):
        return
    ahead = context.config.rollout.max_staleness > 0
    groups = partial(write_groups, groups=progress.under_way) if ahead else None
    with context.stop.remembered():  # it may fork a writer, and what is raised in the middle of a fork is lost
        context.checkpoints.save(progress.step, networks.trained, progress.record(), write_beside=groups)


def finish(context: RunContext, progress: Progress, *, parameters: int, seconds: float) -> None:
    """summary.json and the report, with what was before and after."""
    if not context.folder.writes:
        return
    before, after = progress.before or {}, progress.after or progress.before or {}
    outcome = read_outcome(context.folder.path)
    summary: dict[str, Any] = {
        **{f"{name}_before": before[name] for name in ("pass_rate", "greedy")},
        **{f"{name}_after": after[name] for name in ("pass_rate", "greedy")},
        "pass_rate_before_se": before["pass_rate_se"],
        "pass_rate_after_se": after["pass_rate_se"],
        "steps": progress.step,
        "seed": context.config.seed,
        "parameters": parameters,
        "world_size": context.layout.world.size(),
        "layout": str(context.layout),
        "wall_seconds": seconds,
        **asdict(outcome),
        "provenance": provenance(str(context.layout)) if context.folder.writes else {},
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
    """At the end of the run, where steps had nothing to learn from."""
    if not outcome.steps_without_signal:
        return
    unchanged = " and made no update: the model is the one that it began with" if not outcome.updates else ""
    context.display.say(
        f"warning: {outcome.steps_without_signal} of {outcome.steps} steps had no group with signal{unchanged}"
    )
    context.display.say(
        f"  responses and the verifier's reasons are in {context.folder.path / 'traces'} and the report; where all are wrong, "
        "look at the verifier, the answer format and rollout.max_response_tokens, or take easier prompts; where all are "
        "right, harder ones"
    )
