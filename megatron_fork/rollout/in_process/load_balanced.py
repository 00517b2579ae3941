"""The engines of all ranks as one: the first rank assigns requests by load and gathers the completions.

The ranks run in ticks. In each tick the first rank sends new requests, every engine draws some tokens, and finished
completions go back. So an engine that has finished gets new work while others still draw, a group without signal is replaced
at once, and all engines are stopped at the same tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError
from megatron_fork.rollout.engine import Completion, Engine, Request, answers

# Tokens per tick. Its two collectives take a few milliseconds, a token of a large model ten times as long; an engine without
# requests waits for the end of the tick.
_STEPS_A_TICK = 16


@dataclass(frozen=True)
class _Tick:
    """What the first rank tells all ranks to do next."""

    shares: Sequence[Sequence[Request]] = ()
    """New requests of each engine."""
    stop: bool = False
    is_last: bool = False
    failure: RolloutError | None = None


@dataclass
class _Report:
    """What one engine reports after a tick."""

    completions: list[Completion] = field(default_factory=list)
    unfinished: list[Request] = field(default_factory=list)
    failure: RolloutError | None = None


class LoadBalancedEngine:
    """Implements `Engine` over one engine per rank, or per `ranks_per_engine` consecutive ranks, which make the same calls."""

    is_coordinated = True

    def __init__(self, engine: Engine, *, world: collectives.Group, ranks_per_engine: int, batch_size: int) -> None:
        """`batch_size`: requests that an engine has at a time; the rest wait for the engine that is free first."""
        self._engine = engine
        self._world = world
        self._place, member = divmod(collectives.rank(world), ranks_per_engine)
        self._reports = member == 0
        self._batch_size = batch_size
        self._aborted = False
        self._running = 0
        """Requests that this rank's engine has."""
        self._waiting: deque[Request] = deque()
        self._loads: list[dict[int, int]] = [{} for _ in range(collectives.size(world) // ranks_per_engine)]
        """For each engine, tokens that it may have to read and draw, by the number of the request."""
        self._unfinished: list[Request] = []

    @property
    def parameters(self) -> int:
        return self._engine.parameters

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """On the first rank, completions as they finish on any rank; nothing on the others, which draw until its end."""
        if not self._leads:
            self._follow()
            return
        self.submit(requests)
        with closing(self.completions()) as arriving:
            yield from answers(lambda: next(arriving), len(requests), lambda: self._aborted)

    def submit(self, requests: Sequence[Request]) -> None:
        if self._leads:
            self._waiting += requests

    def completions(self) -> Generator[Completion | None, None, None]:
        if not self._leads:
            self._follow()
            return
        self._aborted = False
        last = _Tick(is_last=True)
        try:
            with closing(self._engine.completions()) as drawing:
                while True:
                    stop = self._aborted
                    yield from self._lead(_Tick([] if stop else self._shard(), stop), drawing)
                    if stop or not self._aborted:
                        yield None
        except RolloutError as error:
            last = _Tick(is_last=True, failure=error)
            raise
        finally:
            self._forget()
            collectives.broadcast_object(last, self._world)

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        return self._engine.replicas(requests)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._engine.update_weights(weights, version)

    def abort(self) -> None:
        """The next tick stops all engines."""
        self._aborted = True

    def unfinished(self) -> list[Request]:
        left, self._unfinished = self._unfinished, []
        return left

    def rest(self) -> None:
        self._engine.rest()

    def health(self) -> bool:
        return self._engine.health()

    def close(self) -> None:
        self._engine.close()

    @property
    def _leads(self) -> bool:
        return collectives.rank(self._world) == 0

    def _shard(self) -> list[list[Request]]:
        """Assign waiting requests to engines with room, each to the one with the least load."""
        shares: list[list[Request]] = [[] for _ in self._loads]
        while self._waiting:
            free = [place for place, loads in enumerate(self._loads) if len(loads) < self._batch_size]
            if not free:
                break
            place = min(free, key=lambda place: sum(self._loads[place].values()))
            request = self._waiting.popleft()
            self._loads[place][request.number] = len(request.tokens) + request.max_tokens - len(request.begun.tokens)
            shares[place].append(request)
        return shares

    def _lead(self, tick: _Tick, drawing: Iterator[Completion | None]) -> list[Completion]:
        """One tick on the first rank; raises the error of an engine that failed."""
        collectives.broadcast_object(tick, self._world)
        reports = collectives.gather_objects_to_first(self._tick(tick, drawing), self._world)
        failures = [report.failure for report in reports if report.failure is not None]
        if failures:
            raise failures[0]
        for report in reports:
            self._unfinished += report.unfinished
        completions = [completion for report in reports for completion in report.completions]
        if tick.stop:
            self._unfinished += self._waiting
            self._forget()
        for completion in completions:
            for loads in self._loads:
                loads.pop(completion.number, None)
        return completions

    def _follow(self) -> None:
        with closing(self._engine.completions()) as drawing:
            while True:
                tick: _Tick = collectives.broadcast_object(None, self._world)
                if tick.failure is not None:
                    raise tick.failure
                if tick.is_last:
                    break
                collectives.gather_objects_to_first(self._tick(tick, drawing), self._world)
        self._running = 0

    def _tick(self, tick: _Tick, drawing: Iterator[Completion | None]) -> _Report:
        """This rank's part of a tick; of the ranks that form one engine, the first reports."""
        report = _Report()
        try:
            self._draw(tick, drawing, report)
        except RolloutError as error:
            report.failure = error
            return report
        return report if self._reports else _Report()

    def _draw(self, tick: _Tick, drawing: Iterator[Completion | None], report: _Report) -> None:
        if tick.stop:
            self._engine.abort()
            report.completions += iter(lambda: next(drawing), None)
            report.unfinished += self._engine.unfinished()
            self._running = 0
            return
        share = tick.shares[self._place]
        self._engine.submit(share)
        self._running += len(share)
        steps = 0
        while self._running and steps < _STEPS_A_TICK:
            completion = next(drawing)
            if completion is None:
                steps += 1
            else:
                self._running -= 1
                report.completions.append(completion)

    def _forget(self) -> None:
        """Forget the requests of all engines."""
        self._waiting.clear()
        self._running = 0
        for loads in self._loads:
            loads.clear()
