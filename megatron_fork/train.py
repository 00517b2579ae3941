"""The loop: rollouts, rewards, advantages, statistics, selection, update, weights to the engine.

A run is determined by its recipe. Every random choice comes from the seed and a counter (the prompt drawn, the sample, the
update), so that nothing random has to be saved, and a resumed run goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_fork import checkpoint, distributed, models, objective
from megatron_fork.analysis import write_report
from megatron_fork.clock import Clock
from megatron_fork.config import RunConfig
from megatron_fork.console import Display
from megatron_fork.errors import Interrupted
from megatron_fork.evaluation import Evaluation, evaluate
from megatron_fork.experience import Trajectory
from megatron_fork.policy import Learner, Lesson, OptimizerConfig, Policy, split_into_mini_batches
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector, EmbeddedEngine, Rollouts
from megatron_fork.supervised import fine_tune
from megatron_fork.traces import trace_records
from megatron_fork.workplace import Workplace, prepare


@dataclass
class Progress:
    """Where a run stands; with the tensors of a checkpoint it is all that a run needs to go on."""

    step: int = 0
    prompts_drawn: int = 0
    seconds: float = 0.0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None


def train(config: RunConfig, display: Display) -> Path:
    """Run a recipe to its end, from its latest checkpoint where there is one; returns the run folder."""
    with prepare(config, display) as work, RewardPool(config.rewards) as rewards:
        display.say(f"run folder {work.folder.path}  ({work.layout})")
        progress, policy = start(work)
        started = time.monotonic() - progress.seconds
        engine = build_engine(work)
        collector = Collector(config.rollout, engine, work.source, rewards, world=work.layout.world, seed=config.seed)
        learner = Learner(policy, config.selection, config.objective, mismatch_limit=config.rollout.mismatch_limit)
        engine.update_weights(checkpoint.iter_hf_weights(policy.model), progress.step)
        if progress.before is None:
            progress.before = measure(work, collector, 0)
        with display.stage("train", config.train.steps, done=progress.step) as stage:
            while progress.step < config.train.steps:
                metrics = one_step(work, policy, engine, collector, learner, progress)
                progress.seconds = time.monotonic() - started
                stage.advance(metrics)
                keep_state(work, policy, progress, stop=work.asked_to_stop())
        write_model(work, policy, work.folder.path / "model")
        finish(work, progress, parameters=engine.parameters, seconds=time.monotonic() - started)
        return work.folder.path


def supervise(config: RunConfig, display: Display) -> Path:
    """Only the warm start of a recipe; returns the model folder."""
    with prepare(config, display) as work, RewardPool(config.rewards) as rewards:
        policy = warm_start(work)
        engine = build_engine(work)
        engine.update_weights(checkpoint.iter_hf_weights(policy.model), 0)
        collector = Collector(config.rollout, engine, work.source, rewards, world=work.layout.world, seed=config.seed)
        measure(work, collector, 0)
        if work.folder.writes:
            write_report(work.folder.path)
        return work.warm_start


def start(work: Workplace) -> tuple[Progress, Policy]:
    """The policy of this run as it stands: resumed, warm-started, or as its model folder has it."""
    saved = checkpoint.latest(work.checkpoints)
    if saved is not None:
        progress = Progress(**saved.progress)
        work.folder.forget_after(progress.step)
        policy = build_policy(work, work.config.optimizer)
        checkpoint.load_training_state(saved, policy.model, policy.optimizer)
        work.display.say(f"resuming {saved.folder} after step {progress.step} of {work.config.train.steps}")
        return progress, policy
    began = time.monotonic()
    source = work.config.model
    if work.config.sft.steps:
        if not (work.warm_start / "config.json").is_file():
            warm_start(work)
        source = models.Config(path=str(work.warm_start))
    policy = build_policy(work, work.config.optimizer)
    checkpoint.load_initial(policy.model, source, seed=work.config.seed)
    policy.weights_changed()
    return Progress(seconds=time.monotonic() - began), policy


def warm_start(work: Workplace) -> Policy:
    """Supervised fine-tuning on the source's demonstrations, kept as a Hugging Face folder."""
    policy = build_policy(work, work.config.sft.optimizer)
    checkpoint.load_initial(policy.model, work.config.model, seed=work.config.seed)
    policy.weights_changed()
    finished = fine_tune(
        policy,
        work.source,
        work.config.sft,
        work.folder,
        work.display,
        seed=work.config.seed,
        should_stop=work.asked_to_stop,
    )
    if not finished:
        raise Interrupted(
            "stopped during the warm start; nothing of it is kept",
            hint="start the same command again when there is time",
        )
    write_model(work, policy, work.warm_start)
    return policy


def build_policy(work: Workplace, optimizer: OptimizerConfig) -> Policy:
    """A policy of the run's architecture, its weights still to be loaded."""
    return Policy(
        work.config.policy, optimizer, work.hf_config, work.layout, temperature=work.config.rollout.temperature
    )


def build_engine(work: Workplace) -> EmbeddedEngine:
    """The engine that draws responses; its weights come with the first update."""
    tokenizer = work.source.tokenizer
    stop_token = tokenizer.eos_token_id
    return EmbeddedEngine(
        work.hf_config,
        stop_token=stop_token,
        pad_token=stop_token if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        batch_size=work.config.rollout.batch_size,
        device=distributed.device(),
        dtype=work.config.policy.dtype,
    )


def one_step(
    work: Workplace,
    policy: Policy,
    engine: EmbeddedEngine,
    collector: Collector,
    learner: Learner,
    progress: Progress,
) -> dict[str, float]:
    """Rollouts, advantages, updates, new weights for the engine; then evaluation and traces where they are due."""
    config, step = work.config, progress.step + 1
    clock = Clock()
    rollouts = collector.collect(config.train.prompts_per_step, start=progress.prompts_drawn)
    clock.lap("rollout")
    batches = split_into_mini_batches(
        with_advantages(rollouts.trajectories, config),
        config.train.prompts_per_mini_batch,
        group_size=config.rollout.samples,
        seed=random.Random(f"{config.seed}/{step}").getrandbits(62),
    )
    rate = config.optimizer.rate_at(progress.step, config.train.steps)
    lesson = learner.learn(batches, step=step, learning_rate=rate, clock=clock) if batches else Lesson({}, [])
    engine.update_weights(checkpoint.iter_hf_weights(policy.model), step)
    clock.lap("synchronise")
    metrics = {**of_rollouts(rollouts), **lesson.metrics, **clock.laps()}
    metrics["tokens_per_second"] = sum(len(t.response) for t in rollouts.trajectories) / metrics["time/step"]
    work.folder.metrics("train", step, metrics)
    progress.step, progress.prompts_drawn = step, progress.prompts_drawn + rollouts.prompts_drawn
    if step == 1 or is_due(step, config.run.trace_every, config.train.steps):
        records = trace_records(
            lesson.shares,
            work.source.tokenizer,
            step=step,
            count=config.run.trace_trajectories,
            group=work.layout.data,
        )
        work.folder.traces(step, records)
    if is_due(step, config.evaluation.every, config.train.steps):
        progress.after = measure(work, collector, step)
        metrics.update(progress.after)
    return metrics


def with_advantages(trajectories: list[Trajectory], config: RunConfig) -> list[Trajectory]:
    """Reward plus overlong punishment, compared within the group of each prompt."""
    if not trajectories:
        return []
    lengths = torch.tensor([len(trajectory.response) for trajectory in trajectories])
    rewards = torch.tensor([trajectory.reward for trajectory in trajectories])
    rewards = rewards + objective.overlong_penalty(lengths, config.objective)
    groups = torch.arange(len(trajectories)) // config.rollout.samples
    advantages = objective.group_advantages(rewards, groups, config.objective)
    return [replace(t, advantage=advantage) for t, advantage in zip(trajectories, advantages.tolist(), strict=True)]


def of_rollouts(rollouts: Rollouts) -> dict[str, float]:
    """Metrics of what was sampled; the pass rate counts groups without signal too."""
    tokens = sum(len(trajectory.response) for trajectory in rollouts.trajectories)
    return {
        "rollout/pass_rate": rollouts.mean_reward,
        "rollout/groups_sampled": rollouts.groups_sampled,
        "rollout/groups_kept": rollouts.groups_kept,
        "rollout/rounds": rollouts.rounds,
        "rollout/response_tokens": tokens / max(1, len(rollouts.trajectories)),
    }


def is_due(step: int, every: int, last: int) -> bool:
    """Every `every` steps, and at the end."""
    return step == last or (every > 0 and step % every == 0)


def measure(work: Workplace, collector: Collector, step: int) -> dict[str, float]:
    """Evaluate the engine's weights on the held-out prompts and write the result down."""
    result: Evaluation = evaluate(collector, work.source.held_out, work.config.evaluation)
    metrics = {
        "pass_rate": result.pass_rate,
        "pass_rate_se": result.standard_error,
        "greedy": result.greedy,
        "response_tokens": result.response_tokens,
    }
    work.folder.metrics("evaluation", step, metrics)
    return metrics


def keep_state(work: Workplace, policy: Policy, progress: Progress, *, stop: bool) -> None:
    """Save where it is due; where the run was asked to stop, save and raise `Interrupted`."""
    config = work.config.run
    finished = progress.step == work.config.train.steps
    if stop or finished or is_due(progress.step, config.checkpoint_every, work.config.train.steps):
        checkpoint.save_training_state(
            work.checkpoints,
            progress.step,
            policy.model,
            policy.optimizer,
            asdict(progress),
            keep=config.keep_checkpoints,
        )
    if stop and not finished:
        raise Interrupted(
            f"stopped after step {progress.step} of {work.config.train.steps}; the state is saved",
            hint=f"resume with `megatron-fork train {work.folder.path / 'resolved.yaml'}`",
        )


def write_model(work: Workplace, policy: Policy, folder: Path) -> None:
    """A Hugging Face folder with its tokenizer, which transformers, vLLM and SGLang load."""
    checkpoint.export_hf(policy, folder)
    if work.folder.writes:
        work.source.tokenizer.save_pretrained(folder)


def finish(work: Workplace, progress: Progress, *, parameters: int, seconds: float) -> None:
    """summary.json and the report, with what was before and after."""
    before, after = progress.before or {}, progress.after or progress.before or {}
    summary: dict[str, Any] = {
        **{f"{name}_before": before[name] for name in ("pass_rate", "greedy")},
        **{f"{name}_after": after[name] for name in ("pass_rate", "greedy")},
        "pass_rate_before_se": before["pass_rate_se"],
        "pass_rate_after_se": after["pass_rate_se"],
        "steps": progress.step,
        "seed": work.config.seed,
        "parameters": parameters,
        "world_size": work.layout.world.size(),
        "layout": str(work.layout),
        "wall_seconds": seconds,
    }
    work.folder.summary(summary)
    if not work.folder.writes:
        return
    report = write_report(work.folder.path)
    work.display.say(
        f"pass rate {before['pass_rate']:.3f} +- {before['pass_rate_se']:.3f} -> "
        f"{after['pass_rate']:.3f} +- {after['pass_rate_se']:.3f}   "
        f"greedy {before['greedy']:.3f} -> {after['greedy']:.3f}   {seconds:.0f} s"
    )
    work.display.say(f"report {report}")
