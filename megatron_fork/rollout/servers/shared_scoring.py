"""Sequences that servers share to score: what one that fails leaves over, others take. One event loop runs it.

A sequence waits, is with one task of one server, is scored, or is confirmed, never two of these. Scores are confirmed when
their server has said after them what it has: those of one that fell before it said so are made again elsewhere. Weights that
change, and change back before it is asked, go unseen.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.adoption import serves
from megatron_fork.rollout.servers.event_loop import ended
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault

# A server that fails this often in a row gets no further sequence until it is found with the right weights.
_STRIKES = 3
# How long a server that failed gets nothing, and the time between two looks at what waits.
_REST_SECONDS = 0.5


@dataclass(eq=False)
class _Sequence:
    tokens: Sequence[int]
    first: int
    found: list[float] = field(default_factory=list)
    failures: int = 0
    failed_at: set[Server] = field(default_factory=set)
    """Servers that get it again only when it has failed at all that are ready."""


class SharedScoring:
    """Gives sequences to whichever server has room, and takes back what a server leaves."""

    def __init__(
        self, servers: Sequence[Server], config: RemoteConfig, model: str, label: str, say: Callable[[str], None]
    ) -> None:
        """A server is ready while it serves `model` and says that its weights are `label`."""
        self.servers, self.config, self.model, self.label = list(servers), config, model, label
        self._say = say
        self._waiting: deque[_Sequence] = deque()
        self._unconfirmed: dict[Server, list[_Sequence]] = {server: [] for server in servers}
        self._running: dict[Server, dict[int, asyncio.Task[list[float]]]] = {server: {} for server in servers}
        self._foreign: set[Server] = set()
        """Servers that were last seen with another model or other weights, which nobody here replaces."""
        self._open = 0
        """Sequences that are not confirmed."""
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def logprobs(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
        """See `ScoringServers.logprobs`."""
        every = [_Sequence(tokens, first) for tokens, first in zip(sequences, firsts, strict=True)]
        self._waiting.extend(each for each in every if len(each.tokens) > each.first)
        self._open = len(self._waiting)
        if self._open:
            watches = [asyncio.create_task(self._watch(server)) for server in self.servers]
            for watch in watches:
                watch.add_done_callback(self._report)
            try:
                await self._finished()
            finally:
                await ended(*watches, *(task for tasks in self._running.values() for task in tasks.values()))
        return [each.found for each in every]

    async def _finished(self) -> None:
        """Until everything is confirmed; raises the error that ends it."""
        last_ready, patience, is_said = time.monotonic(), self.config.patience_seconds, False
        while self._open:
            await self._change(_REST_SECONDS)
            waited = time.monotonic() - last_ready
            if self._error is not None:
                raise self._error
            if self._ready:
                last_ready, is_said = time.monotonic(), False
            elif all(server.is_given_up or server in self._foreign for server in self.servers):
                raise self._none_left("none can be used")
            elif waited > patience:
                raise self._none_left(f"none is ready after {patience:.0f} s")
            elif waited > self.config.health_seconds and not is_said:
                self._say(f"waiting for rollout.servers, at most {patience:.0f} s: {self._reasons}")
                is_said = True
            self._assign()

    async def _change(self, most_seconds: float) -> None:
        """Until something has changed; at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_seconds):
                await self._changed.wait()

    def _say_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def _ready(self) -> list[Server]:
        return [server for server in self.servers if server.state == "ready"]

    @property
    def _reasons(self) -> str:
        return "; ".join(f"{server}: {server.reason}" for server in self.servers)

    def _none_left(self, what: str) -> RolloutError:
        hint = "start them again with the model, see that nobody trains with them, and repeat the command"
        return RolloutError(f"rollout.servers: {what}: {self._reasons}", hint=hint)

    def _report(self, task: asyncio.Task[None]) -> None:
        """An error in a watch ends the whole, which would otherwise wait for it for ever."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and self._error is None:
            self._error = error
        self._say_changed()

    def _assign(self) -> None:
        """Give out sequences in order; one may be passed over while it waits for a server where it has not failed."""
        passed: list[_Sequence] = []
        while self._waiting and (free := self._free()):
            sequence = self._waiting.popleft()
            if sequence.failed_at.issuperset(self._ready):
                sequence.failed_at.clear()
            others = [server for server in free if server not in sequence.failed_at]
            if not others:
                passed.append(sequence)
                continue
            server = min(others, key=lambda server: server.load)
            server.load += len(sequence.tokens)
            task = asyncio.create_task(server.logprobs_of(sequence.tokens, sequence.first))
            task.add_done_callback(partial(self._ended, sequence, server, server.falls))
            self._running[server][id(sequence)] = task
        self._waiting.extendleft(reversed(passed))

    def _free(self) -> list[Server]:
        now, most = time.monotonic(), self.config.requests_per_server
        return [server for server in self._ready if len(self._running[server]) < most and server.rests_until <= now]

    def _ended(self, sequence: _Sequence, server: Server, falls: int, task: asyncio.Task[list[float]]) -> None:
        """A task of a server has ended; one that was cancelled may not even have begun."""
        del self._running[server][id(sequence)]
        server.load -= len(sequence.tokens)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None or server.falls != falls:
            self._waiting.appendleft(sequence)
        else:
            sequence.found = task.result()
            self._unconfirmed[server].append(sequence)
            server.strikes = 0
        if isinstance(error, ServerFault):
            self._count(error, sequence, server)
        elif isinstance(error, Exception):
            self._error = self._error or error
        self._say_changed()

    def _count(self, fault: ServerFault, sequence: _Sequence, server: Server) -> None:
        """A failure of the sequence, and a strike for the server unless it says that the sequence is wrong."""
        server.rests_until = time.monotonic() + (0.0 if fault.refused else _REST_SECONDS)
        if fault.is_busy:
            return
        sequence.failures += 1
        sequence.failed_at.add(server)
        if not fault.refused:
            server.strikes += 1
        if server.strikes >= _STRIKES:
            self._drop(server, f"{server.strikes} faults in a row, the last: {fault}")
        is_lost = fault.refused or sequence.failures >= self.config.attempts
        if is_lost and self._ready and sequence.failed_at.issuperset(self._ready):
            self._error = RolloutError(
                f"rollout.servers: {server} does not score a sequence of {len(sequence.tokens):,} tokens: {fault}",
                hint="a server must hold it, and one token more, in its longest sequence; or leave the servers out",
            )

    def _drop(self, server: Server, reason: str) -> None:
        """The server gets nothing until it is found with the weights; what it has scored since it last named them is void."""
        if server.state == "down":
            return
        server.state = "down"
        server.falls += 1
        server.count_failure(reason)
        self._say(f"{server} is left out: {server.reason}")
        for task in self._running[server].values():
            task.cancel()
        for sequence in self._unconfirmed[server]:
            sequence.found = []
        self._waiting.extendleft(self._unconfirmed[server])
        self._unconfirmed[server].clear()
        server.strikes = 0
        self._say_changed()

    async def _watch(self, server: Server) -> None:
        """Take the server in when it has the weights, and have it confirm what it scored: now and then, and at the end."""
        asked = time.monotonic() - self.config.health_seconds
        while True:
            is_due = time.monotonic() - asked >= self.config.health_seconds
            if server.state == "down" and is_due and not server.is_given_up:
                await self._take_in(server)
                asked = time.monotonic()
            elif self._unconfirmed[server] and (is_due or not (self._waiting or self._running[server])):
                await self._confirm(server)
                asked = time.monotonic()
            await self._change(min(self.config.health_seconds, _REST_SECONDS))

    async def _take_in(self, server: Server) -> None:
        problem = await self._problem_of(server)
        if problem:
            server.reason = problem
        else:
            if server.failures:
                self._say(f"{server} is back")
            server.state, server.rests_until = "ready", 0.0
        self._say_changed()

    async def _confirm(self, server: Server) -> None:
        """What it had scored before it was asked counts, if it names the model and the weights."""
        asked_about, falls = list(self._unconfirmed[server]), server.falls
        problem = await self._problem_of(server)
        if problem:
            self._drop(server, problem)
        elif server.falls == falls:  # else it fell meanwhile, and nothing of these is left to confirm
            del self._unconfirmed[server][: len(asked_about)]
            self._open -= len(asked_about)
            server.failures = 0
            self._say_changed()

    async def _problem_of(self, server: Server) -> str:
        """Why it cannot be used; empty if it says that it has the model and the weights."""
        self._foreign.discard(server)
        try:
            names, label = await server.models(), await server.weight_label()
        except ServerFault as fault:
            return str(fault)
        if serves(names, self.model) and label == self.label:
            return ""
        self._foreign.add(server)
        if label != self.label:
            return f"it has the weights {label}, not {self.label}"
        return f"it serves {', '.join(names) or 'no model'}, not {self.model}"
