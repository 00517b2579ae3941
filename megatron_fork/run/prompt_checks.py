"""Whether prompts fit the verifier that judges responses to them, and the model that reads them."""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.data import GENERATED, PromptSource
from megatron_fork.errors import ConfigError, ModelError
from megatron_fork.rewards import RewardsConfig


def check_lengths(config: RunConfig, hf_config: PretrainedConfig, source: PromptSource) -> None:
    """Raise `ModelError` if a prompt with its response may be longer than the model's longest sequence."""
    room = models.longest_sequence(hf_config)
    if source.longest_prompt + config.rollout.max_response_tokens > room:
        raise ModelError(
            f"the longest prompt has {source.longest_prompt} tokens, which with rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens} is more than the model's max_position_embeddings={room}",
            hint=f"lower rollout.max_response_tokens to {max(0, room - source.longest_prompt)} or less, or add "
            "rope_parameters of rope_type yarn to config.json",
        )


def check_verifier_fits(
    rewards: RewardsConfig, task: str, field: str = "data.source", *, place: str = "rewards"
) -> None:
    """Raise `ConfigError` unless the verifier, whose settings are at `place`, fits the source `task` that `field` names.

    A generated task needs the verifier of its name, or one of the user's own.
    """
    kind = rewards.kind
    fits = kind == task if task in GENERATED else kind not in GENERATED
    if not fits and ":" not in kind:
        hint = f"set {place}.kind={task}" if task in GENERATED else f"set {place}.kind=math, or module:function"
        raise ConfigError(f"{place}.kind={kind} does not fit {field}={task}", hint=hint)
    if kind == "reasoning_gym" and rewards.workers == 0:
        raise ConfigError(
            f"{place}.kind=reasoning_gym with {place}.workers=0",
            hint=f"set {place}.workers to 1 or more: only workers make its tasks",
        )
