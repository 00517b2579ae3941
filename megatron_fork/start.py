"""How a run begins: resumed, warm-started, or as its model folder has it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from megatron_fork import checkpoint, distributed, models
from megatron_fork.errors import Interrupted
from megatron_fork.policy import OptimizerConfig, Policy
from megatron_fork.rollout import EmbeddedEngine
from megatron_fork.supervised import fine_tune
from megatron_fork.workplace import Workplace


@dataclass
class Progress:
    """Where a run stands; with the tensors of a checkpoint it is all that a run needs to go on."""

    step: int = 0
    prompts_drawn: int = 0
    seconds: float = 0.0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None


def start(work: Workplace) -> tuple[Progress, Policy]:
    """The policy of this run as it stands: resumed, warm-started, or as its model folder has it."""
    saved = checkpoint.latest(work.checkpoints)
    if saved is not None:
        progress = Progress(**saved.progress)
        work.folder.forget_after(progress.step)
        policy = build_policy(work, work.config.optimizer)
        checkpoint.load_training_state(saved, {"policy": policy})
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
    state = work.folder.path / "warm_start_state"
    saved = checkpoint.latest(state)
    if saved is None:
        checkpoint.load_initial(policy.model, work.config.model, seed=work.config.seed)
        policy.weights_changed()
    else:
        checkpoint.load_training_state(saved, {"policy": policy})
    done = fine_tune(
        policy,
        work.source,
        work.config.sft,
        work.folder,
        work.display,
        seed=work.config.seed,
        first=saved.progress["step"] if saved else 0,
        should_stop=work.asked_to_stop,
    )
    if done < work.config.sft.steps:
        checkpoint.save_training_state(state, done, {"policy": policy}, {"step": done}, keep=1)
        raise Interrupted(
            f"stopped after step {done} of {work.config.sft.steps} of the warm start; the state is saved",
            hint=f"resume with `megatron-fork train {work.folder.path / 'resolved.yaml'}`",
        )
    write_model(work, policy, work.warm_start)
    return policy


def build_policy(work: Workplace, optimizer: OptimizerConfig) -> Policy:
    """A policy of the run's architecture, its weights still to be loaded."""
    return Policy(
        work.config.policy,
        optimizer,
        work.hf_config,
        work.layout,
        temperature=work.config.rollout.temperature,
        head=work.config.vocab_parallel,
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


def write_model(work: Workplace, policy: Policy, folder: Path) -> None:
    """A Hugging Face folder with its tokenizer, which transformers, vLLM and SGLang load."""
    checkpoint.export_hf(policy, folder)
    if work.folder.writes:
        work.source.tokenizer.save_pretrained(folder)
