"""What every rollout engine offers: requests by token ids in, completions with the engine's own log-probs out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from megatron_fork.errors import ConfigError
from megatron_fork.experience import FinishReason


@dataclass
class Config:
    """How responses are drawn."""

    engine: Literal["embedded"] = "embedded"
    samples: int = 16
    """Responses per prompt: the group."""
    temperature: float = 1.0
    max_response_tokens: int = 20480
    batch_size: int = 256
    """Sequences that the embedded engine decodes at a time."""
    dynamic_sampling: bool = True
    """Replace groups whose rewards are all equal by new prompts."""
    max_rounds: int = 10
    """Rounds of generation a step at most; what has signal by then is trained on."""
    mismatch_limit: float = 0.01
    """Largest |engine - trainer| log-prob of a token, in nats, that a step may show before the run stops."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_response_tokens", "batch_size", "max_rounds"):
            if vars(self)[name] < 1:
                raise ConfigError(f"rollout.{name}={vars(self)[name]} is not a count", hint="give 1 or more")
        for name in ("temperature", "mismatch_limit"):
            if vars(self)[name] <= 0.0:
                raise ConfigError(
                    f"rollout.{name}={vars(self)[name]} is not positive", hint="temperature 1 is the paper's"
                )
        if self.samples < 2 and self.dynamic_sampling:
            raise ConfigError(
                "rollout.samples=1 with rollout.dynamic_sampling=true: a group of one never has mixed rewards",
                hint="draw at least 2 samples, say 16",
            )


@dataclass(frozen=True)
class Request:
    """One response to draw; the same `seed` gives the same response, whatever else is in the batch."""

    number: int
    tokens: tuple[int, ...]
    seed: int
    temperature: float
    """0 takes the most likely token."""
    max_tokens: int


@dataclass(frozen=True)
class Completion:
    """A drawn response; `logprob` is under the softmax at the request's temperature (at 1 where that is 0)."""

    number: int
    tokens: tuple[int, ...]
    logprob: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int
    experts: Tensor | None = None
    """`[prompt and response tokens but the last, layers, k]` int16; None where the engine does not report its routing."""


class Engine(Protocol):
    """A source of responses under the current weights."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take on all weights, under Hugging Face names."""

    def abort(self) -> None:
        """Stop the requests in progress."""

    def health(self) -> bool:
        """Whether requests can be served."""

    def close(self) -> None:
        """Give back what the engine holds."""
