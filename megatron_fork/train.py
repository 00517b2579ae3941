"""The loop: rollouts, rewards, advantages, statistics, selection, update, weights to the engine.

A run is determined by its recipe. Every random choice comes from the seed and a counter (the prompt drawn, the sample, the
update), so that nothing random has to be saved, and a resumed run goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from megatron_fork import objective
from megatron_fork.analysis import write_report
from megatron_fork.clock import Clock
from megatron_fork.config import RunConfig
from megatron_fork.errors import RolloutError, RunFolderError
from megatron_fork.experience import Trajectory
from megatron_fork.policy import Learner, LearningRates, Lesson, Policy, Taught, TrainedModels, split_into_mini_batches
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector, Engine, PolicyWeights, Rollouts, Tally, probe
from megatron_fork.run import (
    Display,
    Progress,
    RunContext,
    Unfinished,
    build_collector,
    build_engine,
    finish,
    is_due,
    keep_responses,
    keep_state,
    measure,
    note_signal,
    prepare,
    save_state,
    save_while_drawing,
    start,
    stop_within_step,
    trace_records,
    warm_start,
    warn_of_failures,
    write_model,
)


def train(config: RunConfig, display: Display) -> Path:
    """Run a recipe to its end, from its latest checkpoint where there is one; returns the run folder."""
    with prepare(config, display) as context, RewardPool(config.rewards) as rewards, ExitStack() as stack:
        display.say(f"run folder {context.folder.path}  ({context.layout})")
        progress, networks, begun = start(context)
        policy = networks.policy
        started = time.monotonic() - progress.seconds
        engine = stack.enter_context(
            closing(build_engine(context, save=lambda: save_state(context, networks, progress)))
        )
        collector = build_collector(context, engine, rewards)
        collector.restore(progress.under_way, Tally.of_record(progress.drawing) if progress.drawing else None)
        learner = Learner(
            networks,
            config.selection,
            config.objective,
            mismatch_limit=config.rollout.mismatch_limit,
            critic_epochs=config.critic.epochs,
        )
        synchronise(context, policy, engine, progress.step)
        if progress.before is None:
            progress.before = measure(context, collector, 0)
        with context.stop.remembered(), display.stage("train", config.train.steps, done=progress.step) as stage:
            with saved_where_it_breaks_off(context, networks, progress):
                evaluate_what_is_owed(context, collector, progress)
            while progress.step < config.train.steps:
                if context.asked_to_stop():  # since the last step was saved, or before there was any
                    keep_state(context, networks, progress, stop=True)
                with saved_where_it_breaks_off(context, networks, progress):
                    metrics = one_step(context, networks, engine, collector, learner, progress, begun)
                begun = None
                progress.seconds = time.monotonic() - started
                stage.advance(metrics)
                keep_state(context, networks, progress, stop=context.asked_to_stop())
        with context.stop.remembered():
            write_model(context, policy, context.folder.path / "model")
        finish(context, progress, parameters=engine.parameters, seconds=time.monotonic() - started)
        return context.folder.path


def supervise(config: RunConfig, display: Display) -> Path:
    """Only the warm start of a recipe; returns the model folder."""
    with prepare(config, display) as context, RewardPool(config.rewards) as rewards, ExitStack() as stack:
        if context.checkpoints.latest() is not None:
            raise RunFolderError(
                f"run.folder={context.folder.path} holds a run that has left its warm start behind",
                hint=f"its model is {context.warm_start}; for another warm start choose another run.folder",
            )
        context.folder.begin()
        context.folder.forget(after=-1)
        policy = warm_start(context)
        engine = stack.enter_context(closing(build_engine(context)))
        synchronise(context, policy, engine, 0)
        measure(context, build_collector(context, engine, rewards), 0)
        if context.folder.writes:
            display.say(f"model {context.warm_start}")
            display.say(f"report {write_report(context.folder.path)}")
        return context.warm_start


def one_step(
    context: RunContext,
    networks: TrainedModels,
    engine: Engine,
    collector: Collector,
    learner: Learner,
    progress: Progress,
    begun: Unfinished | None,
) -> dict[str, float]:
    """Rollouts, advantages, updates, new weights for the engine; then evaluation and traces where they are due.

    A step that an earlier run has begun goes on from there. Where the run is asked to stop, what there is of the step is saved.
    """
    config, step = context.config, progress.step + 1
    clock = Clock()
    drawn = begun or draw(context, networks, collector, progress)
    clock.lap("rollout")
    under_way = collector.under_way()
    if drawn.taught is None and context.asked_to_stop():
        stop_within_step(context, networks, replace(progress, under_way=under_way), drawn, None)
    engine.rest()
    lesson = teach(learner, drawn, config, step, clock, context.asked_to_stop)
    if not lesson.finished:
        drawn = replace(drawn, taught=Taught(lesson.metrics, lesson.updates, {}))
        stop_within_step(context, networks, replace(progress, under_way=under_way), drawn, lesson)
    # The step is done, whatever becomes of the servers now: a run that ends here must not take it again.
    progress.step, progress.prompts_drawn = step, progress.prompts_drawn + drawn.prompts_drawn
    progress.under_way = under_way
    progress.owes_evaluation = is_due(step, config.evaluation.every, config.train.steps)
    try:
        synchronise(context, networks.policy, engine, step)
    finally:
        clock.lap("synchronise")
        metrics = {**drawn.rollout_metrics, **lesson.metrics, **clock.laps()}
        metrics["tokens_per_second"] = sum(len(t.response) for t in drawn.trajectories) / metrics["time/step"]
        context.folder.metrics("train", step, metrics)
        context.folder.updates(step, lesson.updates)
    has_signal = note_signal(context, progress, metrics, updates=len(lesson.updates))
    if is_traced(progress, config, has_signal=has_signal):
        records = trace_records(
            lesson.shares,
            context.source.tokenizer,
            step=step,
            count=config.run.trace_trajectories,
            group=context.layout.data,
        )
        context.folder.traces(step, records)
        if not lesson.shares:
            keep_responses(context, drawn.dropped, step, "without_signal")
    return {**metrics, **evaluate_what_is_owed(context, collector, progress)}


def evaluate_what_is_owed(context: RunContext, collector: Collector, progress: Progress) -> dict[str, float]:
    """The evaluation after the last step, where it is due and was not done yet."""
    if not progress.owes_evaluation:
        return {}
    progress.after = measure(context, collector, progress.step)
    progress.owes_evaluation = False
    return progress.after


@contextmanager
def saved_where_it_breaks_off(context: RunContext, networks: TrainedModels, progress: Progress) -> Iterator[None]:
    """Where the engine fails, or gives up since the run is to stop, the last whole step is saved first."""
    try:
        yield
    except RolloutError as error:
        save_state(context, networks, progress)
        context.checkpoints.wait()
        if context.asked_to_stop():
            raise context.interrupted(f"stopped after step {progress.step} of {context.config.train.steps}") from error
        raise


def is_traced(progress: Progress, config: RunConfig, *, has_signal: bool) -> bool:
    """Whether trajectories of the step are kept: where that is due, and of ever fewer of the steps without signal."""
    if not config.run.trace_every:
        return False
    nth = 0 if has_signal else progress.steps_without_signal
    is_power_of_two = nth > 0 and nth & (nth - 1) == 0
    first = progress.step == 1
    return first or is_power_of_two or is_due(progress.step, config.run.trace_every, config.train.steps)


def draw(context: RunContext, networks: TrainedModels, collector: Collector, progress: Progress) -> Unfinished:
    """The rollouts of the next step, with their advantages; where the run is asked to stop, what there is is saved."""
    try:
        start, version = progress.prompts_drawn, progress.step
        rollouts = collector.collect(start=start, version=version, should_stop=context.stop.is_asked)
    except RolloutError:
        if collector.is_stream:
            save_while_drawing(context, networks, progress, collector)
        raise
    if rollouts.was_stopped:
        save_while_drawing(context, networks, progress, collector)
        context.asked_to_stop()  # by whom, all ranks must know
        raise context.interrupted(f"stopped while step {progress.step + 1} of {context.config.train.steps} was drawn")
    progress.drawing = None
    warn_of_failures(context, collector, rollouts.failures, f"step {version + 1}")
    metrics = of_rollouts(rollouts, version=version)
    metrics["rollout/groups_with_signal"] = groups_with_signal(rollouts.trajectories, context.config)
    trajectories = with_advantages(rollouts.trajectories, context.config)
    return Unfinished(trajectories, metrics, rollouts.prompts_drawn, dropped=rollouts.dropped)


def teach(
    learner: Learner, drawn: Unfinished, config: RunConfig, step: int, clock: Clock, should_stop: Callable[[], bool]
) -> Lesson:
    """The updates of a step, or those of them that are still to be made."""
    batches = split_into_mini_batches(
        drawn.trajectories,
        config.train.prompts_per_mini_batch,
        group_size=config.rollout.samples,
        seed=random.Random(f"{config.seed}/{step}").getrandbits(62),
    )
    if not batches:
        return Lesson({}, [], [])
    return learner.learn(
        batches, step=step, rates=rates(config, step), clock=clock, taught=drawn.taught, should_stop=should_stop
    )


def synchronise(context: RunContext, policy: Policy, engine: Engine, version: int) -> None:
    """The policy's weights for the engine, and the proof that it has them."""
    engine.update_weights(PolicyWeights(policy), version)
    probe(engine, policy, context.source.held_out, context.config.rollout)


def rates(config: RunConfig, step: int) -> LearningRates:
    """Learning rates of a step; the policy waits until the critic has warmed up."""
    waits = config.objective.advantage == "gae" and step <= config.critic.warmup_steps
    return LearningRates(
        policy=0.0 if waits else config.optimizer.rate_at(step - 1, config.train.steps),
        critic=config.critic.optimizer.rate_at(step - 1, config.train.steps),
    )


def with_advantages(trajectories: list[Trajectory], config: RunConfig) -> list[Trajectory]:
    """Reward plus overlong punishment, compared within the group of each prompt; a critic compares later, token by token."""
    if not trajectories:
        return []
    rewards = shaped_rewards(trajectories, config)
    groups = torch.arange(len(trajectories)) // config.rollout.samples
    critic = config.objective.advantage == "gae"
    advantages = rewards if critic else objective.group_advantages(rewards, groups, config.objective)
    return [replace(t, advantage=advantage) for t, advantage in zip(trajectories, advantages.tolist(), strict=True)]


def shaped_rewards(trajectories: list[Trajectory], config: RunConfig) -> torch.Tensor:
    """Rewards with the overlong punishment, `[trajectories]`."""
    lengths = torch.tensor([len(trajectory.response) for trajectory in trajectories])
    rewards = torch.tensor([trajectory.reward for trajectory in trajectories])
    return rewards + objective.overlong_penalty(lengths, config.objective)


def groups_with_signal(trajectories: list[Trajectory], config: RunConfig) -> int:
    """Groups of which some response is better than another; a critic learns of every group."""
    if not trajectories or config.objective.advantage == "gae":
        return len(trajectories) // config.rollout.samples
    rewards = shaped_rewards(trajectories, config).view(-1, config.rollout.samples)
    return int((rewards != rewards[:, :1]).any(dim=1).sum())


def of_rollouts(rollouts: Rollouts, *, version: int) -> dict[str, float]:
    """Metrics of what was sampled; the pass rate counts groups without signal too. `version`: of the policy's weights."""
    tokens = sum(len(trajectory.response) for trajectory in rollouts.trajectories)
    spans = [span for trajectory in rollouts.trajectories for span in trajectory.versions]
    stale = sum((version - span.version) * (span.end - span.start) for span in spans)
    return {
        "rollout/pass_rate": rollouts.mean_reward,
        **rollouts.failures.metrics(),
        "rollout/groups_sampled": rollouts.groups_sampled,
        "rollout/groups_kept": rollouts.groups_kept,
        "rollout/rounds": rollouts.rounds,
        "rollout/response_tokens": tokens / max(1, len(rollouts.trajectories)),
        "rollout/groups_under_way": rollouts.groups_under_way,
        "rollout/staleness": stale / max(1, tokens),
        "rollout/staleness_max": max((version - span.version for span in spans), default=0),
    }
