"""How a run begins: resumed, warm-started, or as its model folder has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_fork import checkpoint, conversion, distributed, models, rollout
from megatron_fork.policy import Critic, OptimizerConfig, Policy, TrainedModels
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Collector, Engine, EngineContext
from megatron_fork.run import unfinished
from megatron_fork.run.context import RunContext
from megatron_fork.run.fine_tuning import fine_tune
from megatron_fork.run.progress import Progress
from megatron_fork.run.unfinished import Unfinished


def start(context: RunContext) -> tuple[Progress, TrainedModels, Unfinished | None]:
    """TrainedModels as they stand: resumed, warm-started, or as the model folder has them; and a step that was begun."""
    saved = context.checkpoints.latest()
    context.folder.begin()
    if saved is not None:
        for reason in saved.refused:
            context.display.say(f"not used: {reason}")
        progress = Progress.of_record(saved.progress, f"{saved.folder}/manifest.json")
        context.folder.forget(after=progress.step)
        networks = build_networks(context, first_weights(context))
        checkpoint.load_training_state(saved, networks.trained)
        context.display.say(f"resuming {saved.folder} after step {progress.step} of {context.config.train.steps}")
        begun, beside = None, saved.folder / checkpoint.BESIDE
        if progress.unfinished is not None:
            begun = unfinished.read(beside, progress.unfinished)
        groups = unfinished.read_groups(beside) if distributed.rank() == 0 else []
        return replace(progress, unfinished=None, under_way=groups), networks, begun
    began = time.monotonic()
    context.folder.forget(after=-1)  # of a start that left no checkpoint
    if context.config.sft.steps and not has_warm_start(context):
        warm_start(context)
    networks = build_networks(context, first_weights(context))
    for network in networks.trained.values():
        conversion.load_initial(network.model, first_weights(context), seed=context.config.seed)
        network.weights_changed()
    return Progress(seconds=time.monotonic() - began), networks, None


def first_weights(context: RunContext) -> models.ModelConfig:
    """What reinforcement learning sets out from: the warm start's folder, or the recipe's model."""
    return models.ModelConfig(path=str(context.warm_start)) if context.config.sft.steps else context.config.model


def build_networks(context: RunContext, reference: models.ModelConfig) -> TrainedModels:
    """What the objective asks for; the reference has its weights, the others' are still to be loaded."""
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
        conversion.load_initial(frozen.model, reference, seed=config.seed)
    return TrainedModels(build_policy(context, config.optimizer), critic, frozen)


def has_warm_start(context: RunContext) -> bool:
    """Whether the folder holds a finished one; its settings are the run's, which opening the folder has made sure of."""
    return (context.warm_start / "config.json").is_file()


def warm_start(context: RunContext) -> Policy:
    """Supervised fine-tuning on the source's demonstrations, kept as a Hugging Face folder; taken up where one was begun."""
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
    context.folder.forget(warm_start_after=first)
    with context.stop.remembered():
        done = fine_tune(
            policy,
            context.source,
            context.config.sft,
            context.folder,
            context.display,
            seed=context.config.seed,
            first=first,
            should_stop=context.asked_to_stop,
        )
        if done < context.config.sft.steps:
            state.save(done, {"policy": policy}, {"step": done})
            state.wait()
            raise context.interrupted(f"stopped after step {done} of {context.config.sft.steps} of the warm start")
        write_model(context, policy, context.warm_start)
    return policy


def build_policy(context: RunContext, optimizer: OptimizerConfig | None) -> Policy:
    """A policy of the run's architecture, its weights still to be loaded."""
    return Policy(
        context.config.policy,
        optimizer,
        context.hf_config,
        context.layout,
        temperature=context.config.rollout.temperature,
        head=context.config.vocab_parallel,
        compute=context.config.compute,
        # The frozen reference routes by itself: its weights are others, and so would be its best experts.
        experts=context.config.experts if optimizer else None,
    )


def build_engine(context: RunContext, *, save: Callable[[], None] = lambda: None) -> Engine:
    """The engine that draws responses; its weights come with the first update. `save`: before a wait for servers."""
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
            should_stop=context.stop.is_asked,
            say=context.display.say,
        )
    )


def build_collector(context: RunContext, engine: Engine, rewards: RewardPool) -> Collector:
    config = context.config
    return Collector(
        config.rollout,
        engine,
        context.source,
        rewards,
        groups=config.train.prompts_per_step,
        world=context.layout.world,
        seed=config.seed,
    )


def write_model(context: RunContext, policy: Policy, folder: Path) -> None:
    """A Hugging Face folder with all that it needs, which transformers, vLLM and SGLang load."""
    conversion.export_hf(policy, folder)
    if context.folder.writes:
        context.model_files.write(folder)
