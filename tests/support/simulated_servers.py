"""Rollout servers on a clock of their own, for the run's own collector: continuous batching, a full cache, weight updates.

A server decodes all its sequences together. One token of each takes `base + each x sequences + context x tokens in the cache`;
the tokens between two events follow from that in closed form, so that a step of 8,000 responses takes seconds to simulate.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from megatron_fork.experience import FinishReason, VersionSpan
from megatron_fork.rollout import Completion, PartialResponse, Request


@dataclass(frozen=True)
class Decoding:
    """How one server draws. Milliseconds and tokens."""

    base_ms: float
    """A pass over the weights."""
    each_ms: float
    """More for each sequence."""
    context_ms: float
    """More for each million tokens of keys and values that are read."""
    cache_tokens: int
    """Keys and values that fit; when it is full, the youngest sequence is put back and read again later."""
    prefill_tokens_per_second: float
    """Reading of prompts, of responses that go on, and of everything again after new weights; nothing is drawn meanwhile."""
    requests: int = 256
    """Requests that it has at a time, as `rollout.remote.requests_per_server`."""


@dataclass(eq=False)
class Drawing:
    """A response at a server."""

    request: Request
    length: int
    """Of the whole response."""
    drawn: float
    """Tokens when it was admitted, or put back."""
    marks: list[tuple[int, float]] = field(default_factory=list)
    """Version of the weights, and how many tokens there were when they came."""

    @property
    def context(self) -> float:
        return len(self.request.tokens) + self.drawn


class SimulatedServer:
    """Sequences that decode together, up to `time`."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self.time = 0.0
        self.down_until = 0.0
        self.waiting: deque[Drawing] = deque()
        self.ended: list[Drawing] = []
        self.generated = self.idle = 0.0
        self.preempted = 0
        self._tokens = (
            0.0  # each running sequence has gained as many since it was admitted, less those at its admission
        )
        self._context = 0.0
        self._running: list[tuple[float, int, float, Drawing]] = []  # heap: end, order, tokens at admission
        self._admitted = 0
        self._next_event: float | None = None

    @property
    def load(self) -> int:
        return len(self._running) + len(self.waiting)

    @property
    def next_event(self) -> float:
        """When a response ends or the cache is full."""
        if self._next_event is None:
            self._next_event = self.time + self._seconds(self._to_event()) if self._running else math.inf
        return self._next_event

    def give(self, sequence: Drawing, now: float) -> None:
        self.advance(now)
        self.waiting.append(sequence)
        self._admit(now)

    def advance(self, now: float) -> None:
        """Draw up to `now`; responses that end by then are `ended`."""
        while self._running and self.next_event <= now + 1e-9:
            self.time, self._next_event = self.next_event, None
            self._gain(self._to_event())
            while self._running and self._running[0][0] <= self._tokens + 1e-6:
                end, _, start, sequence = heapq.heappop(self._running)
                self._context -= sequence.context + end - start
                sequence.drawn = sequence.length
                self.ended.append(sequence)
            if self._running and self._context >= self.decoding.cache_tokens - 1e-6:
                self._put_back()
            self._admit(self.time)
        if self._running and now > self.time:
            self._gain(self._tokens_in(now - self.time))
        if now > self.time:
            self.idle += 0.0 if self._running else now - self.time
            self.time, self._next_event = now, None

    def pause(self, now: float, seconds: float, version: int) -> None:
        """New weights: nothing is drawn for so long, then all keys and values are computed again."""
        self.advance(now)
        for _, _, start, sequence in self._running:
            sequence.marks.append((version, sequence.drawn + self._tokens - start))
        for sequence in self.waiting:
            sequence.marks.append((version, sequence.drawn))
        self.time = max(self.time, now) + seconds + self._context / self.decoding.prefill_tokens_per_second
        self._next_event = None

    def stop(self, now: float) -> list[Drawing]:
        """Everything it works on, with what it has drawn."""
        self.advance(now)
        for _, _, start, sequence in self._running:
            sequence.drawn += self._tokens - start
        stopped = [sequence for *_, sequence in sorted(self._running, key=lambda each: each[1])] + list(self.waiting)
        self._running, self._context, self._next_event = [], 0.0, None
        self.waiting.clear()
        return stopped

    def _admit(self, now: float) -> None:
        room = self.decoding.cache_tokens * 0.99
        while self.waiting and (not self._running or self._context + self.waiting[0].context <= room):
            sequence = self.waiting.popleft()
            if not self._running:
                self.time = max(self.time, now)
            self._admitted += 1
            left = max(1e-6, sequence.length - sequence.drawn)
            heapq.heappush(self._running, (self._tokens + left, self._admitted, self._tokens, sequence))
            self._context += sequence.context
            self.time += sequence.context / self.decoding.prefill_tokens_per_second
            self._next_event = None

    def _put_back(self) -> None:
        youngest = max(self._running, key=lambda each: each[1])
        self._running.remove(youngest)
        heapq.heapify(self._running)
        _, _, start, sequence = youngest
        self._context -= sequence.context + self._tokens - start
        sequence.drawn += self._tokens - start
        self.waiting.appendleft(sequence)
        self.preempted += 1

    def _to_event(self) -> float:
        """Tokens of each sequence until one ends or the cache is full."""
        full = (self.decoding.cache_tokens - self._context) / len(self._running)
        return max(0.0, min(self._running[0][0] - self._tokens, full if len(self._running) > 1 else math.inf))

    def _pace(self) -> tuple[float, float]:
        """Seconds of the next token, and how much more each further one takes."""
        sequences, decoding = len(self._running), self.decoding
        each = decoding.context_ms / 1e9
        return (
            (decoding.base_ms + decoding.each_ms * sequences) / 1e3 + each * self._context,
            each * sequences,
        )

    def _seconds(self, tokens: float) -> float:
        first, more = self._pace()
        return first * tokens + more * tokens * tokens / 2

    def _tokens_in(self, seconds: float) -> float:
        first, more = self._pace()
        return 2 * seconds / (first + math.sqrt(first * first + 2 * more * seconds))

    def _gain(self, tokens: float) -> None:
        self._tokens += tokens
        self._context += tokens * len(self._running)
        self.generated += tokens * len(self._running)


class SimulatedServers:
    """Implements what the collector asks of an engine that has servers."""

    parameters = 0
    is_coordinated = True

    def __init__(self, servers: int, decoding: Decoding, length_of: Callable[[int], int]) -> None:
        """`length_of` gives a response's tokens by its request's seed."""
        self.servers = [SimulatedServer(decoding) for _ in range(servers)]
        self.requests = decoding.requests
        self.clock = 0.0
        self.version = 0
        self.ends_at = math.inf
        """When `TrainerLost` is raised."""
        self._length_of = length_of
        self._waiting: deque[Drawing] = deque()
        self._arrived: deque[Completion] = deque()
        self._stopped: list[Request] = []

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            begun = len(request.begun.tokens)
            sequence = Drawing(request, max(1, self._length_of(request.seed)), begun, [(self.version, begun)])
            self._waiting.append(sequence)
        self._assign()

    def completions(self) -> Generator[Completion | None, None, None]:
        while True:
            while not self._arrived and (event := self._next_event()) < math.inf:
                self._advance(event)
            yield self._arrived.popleft() if self._arrived else None

    def pass_time(self, seconds: float) -> None:
        """Go on drawing for so long, whatever finishes."""
        end = self.clock + seconds
        while (event := self._next_event()) < end:
            self._advance(event)
        self._advance(end)

    def update_weights(self, version: int, seconds: float) -> None:
        """All servers take the weights of `version`, which takes so long."""
        self.version = version
        for server in self.servers:
            server.pause(self.clock, seconds, version)
            self._finish(server)
        for sequence in self._waiting:
            sequence.marks.append((version, sequence.drawn))
        self.pass_time(seconds)

    def lose_server(self, place: int, seconds: float) -> None:
        """A server falls, and is back after so long; its responses go on elsewhere with the tokens that they have."""
        server = self.servers[place]
        server.down_until = self.clock + seconds
        self._waiting.extendleft(reversed(server.stop(self.clock)))
        self._finish(server)
        self._assign()

    def abort(self) -> None:
        for server in self.servers:
            self._stopped += [self._unfinished(sequence) for sequence in server.stop(self.clock)]
            self._finish(server)
        self._stopped += [self._unfinished(sequence) for sequence in self._waiting]
        self._waiting.clear()

    def unfinished(self) -> list[Request]:
        stopped, self._stopped = self._stopped, []
        return stopped

    @property
    def generated(self) -> float:
        return sum(server.generated for server in self.servers)

    @property
    def idle(self) -> float:
        """Seconds that servers had nothing to draw, all together."""
        return sum(server.idle for server in self.servers)

    def _next_event(self) -> float:
        """When a response ends, a cache is full, or a server is back for which requests wait."""
        event = min(server.next_event for server in self.servers)
        back = min(server.down_until for server in self.servers) if self._waiting else 0.0
        return min(event, back) if back > self.clock else event

    def _advance(self, now: float) -> None:
        if now >= self.ends_at:
            self.clock = self.ends_at
            raise TrainerLost
        self.clock = now
        for server in self.servers:
            if server.next_event <= now:
                server.advance(now)
                self._finish(server)
        if self._waiting:
            self._assign()

    def _assign(self) -> None:
        """The oldest request to the server with the fewest."""
        loads = [(server.load, place) for place, server in enumerate(self.servers) if server.down_until <= self.clock]
        heapq.heapify(loads)
        while self._waiting and loads and loads[0][0] < self.requests:
            load, place = loads[0]
            self.servers[place].give(self._waiting.popleft(), self.clock)
            self._finish(self.servers[place])
            heapq.heapreplace(loads, (load + 1, place))

    def _finish(self, server: SimulatedServer) -> None:
        for sequence in server.ended:
            response, request = self._response(sequence), sequence.request
            finish: FinishReason = "length" if sequence.length >= request.max_tokens else "stop"
            self._arrived.append(
                Completion(request.number, response.tokens, response.logprob, finish, versions=response.versions)
            )
        server.ended.clear()

    def _unfinished(self, sequence: Drawing) -> Request:
        return replace(sequence.request, begun=self._response(sequence))

    def _response(self, sequence: Drawing) -> PartialResponse:
        """The tokens so far, which all are the seed, and which weights drew them."""
        spans = list(sequence.request.begun.versions)
        total = min(sequence.length, round(sequence.drawn))
        ends = [round(start) for _, start in sequence.marks[1:]] + [total]
        for (version, _), end in zip(sequence.marks, ends, strict=True):
            first = spans[-1].end if spans else 0
            if end > first and spans and spans[-1].version == version:
                spans[-1] = spans[-1]._replace(end=end)
            elif end > first:
                spans.append(VersionSpan(version, first, end))
        tokens = range(sequence.request.seed, sequence.request.seed + total)  # takes no memory
        return PartialResponse(tokens, tokens, tuple(spans))


class TrainerLost(Exception):
    """A rank of the trainer fell, and the job with it."""


def log_normal(median: float, sigma: float, longest: int) -> Callable[[int], int]:
    """Response lengths by seed, cut at `longest`."""

    def length_of(seed: int) -> int:
        return max(1, round(min(float(longest), median * math.exp(sigma * random.Random(seed).gauss(0, 1)))))

    return length_of
