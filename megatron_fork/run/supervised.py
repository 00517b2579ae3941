"""The warm start of a recipe alone, as `megatron-fork sft` runs it."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from megatron_fork.analysis import write_report
from megatron_fork.config import RunConfig
from megatron_fork.errors import RunFolderError
from megatron_fork.rewards import RewardPool
from megatron_fork.run.console import Display
from megatron_fork.run.context import prepare
from megatron_fork.run.engine_side import sync_weights
from megatron_fork.run.evaluations import evaluate_all
from megatron_fork.run.setup import build_collector, build_engine, warm_start


def supervise(config: RunConfig, display: Display) -> Path:
    """Fine-tune on the source's demonstrations and evaluate; returns the model folder."""
    with prepare(config, display) as context, RewardPool(config.rewards) as rewards, ExitStack() as stack:
        if context.checkpoints.latest() is not None:
            raise RunFolderError(
                f"run.folder={context.folder.path} holds a run that is past its warm start",
                hint=f"its warm-start model is {context.warm_start}; for another warm start choose another run.folder",
            )
        context.folder.begin()
        context.folder.forget(after=-1)
        policy = warm_start(context)
        engine = stack.enter_context(closing(build_engine(context)))
        sync_weights(context, policy, engine, 0)
        evaluate_all(context, build_collector(context, engine, rewards), 0)
        if context.folder.writes:
            display.say(f"model {context.warm_start}")
            display.say(f"report {write_report(context.folder.path)}")
        return context.warm_start
