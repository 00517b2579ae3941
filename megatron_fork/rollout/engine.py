"""The interface of every rollout engine: it takes requests of token ids, and gives completions with its own log-probs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megatron_fork.errors import RolloutError
from megatron_fork.experience import FinishReason, KeptTokens, VersionSpan
from megatron_fork.serving import EntropyTemperature


@dataclass(frozen=True)
class PartialResponse:
    """The tokens of a response that are already drawn; log-probs and versions as in `Completion`."""

    tokens: Sequence[int] = ()
    logprob: Sequence[float] = ()
    versions: tuple[VersionSpan, ...] = ()
    kept: KeptTokens | None = None

    def kept_copy(self) -> KeptTokens:
        """Its sets, to be added to; raises `RolloutError` if it has tokens of which none is known."""
        if len(self.tokens) != (0 if self.kept is None else len(self.kept)):
            raise RolloutError(
                f"a begun response has {len(self.tokens)} tokens without what they were drawn from",
                hint="it was begun with rollout.replay_sampling_mask=false: keep that, or start a new run",
            )
        return KeptTokens() if self.kept is None else self.kept.copy()


@dataclass(frozen=True)
class Request:
    """One response to draw; `max_tokens` counts the tokens that are already drawn as well."""

    number: int
    tokens: tuple[int, ...]
    seed: int
    """The embedded engine draws the same response for the same seed and weights, whatever else it draws."""
    temperature: float
    """0 takes the most likely token."""
    max_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    reports_kept: bool = False
    """The completion names the tokens that each token was drawn from, and its log-probs are under the softmax over those."""
    entropy_temperature: EntropyTemperature | None = None
    """Replaces the temperature, which is then 1."""
    begun: PartialResponse = PartialResponse()


@dataclass(frozen=True)
class Completion:
    """A drawn response.

    `logprob` is under the softmax of the whole vocabulary at the request's temperature: at 1 if that is 0, at each token's own
    if it depends on the entropy, and then 0 nats where it is 0. With vLLM and top-p or top-k it is under the softmax of the
    tokens that they leave, and so with every engine for a request that `reports_kept`.
    """

    number: int
    tokens: Sequence[int]
    logprob: Sequence[float]
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    """Which weights drew which tokens; the spans cover all tokens, in order."""
    experts: Tensor | None = None
    """`[prompt and response tokens but the last, layers, k]` int16; None if the engine does not report its routing."""
    kept: KeptTokens | None = None
    """What each token was drawn from, if the request `reports_kept`."""

    @property
    def weight_version(self) -> int:
        """The version of the oldest weights that drew a token."""
        return min(span.version for span in self.versions)


def answers(
    arriving: Callable[[], Completion | None], count: int, is_aborted: Callable[[], bool]
) -> Generator[Completion, None, None]:
    """The next `count` completions; fewer if the engine was aborted and has nothing more at the moment."""
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
        """Queue requests for `completions`, without waiting: servers begin at once, an engine in this process when asked."""

    def completions(self) -> Generator[Completion | None, None, None]:
        """Completions of submitted requests as they finish, or None if there is none at the moment. It never ends: close it.

        Requests in progress then go on at servers, and their completions come at the next call; an engine in this process
        needs an `abort` first.
        """

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """Answers to the same requests from every server or engine that this rank reports for, by its name."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load all weights, under Hugging Face names. Servers that come back later need another iteration over them."""

    def abort(self) -> None:
        """Stop the requests in progress. Once the iterator gives None or ends, `unfinished` has them with their tokens."""

    def unfinished(self) -> list[Request]:
        """The requests that the last `abort` stopped; another `generate` can continue them."""

    def rest(self) -> None:
        """No request comes before the next weights: memory on the trainer's devices may be freed until then."""

    def health(self) -> bool:
        """Whether requests can be served."""

    def close(self) -> None:
        """Free what the engine holds."""


class InProcessEngine(Engine):
    """Most of an `Engine`; a subclass draws responses and loads weights."""

    is_coordinated = False
    parameters = 0
    """Number of parameters, tied ones counted once; 0 if it has no model."""

    def __init__(self) -> None:
        self.version = -1
        """The weights' version; the first update sets it."""
        self._aborted = False
        self._waiting: list[Request] = []
        self._unfinished: list[Request] = []

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order."""

    @abstractmethod
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load all weights, under Hugging Face names, and set `version`; iterate over `weights` to its end."""

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
        """Nothing to check: weights are copied within the process, tensor by tensor."""
        return {}

    def abort(self) -> None:
        """Draw no further token."""
        self._aborted = True
        self._unfinished += self._waiting
        self._waiting = []

    def unfinished(self) -> list[Request]:
        left, self._unfinished = self._unfinished, []
        return left

    def rest(self) -> None:
        """Keep the memory: weights are overwritten in place."""

    def health(self) -> bool:
        return self.version >= 0

    def close(self) -> None:
        """Nothing outlives the object."""
