"""What every rollout engine offers: requests by token ids in, completions with the engine's own log-probs out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megatron_fork.experience import FinishReason, VersionSpan
from megatron_fork.serving import EntropyTemperature


@dataclass(frozen=True)
class PartialResponse:
    """The part of a response that there already is; log-probs and versions as in `Completion`."""

    tokens: Sequence[int] = ()
    logprob: Sequence[float] = ()
    versions: tuple[VersionSpan, ...] = ()


@dataclass(frozen=True)
class Request:
    """One response to draw; `max_tokens` counts what has begun as well."""

    number: int
    tokens: tuple[int, ...]
    seed: int
    """The embedded engine draws the same response for the same seed and weights, whatever else it draws."""
    temperature: float
    """0 takes the most likely token."""
    max_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    entropy_temperature: EntropyTemperature | None = None
    """In place of a temperature, which is 1 then."""
    begun: PartialResponse = PartialResponse()


@dataclass(frozen=True)
class Completion:
    """A drawn response.

    `logprob` is under the softmax at the request's temperature (at 1 where that is 0, at each token's own where it depends
    on the entropy), of the whole vocabulary, but for vLLM with top-p or top-k: there of what they leave.
    """

    number: int
    tokens: Sequence[int]
    logprob: Sequence[float]
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    """Which weights wrote which tokens; the spans cover all of them, in order."""
    experts: Tensor | None = None
    """`[prompt and response tokens but the last, layers, k]` int16; None where the engine does not report its routing."""

    @property
    def weight_version(self) -> int:
        """Of the oldest weights that wrote a token."""
        return min(span.version for span in self.versions)


def answers(
    arriving: Callable[[], Completion | None], count: int, is_aborted: Callable[[], bool]
) -> Generator[Completion, None, None]:
    """The next `count` completions; fewer where the engine was aborted and has nothing more at the moment."""
    while count:
        completion = arriving()
        if completion is not None:
            count -= 1
            yield completion
        elif is_aborted():
            return


class Engine(Protocol):
    """A source of responses under the current weights. Every rank has one, and calls all but `close` with the others."""

    @property
    def is_coordinated(self) -> bool:
        """Whether the first rank draws the responses for all; otherwise each rank draws its own share."""

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand requests in for `completions`, and go on: servers begin at once, an engine in this process when asked."""

    def completions(self) -> Generator[Completion | None, None, None]:
        """Of what was submitted, as they finish; None where none is there at the moment. Without end: take one, and close it.

        What is in progress then goes on at servers, and is there when it is called again; an engine in this process must be
        told to `abort` first.
        """

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """The same requests of every server or engine that this rank speaks for, by its name."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take on all weights, under Hugging Face names. What can be iterated again is, for servers that come back later."""

    def abort(self) -> None:
        """Stop the requests in progress. Once the iterator says None or ends, `unfinished` has them, as far as they came."""

    def unfinished(self) -> list[Request]:
        """What the last `abort` left, to be continued by another `generate`."""

    def rest(self) -> None:
        """No request comes before the next weights: what is held on the trainer's devices may be given back until then."""

    def health(self) -> bool:
        """Whether requests can be served."""

    def close(self) -> None:
        """Give back what the engine holds."""


class InProcessEngine(Engine):
    """Most of an `Engine`; what derives from it draws, and takes on weights."""

    is_coordinated = False
    parameters = 0
    """Number of parameters, tied ones counted once; 0 where it has no model."""

    def __init__(self) -> None:
        self.version = -1
        """Of the weights; the first update gives it one."""
        self._aborted = False
        self._waiting: list[Request] = []
        self._unfinished: list[Request] = []

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order."""

    @abstractmethod
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take on all weights, under Hugging Face names, and set `version`; `weights` is gone through to its end."""

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting += requests

    def completions(self) -> Generator[Completion | None, None, None]:
        """What was submitted, as one batch, and None after it; an abort takes effect between two batches."""
        self._aborted = False
        while True:
            waiting, self._waiting = self._waiting, []
            yield from self.generate(waiting)
            yield None

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """None to be judged, where weights are copied within the process, tensor by tensor."""
        return {}

    def abort(self) -> None:
        """Take no further token."""
        self._aborted = True
        self._unfinished += self._waiting
        self._waiting = []

    def unfinished(self) -> list[Request]:
        left, self._unfinished = self._unfinished, []
        return left

    def rest(self) -> None:
        """It stays as it is: its weights are overwritten in place."""

    def health(self) -> bool:
        return self.version >= 0

    def close(self) -> None:
        """Nothing outlives the object."""
