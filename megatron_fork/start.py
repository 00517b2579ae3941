"""How a run begins: resumed, warm-started, or as its model folder has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_fork import checkpoint, distributed, models, unfinished
from megatron_fork.distributed import collectives
from megatron_fork.policy import Critic, Networks, OptimizerConfig, Policy
from megatron_fork.progress import Progress
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import (
    Collector,
    ColocatedEngine,
    DealtEngine,
    EmbeddedEngine,
    Engine,
    RemoteEngine,
)
from megatron_fork.supervised import fine_tune
from megatron_fork.unfinished import Unfinished
from megatron_fork.workplace import Workplace


def start(work: Workplace) -> tuple[Progress, Networks, Unfinished | None]:
    """Networks as they stand: resumed, warm-started, or as the model folder has them; and a step that was begun."""
    saved = work.checkpoints.latest()
    work.folder.begin()
    if saved is not None:
        for reason in saved.refused:
            work.display.say(f"not used: {reason}")
        progress = Progress.of_record(saved.progress, f"{saved.folder}/manifest.json")
        work.folder.forget(after=progress.step)
        networks = build_networks(work, first_weights(work))
        checkpoint.load_training_state(saved, networks.trained)
        work.display.say(f"resuming {saved.folder} after step {progress.step} of {work.config.train.steps}")
        begun, beside = None, saved.folder / checkpoint.BESIDE
        if progress.unfinished is not None:
            begun = unfinished.read(beside, progress.unfinished)
        groups = unfinished.read_groups(beside) if distributed.rank() == 0 else []
        return replace(progress, unfinished=None, under_way=groups), networks, begun
    began = time.monotonic()
    work.folder.forget(after=-1)  # of a start that left no checkpoint
    if work.config.sft.steps and not has_warm_start(work):
        warm_start(work)
    networks = build_networks(work, first_weights(work))
    for network in networks.trained.values():
        checkpoint.load_initial(network.model, first_weights(work), seed=work.config.seed)
        network.weights_changed()
    return Progress(seconds=time.monotonic() - began), networks, None


def first_weights(work: Workplace) -> models.Config:
    """What reinforcement learning sets out from: the warm start's folder, or the recipe's model."""
    return models.Config(path=str(work.warm_start)) if work.config.sft.steps else work.config.model


def build_networks(work: Workplace, reference: models.Config) -> Networks:
    """What the objective asks for; the reference has its weights, the others' are still to be loaded."""
    config = work.config
    critic = frozen = None
    if config.objective.advantage == "gae":
        critic = Critic(
            config.policy,
            config.critic.optimizer,
            work.hf_config,
            work.layout,
            compute=config.compute,
            experts=replace(config.experts, replay=False),
        )
    if config.objective.kl_coef:
        frozen = build_policy(work, None)
        checkpoint.load_initial(frozen.model, reference, seed=config.seed)
    return Networks(build_policy(work, config.optimizer), critic, frozen)


def has_warm_start(work: Workplace) -> bool:
    """Whether the folder holds a finished one; its settings are the run's, which opening the folder has made sure of."""
    return (work.warm_start / "config.json").is_file()


def warm_start(work: Workplace) -> Policy:
    """Supervised fine-tuning on the source's demonstrations, kept as a Hugging Face folder; taken up where one was begun."""
    policy = build_policy(work, work.config.sft.optimizer)
    if has_warm_start(work):
        checkpoint.load_initial(policy.model, models.Config(path=str(work.warm_start)), seed=work.config.seed)
        policy.weights_changed()
        return policy
    place = work.folder.path / "warm_start_state"
    state = checkpoint.Checkpoints(place, run=work.identity, formerly=work.formerly, keep=1)
    saved = state.latest()
    if saved is None:
        checkpoint.load_initial(policy.model, work.config.model, seed=work.config.seed)
        policy.weights_changed()
    else:
        checkpoint.load_training_state(saved, {"policy": policy})
    first = saved.progress["step"] if saved else 0
    work.folder.forget(warm_start_after=first)
    with work.stop.remembered():
        done = fine_tune(
            policy,
            work.source,
            work.config.sft,
            work.folder,
            work.display,
            seed=work.config.seed,
            first=first,
            should_stop=work.asked_to_stop,
        )
        if done < work.config.sft.steps:
            state.save(done, {"policy": policy}, {"step": done})
            state.wait()
            raise work.interrupted(f"stopped after step {done} of {work.config.sft.steps} of the warm start")
        write_model(work, policy, work.warm_start)
    return policy


def build_policy(work: Workplace, optimizer: OptimizerConfig | None) -> Policy:
    """A policy of the run's architecture, its weights still to be loaded."""
    return Policy(
        work.config.policy,
        optimizer,
        work.hf_config,
        work.layout,
        temperature=work.config.rollout.temperature,
        head=work.config.vocab_parallel,
        compute=work.config.compute,
        # The frozen reference routes by itself: its weights are others, and so would be its best experts.
        experts=work.config.experts if optimizer else None,
    )


def build_engine(work: Workplace, *, save: Callable[[], None] = lambda: None) -> Engine:
    """The engine that draws responses; its weights come with the first update. `save`: before a wait for servers."""
    config, world = work.config.rollout, work.layout.world
    if config.engine in ("vllm", "sglang"):
        return RemoteEngine(
            config,
            work.hf_config,
            stop_tokens=work.stop_tokens,
            folder=work.folder.path / "engine_weights",
            world=world,
            save=save,
            should_stop=work.stop.is_asked,
            say=work.display.say,
        )
    is_embedded = config.engine == "embedded"
    engine: Engine = _build_embedded(work) if is_embedded else _build_colocated(work)
    draws_in_rounds = is_embedded and config.max_staleness == 0
    if draws_in_rounds or collectives.size(world) == 1:
        return engine
    ranks_per_engine = 1 if is_embedded else config.colocated.tensor
    return DealtEngine(engine, world=world, ranks_per_engine=ranks_per_engine, batch_size=config.batch_size)


def _build_embedded(work: Workplace) -> EmbeddedEngine:
    tokenizer = work.source.tokenizer
    return EmbeddedEngine(
        work.hf_config,
        stop_tokens=work.stop_tokens,
        pad_token=work.stop_tokens[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        batch_size=work.config.rollout.batch_size,
        device=distributed.device(),
        dtype=work.config.policy.dtype,
        records_experts=work.config.experts.replay,
    )


def _build_colocated(work: Workplace) -> ColocatedEngine:
    config = work.config.rollout
    return ColocatedEngine(
        config.colocated,
        work.hf_config,
        stop_tokens=work.stop_tokens,
        batch_size=config.batch_size,
        max_tokens=work.source.longest_prompt + config.max_response_tokens,
        dtype=work.config.policy.dtype,
    )


def build_collector(work: Workplace, engine: Engine, rewards: RewardPool) -> Collector:
    config = work.config
    return Collector(
        config.rollout,
        engine,
        work.source,
        rewards,
        groups=config.train.prompts_per_step,
        world=work.layout.world,
        seed=config.seed,
    )


def write_model(work: Workplace, policy: Policy, folder: Path) -> None:
    """A Hugging Face folder with all that it needs, which transformers, vLLM and SGLang load."""
    checkpoint.export_hf(policy, folder)
    if work.folder.writes:
        work.model_files.write(folder)
