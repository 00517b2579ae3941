"""A model and an engine without a run: what evaluations and analyses of a model need. No run folder is claimed or written."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from megatron_fork import checkpoint, conversion, distributed, models, rollout
from megatron_fork.config import RunConfig
from megatron_fork.data import PromptSource, tokenizer_of_task
from megatron_fork.distributed import Layout, parallel_layout
from megatron_fork.errors import ConfigError, Interrupted, Preempted
from megatron_fork.policy import Policy
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector, Engine, EngineContext, PolicyWeights, RolloutConfig
from megatron_fork.run.checks import check_kernels, check_tokenizer, matching_ends, tokenizer_of
from megatron_fork.run.console import Display
from megatron_fork.run.ending import end_with
from megatron_fork.run.interruption import StoppedAtOnce, StopRequest
from megatron_fork.run.place import checkpoint_of
from megatron_fork.run.setup import build_policy


@dataclass(frozen=True)
class ModelContext:
    """A model's surroundings on this rank; nothing of it is allocated yet."""

    config: RunConfig
    layout: Layout
    hf_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    """Any of them ends a response; the tokenizer's own comes first."""
    display: Display
    stop: StopRequest


@contextmanager
def model_context(
    config: RunConfig, display: Display, *, when_stopped: str = "start it again"
) -> Iterator[ModelContext]:
    """Connect the ranks and check the model of `config` and its layout; closes everything at the end.

    Prompts, verifier and engine are not looked at: who uses them checks them. A signal ends it at once, with the hint
    `when_stopped`, but for those who use `stop.remembered`. Raises a `MegatronForkError` for a model that cannot be built here.
    """
    distributed.initialize()
    with (
        _modules_left_alone(),
        distributed.watching_ranks(config.run.rank_timeout_seconds, end_with) as watch,
    ):
        check_kernels(config)
        hf_config = conversion.resolve_config(config.model)
        models.check_divides(hf_config, config.parallel)
        models.check_recomputation(hf_config, config.parallel, config.compute)
        if checkpoint_of(config.model) is None:
            conversion.check_initial(config.model, hf_config)
        config.parallel.data(distributed.world_size())
        tokenizer = tokenizer_of(config.model) or tokenizer_of_task(config.data.source)
        check_tokenizer(config.model, hf_config, tokenizer)
        stop_tokens = matching_ends(config, hf_config, tokenizer)
        with (
            StopRequest() as stop,
            parallel_layout(config.parallel) as layout,
            watch.reporting(),
            _stopping(stop, when_stopped),
        ):
            yield ModelContext(config, layout, hf_config, tokenizer, stop_tokens, display, stop)


@contextmanager
def _modules_left_alone() -> Iterator[None]:
    """Python's garbage collector looks only at what is made meanwhile.

    Responses are many small objects, for which it visits everything again and again, all modules among it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _stopping(stop: StopRequest, hint: str) -> Iterator[None]:
    try:
        with stop.at_once():
            yield
    except (StoppedAtOnce, Exception) as error:  # a rank that ends makes others fail
        if not stop.has_raised:
            raise
        raise (Interrupted if stop.by_user else Preempted)("stopped before the end", hint=hint) from error


def check_served(config: RolloutConfig, served: str) -> None:
    """Raise `ConfigError` unless the engine has servers, which alone can hold the model `served`."""
    if not rollout.engine_kind(config.engine).has_servers:
        raise ConfigError(
            f"--engine-holds-model={served} with rollout.engine={config.engine}, which gets its weights here",
            hint="only servers hold a model of their own: rollout.engine=vllm or sglang",
        )


def load_policy(context: ModelContext) -> Policy:
    """The policy with its weights, for statistics passes and weight updates; it has no optimizer. Every rank calls it.

    Its log-probs and entropies are at `rollout.temperature`.
    """
    policy = build_policy(context, None)
    saved = checkpoint_of(context.config.model)
    if saved is None:
        conversion.load_initial(policy.model, context.config.model, seed=context.config.seed)
    else:
        checkpoint.verified(saved, group=context.layout.world)
        conversion.load_megatron(policy.model, saved / "policy")
    return policy


def build_engine(context: ModelContext, *, folder: Path, longest_prompt: int) -> Engine:
    """The engine of `rollout.engine`, to be closed; `give_weights` brings its weights.

    `folder`: where weights on disk go for servers to read; `longest_prompt`: in tokens.
    """
    rollout.check_engine(context.config.rollout, ranks=context.layout.world.size())
    return rollout.build_engine(
        EngineContext(
            context.config.rollout,
            context.hf_config,
            context.tokenizer,
            context.stop_tokens,
            longest_prompt=longest_prompt,
            folder=folder,
            world=context.layout.world,
            device=distributed.device(),
            dtype=context.config.policy.dtype,
            stop_point=context.stop.local_stop_point,
            say=context.display.say,
        )
    )


def give_weights(context: ModelContext, policy: Policy, engine: Engine, source: PromptSource) -> None:
    """Send the policy's weights to the engine, and verify on prompts of `source` that it has them."""
    engine.update_weights(PolicyWeights(policy), 0)
    rollout.probe(engine, policy, source.held_out or source.training, context.config.rollout)


def build_collector(context: ModelContext, engine: Engine, rewards: RewardPool, source: PromptSource) -> Collector:
    """A collector whose `sample` draws scored responses to any prompts of the model's tokenizer."""
    return Collector(
        context.config.rollout,
        engine,
        source,
        rewards,
        groups=1,
        world=context.layout.world,
        seed=context.config.seed,
    )
