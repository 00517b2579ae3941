"""Requests for prompts, the tokens that end a response, and trajectories from completions and their scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from megatron_fork.errors import ModelError
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import Score
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Request


def request_for(prompt: Prompt, number: int, seed: int, config: RolloutConfig, *, greedy: bool = False) -> Request:
    """The request for one response to a prompt, with the config's sampling settings."""
    by_entropy = None if greedy or config.entropy_temperature.is_plain else config.entropy_temperature
    return Request(
        number=number,
        tokens=prompt.tokens,
        seed=seed,
        temperature=0.0 if greedy else config.temperature,
        max_tokens=config.max_response_tokens,
        top_p=1.0 if greedy else config.top_p,
        top_k=0 if greedy else config.top_k,
        min_p=0.0 if greedy else config.min_p,
        reports_kept=config.replays_mask,
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
        kept=completion.kept,
        text=text,
        reward=score.value,
        reason=score.reason,
        failure=score.failure,
    )


def seed_of(*parts: int) -> int:
    """A seed of its own for every run seed, draw and sample."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True)


def stop_tokens_of(named: Mapping[str, object], vocabulary: int) -> tuple[int, ...]:
    """Every stop token that any source names, each once, in the order of the sources.

    Args:
        named: for each source an id, several ids, or None if it names none.
        vocabulary: the model's vocabulary size; ids lie below it.

    Raises:
        ModelError: a value is not a token of the model, or no source names a token.

    """
    found: dict[int, None] = {}
    for place, value in named.items():
        for token in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < vocabulary:
                raise ModelError(
                    f"{place} is {value!r}: {token!r} is not a token of a vocabulary of {vocabulary}",
                    hint="give token ids below the model's vocab_size, or remove the field",
                )
            found[token] = None
    if not found:
        raise ModelError(
            "no token ends a response: neither the tokenizer nor the model names one",
            hint="set rollout.stop_tokens to the ids that end a response",
        )
    return tuple(found)


def ends_in_words(tokens: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens with their text, as `151645 <|im_end|>, 151643 <|endoftext|>`."""
    texts = tokenizer.convert_ids_to_tokens(list(tokens))
    return ", ".join(f"{token} {text or '(not in the tokenizer)'}" for token, text in zip(tokens, texts, strict=True))
