"""From a prompt to a request, and from what an engine and a verifier say to a trajectory."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import Score
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Request


def request_for(prompt: Prompt, number: int, seed: int, config: RolloutConfig, *, greedy: bool = False) -> Request:
    """For one response to a prompt, as the config has it drawn."""
    by_entropy = None if greedy or config.entropy_temperature.is_plain else config.entropy_temperature
    return Request(
        number=number,
        tokens=prompt.tokens,
        seed=seed,
        temperature=0.0 if greedy else config.temperature,
        max_tokens=config.max_response_tokens,
        top_p=1.0 if greedy else config.top_p,
        top_k=0 if greedy else config.top_k,
        entropy_temperature=by_entropy,
    )


def trajectory_of(completion: Completion, prompt: Prompt, text: str, score: Score) -> Trajectory:
    return Trajectory(
        number=completion.number,
        prompt=prompt,
        response=completion.tokens,
        rollout_logprob=completion.logprob,
        finish_reason=completion.finish_reason,
        weight_version=completion.weight_version,
        versions=completion.versions,
        experts=completion.experts,
        text=text,
        reward=score.value,
        reason=score.reason,
        failure=score.failure,
    )


def seed_of(*parts: int) -> int:
    """One for every run seed, draw and sample."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True)
