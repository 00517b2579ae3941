"""The loop: collect rollouts, advantages, updates on the selected tokens, new weights for the engine, log, checkpoint.

A run is determined by its recipe. Every random choice comes from the seed and a counter (the prompt drawn, the sample, the
update), so no random state has to be saved, and a resumed run continues as the uninterrupted one would have. If a step is
interrupted, `state.partial` holds what has been done of it, and `checkpointing` saves it.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from megatron_fork import run
from megatron_fork.clock import Clock
from megatron_fork.config import RunConfig
from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch
from megatron_fork.policy import LearningRates, split_into_mini_batches
from megatron_fork.rewards import RewardPool


def train(config: RunConfig, display: run.Display) -> Path:
    """Run a recipe to its end, from its latest checkpoint if there is one; returns the run folder."""
    with run.prepare(config, display) as context, RewardPool(config.rewards) as rewards, ExitStack() as stack:
        display.say(f"run folder {context.folder.path}  ({context.layout})")
        state, models = run.start(context)
        began = time.monotonic() - state.seconds
        engine = run.build_engine(context, save=lambda: run.save(context, models, state))
        stack.enter_context(closing(engine))
        collector = run.build_collector(context, engine, rewards, state)
        learner = run.build_learner(context, models, state)
        run.sync_weights(context, models.policy, engine, state.step)
        if state.before is None:
            state.before = run.evaluate_all(context, collector, 0)
        with (
            display.stage("train", config.train.steps, done=state.step) as stage,
            run.checkpointing(context, models, state),
        ):
            run.evaluate_where_due(context, collector, state)
            while state.step < config.train.steps:
                clock = Clock()
                step = run.collect(context, collector, state)
                clock.lap("rollout")
                context.stop_point()
                engine.rest()
                learner.step(
                    mini_batches(step, config, state.step + 1),
                    step=state.step + 1,
                    rates=learning_rates(config, state.step + 1),
                    clock=clock,
                    result=step.result,
                    stop_point=context.stop_point,
                )
                state.finish_step(is_evaluated=partial(run.is_evaluated, context))
                failure: RolloutError | None = None
                try:
                    run.sync_weights(context, models.policy, engine, state.step)
                except RolloutError as error:  # servers that fail, on every rank alike: the step is done all the same
                    failure = error
                clock.lap("synchronise")
                metrics = run.log_step(context, state, step, clock.laps())
                if failure is not None:
                    raise failure
                stage.advance({**metrics, **run.evaluate_where_due(context, collector, state)})
                state.seconds = time.monotonic() - began
                run.checkpoint(context, models, state)
        with context.stop.remembered():
            run.write_model(context, models.policy, context.folder.path / "model")
        run.finish(context, state, parameters=engine.parameters, seconds=time.monotonic() - began)
        return context.folder.path


def mini_batches(rollouts: run.PartialStep, config: RunConfig, step: int) -> list[Batch]:
    """The trajectories of a step in mini-batches, shuffled with the seed and the step's number."""
    return split_into_mini_batches(
        rollouts.trajectories or [],
        config.train.prompts_per_mini_batch,
        group_size=config.rollout.samples,
        seed=random.Random(f"{config.seed}/{step}").getrandbits(62),
    )


def learning_rates(config: RunConfig, step: int) -> LearningRates:
    """The rates of a step; the policy's is 0 until the critic has warmed up."""
    waits = config.objective.advantage == "gae" and step <= config.critic.warmup_steps
    return LearningRates(
        policy=0.0 if waits else config.optimizer.rate_at(step - 1, config.train.steps),
        critic=config.critic.optimizer.rate_at(step - 1, config.train.steps),
    )
