"""What engines in the trainer's processes have in common: requests wait here until completions are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence

from torch import Tensor

from megatron_fork.rollout.engine import Completion, Engine, Request


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
