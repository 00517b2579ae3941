"""How a run starts (resumed, warm-started, or from its model folder), and how its parts are built."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import checkpoint, conversion, distributed, models, rollout
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.errors import GradientError, StopRequested
from megatron_fork.experience import Batch
from megatron_fork.objective import PolicyLoss, supervised_loss
from megatron_fork.policy import Critic, Learner, OptimizerConfig, Policy, SkippedUpdates, TrainedModels
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector, Engine, EngineContext
from megatron_fork.run.context import RunContext
from megatron_fork.run.state import RunState, checked, state_of
from megatron_fork.run.step_files import read_groups, read_step
from megatron_fork.vocab_parallel import TokenStatistics


def start(context: RunContext) -> tuple[RunState, TrainedModels]:
    """The run's state and models: resumed, warm-started, or from the model folder."""
    saved = context.checkpoints.latest()
    context.folder.begin()
    if saved is not None:
        return _resumed(context, saved)
    began = time.monotonic()
    context.folder.forget(after=-1, evaluations_after=-1)  # an earlier start that left no checkpoint
    if context.config.sft.steps and not has_warm_start(context):
        warm_start(context)
    trained = build_models(context, first_weights(context))
    for network in trained.trained.values():
        conversion.load_initial(network.model, first_weights(context), seed=context.config.seed)
        network.weights_changed()
    return RunState(seconds=time.monotonic() - began), trained


def _resumed(context: RunContext, saved: checkpoint.Saved) -> tuple[RunState, TrainedModels]:
    for reason in saved.refused:
        context.display.say(f"not used: {reason}")
    record = checked(saved.progress, f"{saved.folder}/manifest.json")
    state, beside = state_of(record), saved.folder / checkpoint.BESIDE
    context.folder.forget(after=state.step, evaluations_after=state.evaluated)
    trained = build_models(context, first_weights(context))
    checkpoint.load_training_state(saved, trained.trained)
    context.display.say(f"resuming {saved.folder} after step {state.step} of {context.config.train.steps}")
    in_flight = read_groups(beside) if distributed.rank() == 0 else []
    if state.partial is None:
        context.checkpoints.newest = state.step
        state.in_flight = in_flight
    else:
        read_step(beside, record["partial"], state.partial)  # type: ignore[arg-type]
        state.partial.in_flight, state.partial.is_saved = in_flight, True
    return state, trained


def first_weights(context: RunContext) -> models.ModelConfig:
    """The weights that reinforcement learning starts from: the warm start's folder, or the recipe's model."""
    return models.ModelConfig(path=str(context.warm_start)) if context.config.sft.steps else context.config.model


def build_models(context: RunContext, reference: models.ModelConfig | None) -> TrainedModels:
    """The networks that the objective needs; the reference has its weights, the others are still to be loaded.

    `reference`: where its weights are; None leaves them random as well.
    """
    config = context.config
    critic = frozen = None
    if config.objective.advantage == "gae":
        critic = Critic(
            config.policy,
            config.critic.optimizer,
            context.hf_config,
            context.layout,
            compute=config.compute,
            experts=replace(config.experts, replay=False),
        )
    if config.objective.kl_coef:
        frozen = build_policy(context, None)
    if frozen is not None and reference is not None:
        conversion.load_initial(frozen.model, reference, seed=config.seed)
    return TrainedModels(build_policy(context, config.optimizer), critic, frozen)


def has_warm_start(context: RunContext) -> bool:
    """Whether the folder holds a finished warm start; `claim` has checked that its settings are this run's."""
    return (context.warm_start / "config.json").is_file()


def warm_start(context: RunContext) -> Policy:
    """Fine-tune on the source's demonstrations and write a Hugging Face folder; continues an interrupted warm start."""
    policy = build_policy(context, context.config.sft.optimizer)
    if has_warm_start(context):
        conversion.load_initial(
            policy.model, models.ModelConfig(path=str(context.warm_start)), seed=context.config.seed
        )
        policy.weights_changed()
        return policy
    place = context.folder.path / "warm_start_state"
    state = checkpoint.Checkpoints(place, run=context.identity, formerly=context.formerly, keep=1)
    saved = state.latest()
    if saved is None:
        conversion.load_initial(policy.model, context.config.model, seed=context.config.seed)
        policy.weights_changed()
    else:
        checkpoint.load_training_state(saved, {"policy": policy})
    first = saved.progress["step"] if saved else 0
    skips = skips_of(context, dict(saved.progress.get("skipped_in_a_row", {})) if saved else {})
    context.folder.forget(warm_start_after=first)
    with context.stop.remembered():
        done, steps = first, context.config.sft.steps
        try:
            for done in fine_tune(context, policy, skips, first=first):
                if done < steps:
                    context.stop_point()
        except (StopRequested, GradientError) as request:
            state.save(done, {"policy": policy}, {"step": done, "skipped_in_a_row": skips.in_a_row})
            state.wait()
            if isinstance(request, GradientError):
                context.folder.ends_by_gradients(0, f"warm start: {request.message}")
                raise
            raise context.interrupted(f"stopped after step {done} of {steps} of the warm start") from request
        write_model(context, policy, context.warm_start)
    return policy


def fine_tune(context: RunContext, policy: Policy, skips: SkippedUpdates, *, first: int) -> Iterator[int]:
    """Imitate the source's demonstrations from step `first` on, by cross-entropy; after each step, how many are done."""
    config, seed = context.config.sft, context.config.seed
    with context.display.stage("sft", config.steps, done=first) as stage:
        for step in range(first, config.steps):
            started = time.perf_counter()
            batch = policy.share(Batch(context.source.demonstrations(config.batch, step=step, seed=seed)))
            count = torch.tensor(batch.response_tokens, device=distributed.device())
            tokens = int(collectives.all_reduce_sum(count, policy.layout.data))

            def loss_of(statistics: TokenStatistics, _: Tensor, tokens: int = tokens) -> PolicyLoss:
                return supervised_loss(statistics.logprob, normalizer=tokens)

            everything = torch.ones(batch.response_tokens, dtype=torch.bool)
            rate = config.optimizer.rate_at(step, config.steps)
            update = policy.update(batch, everything, loss_of, learning_rate=rate)
            skips.note("policy", update, f"warm start, step {step + 1} of {config.steps}")
            skips.check()
            seconds = time.perf_counter() - started
            metrics = {
                "update/skipped": float(not update.is_applied),
                "loss": update.loss,
                "gradient_norm": update.gradient_norm,
                "learning_rate": rate,
                "tokens_per_second": tokens / seconds,
                "time/step": seconds,
            }
            context.folder.metrics("sft", step + 1, metrics)
            stage.advance(metrics, every_seconds=5.0)
            yield step + 1


class Surroundings(Protocol):
    """What a policy is built of; a run's context has it, and that of a model alone."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def layout(self) -> distributed.Layout: ...
    @property
    def hf_config(self) -> PretrainedConfig: ...


def build_policy(context: Surroundings, optimizer: OptimizerConfig | None) -> Policy:
    """A policy of the architecture of `context`; its weights are still to be loaded."""
    return Policy(
        context.config.policy,
        optimizer,
        context.hf_config,
        context.layout,
        temperature=context.config.rollout.temperature,
        head=context.config.vocab_parallel,
        compute=context.config.compute,
        # The frozen reference chooses its own experts: its weights differ, and so would its best experts.
        experts=context.config.experts if optimizer else None,
    )


def build_engine(context: RunContext, *, save: Callable[[], None] = lambda: None) -> Engine:
    """The engine that draws responses; the first update brings its weights. `save` is called before waiting for servers."""
    return rollout.build_engine(
        EngineContext(
            context.config.rollout,
            context.hf_config,
            context.source.tokenizer,
            context.stop_tokens,
            longest_prompt=context.source.longest_prompt,
            folder=context.folder.path,
            world=context.layout.world,
            device=distributed.device(),
            dtype=context.config.policy.dtype,
            records_experts=context.config.experts.replay,
            save=save,
            stop_point=context.stop.local_stop_point,
            say=context.display.say,
        )
    )


def build_collector(
    context: RunContext, engine: Engine, rewards: RewardPool, state: RunState | None = None
) -> Collector:
    """The collector of rollouts; it continues the prompt groups that `state` has in flight."""
    config = context.config
    collector = Collector(
        config.rollout,
        engine,
        context.source,
        rewards,
        groups=config.train.prompts_per_step,
        world=context.layout.world,
        seed=config.seed,
    )
    if state is not None:
        is_being_drawn = state.partial is not None and state.partial.trajectories is None
        counts = state.partial.counts if state.partial is not None and is_being_drawn else None
        collector.restore((state.partial or state).in_flight, counts)
    return collector


def skips_of(context: RunContext, in_a_row: dict[str, int]) -> SkippedUpdates:
    """The count of updates that are not applied; it goes on from `in_a_row`, and changes it."""
    return SkippedUpdates(context.config.train.max_skipped_updates, in_a_row, context.display.say)


def build_learner(context: RunContext, models: TrainedModels, state: RunState) -> Learner:
    config = context.config
    return Learner(
        models,
        config.selection,
        config.objective,
        mismatch_limit=config.rollout.mismatch_limit,
        critic_epochs=config.critic.epochs,
        skips=skips_of(context, state.skipped_in_a_row),
    )


def write_model(context: RunContext, policy: Policy, folder: Path) -> None:
    """Write a complete Hugging Face folder, which transformers, vLLM and SGLang load."""
    conversion.export_hf(policy, folder)
    if context.folder.writes:
        context.model_files.write(folder)
