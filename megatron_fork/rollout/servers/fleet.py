"""Spreads requests over servers by outstanding tokens, and sends them elsewhere when a server fails. One event loop runs it.

A pending request is in the queue or with one task of one server, never both, and what a task drew counts only when the task
adds it: so nothing is lost, and nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections import deque
from collections.abc import Sequence

from megatron_fork.errors import RolloutError
from megatron_fork.experience import FinishReason
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.engine import Completion, Request
from megatron_fork.rollout.pending import DrawnSegment, PendingRequest
from megatron_fork.rollout.servers.event_loop import ended
from megatron_fork.rollout.servers.health import Health
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault, void

# A server that fails this often in a row gets no further request until it is found healthy.
_STRIKES = 3
_REST_SECONDS = 1.0


class Fleet:
    """The servers, the requests that wait for one, and the queue of each submission for its completions."""

    def __init__(self, servers: Sequence[Server], config: RemoteConfig, *, stop_tokens: Sequence[int]) -> None:
        self.servers = list(servers)
        self.config = config
        self.stop_tokens = tuple(stop_tokens)
        self.error: Exception | None = None
        """The error that ends the run."""
        self.versions: dict[str, int] = {}
        self.label = ""
        self.counts = {"resent": 0, "faults": 0, "foreign": 0}
        self.last_token_time = time.monotonic()
        """When tokens last arrived, or were first asked for after a pause."""
        self._pending: deque[PendingRequest] = deque()
        self._unfinished: list[Request] = []
        self._aborting = False
        self._watcher: asyncio.Task[None] | None = None
        self._needs_experts = any(server.experts is not None for server in self.servers)
        self._health = Health(self)
        self._going_down: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())
        self._watcher.add_done_callback(self._report)

    async def submit(self, requests: Sequence[Request], arrived: queue.Queue[Completion]) -> None:
        """Draw `requests`; the completions go to `arrived`."""
        if not self.is_drawing:
            self.last_token_time = time.monotonic()
        for pending in [PendingRequest.of(request, arrived) for request in requests]:
            finish = pending.settled(self.stop_tokens, needs_experts=self._needs_experts)
            if finish is None:
                self._pending.append(pending)
            else:  # it was stopped after its last token
                pending.arrived.put(pending.completion(finish))
        self._assign()

    async def draw_at(self, server: Server, requests: Sequence[Request]) -> list[Completion] | None:
        """This server's completions; None, and the server is marked down, if it does not answer."""

        async def one(request: Request) -> Completion:
            pending, segment = PendingRequest.of(request, queue.Queue()), DrawnSegment(server.version, self.versions)
            finish = await self._draw(pending, server, segment)
            if finish is None or not segment.is_sound:
                raise ServerFault(f"{segment.label_report}, but was given {self.label}; or it did not end")
            pending.add(segment)
            return pending.completion(finish)

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        except ServerFault as fault:
            await self.mark_down(server, f"probe: {fault}")
            return None
        finally:
            await ended(*tasks)

    async def abort(self) -> None:
        """Stop all requests; `take_unfinished` has them with their tokens."""
        self._aborting = True
        self._unfinished += [pending.unfinished() for pending in self._pending]
        self._pending.clear()
        stops = [asyncio.create_task(server.stop_all()) for server in self.servers if server.running]
        if stops:
            await asyncio.wait(stops, timeout=self.config.health_timeout_seconds)
            await ended(*stops)
        tasks = [task for server in self.servers for task in server.running.values()]
        if tasks:
            # Servers send the tokens so far; if one does not, only the last few tokens are lost.
            _, late = await asyncio.wait(tasks, timeout=self.config.health_timeout_seconds)
            await ended(*late)
        self._aborting = False

    async def take_unfinished(self) -> list[Request]:
        taken, self._unfinished = self._unfinished, []
        return taken

    @property
    def is_drawing(self) -> bool:
        return bool(self._pending) or any(server.running for server in self.servers)

    @property
    def ready(self) -> list[Server]:
        return [server for server in self.servers if server.state == "ready"]

    async def expect(self, label: str, version: int) -> None:
        """From now on a server is ready only with the weights `label`."""
        self.label = label
        self.versions[label] = version
        for server in self.servers:
            server.failures = 0
            if server.state == "ready":
                server.state = "stale"

    async def adopt(self, label: str) -> None:
        """From now on a server is ready only with the weights `label`, which all have; who was seen before is seen again."""
        await self.expect(label, 0)
        for server in self.servers:
            if server.state == "stale":
                server.state = "down"

    async def find_stale(self) -> list[Server]:
        """Check all servers that are down; the servers that need weights."""
        await asyncio.gather(*(self._health.examine(server) for server in self.servers if server.state == "down"))
        return [server for server in self.servers if server.state == "stale"]

    async def mark_ready(self, server: Server) -> None:
        """The server says that it has the weights `label`."""
        server.state, server.version = "ready", self.versions[self.label]
        server.strikes, server.rests_until = 0, 0.0
        self.last_token_time = time.monotonic()
        self._assign()

    async def mark_down(self, server: Server, reason: str) -> None:
        """Send the server no request until it is healthy; what it worked on is drawn elsewhere."""
        if server.state == "down":  # many of its requests may report that at a time
            return
        server.state = "down"
        server.falls += 1
        server.count_failure(reason)
        await asyncio.sleep(0)  # one that has not begun yet would end without giving its request back
        for task in list(server.running.values()):
            task.cancel()

    @property
    def is_given_up(self) -> bool:
        """Whether all servers are given up, so that waiting is of no use."""
        return all(server.is_given_up for server in self.servers)

    @property
    def reasons(self) -> str:
        return "; ".join(f"{server}: {server.reason}" for server in self.servers)

    def _assign(self) -> None:
        """Give out requests in order; one may be passed over while it waits for a server where it has not failed."""
        waiting: list[PendingRequest] = []
        while self._pending and not self._aborting and self.error is None and (free := self._free()):
            pending = self._pending.popleft()
            server = self._server_for(pending, free)
            if server is None:
                waiting.append(pending)
                continue
            server.load += pending.load
            task = asyncio.create_task(self._work(pending, server))
            task.add_done_callback(self._report)
            server.running[id(pending)] = task
        self._pending.extendleft(reversed(waiting))

    def _report(self, task: asyncio.Task[None]) -> None:
        """A bug in a task must end the run, not only the task, whose response would never arrive."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and self.error is None:
            self.error = error

    def _free(self) -> list[Server]:
        now = time.monotonic()
        most = self.config.requests_per_server
        return [server for server in self.ready if len(server.running) < most and server.rests_until <= now]

    def _server_for(self, pending: PendingRequest, free: Sequence[Server]) -> Server | None:
        """The least loaded server; a faulty one, which is often free, must not use up all attempts while another is busy."""
        if pending.failed_at.issuperset(self.ready):
            pending.failed_at.clear()
        others = [server for server in free if server not in pending.failed_at]
        return min(others, key=lambda server: server.load, default=None)

    async def _work(self, pending: PendingRequest, server: Server) -> None:
        segment = DrawnSegment(server.version, self.versions)
        fault: ServerFault | None = None
        was_cancelled = False
        try:
            ended = await self._draw(pending, server, segment) is not None
            if ended and segment.labels is None and segment.version != server.version:
                raise void("it got new weights meanwhile, and does not say what they drew")
            server.strikes = 0
        except ServerFault as error:
            fault = error
        except asyncio.CancelledError:
            fault, was_cancelled = ServerFault(server.reason), True
        finally:
            del server.running[id(pending)]
            server.load -= pending.load
        fault = self._label_fault(server, segment) or fault
        if fault is None or not fault.is_void:
            segment.leave_out_unproven()
            pending.add(segment)
            server.failures = 0 if segment.tokens else server.failures
        finish = pending.settled(self.stop_tokens, needs_experts=self._needs_experts)
        if finish is not None and self.error is None:
            pending.arrived.put(pending.completion(finish))
        elif finish is not None or self._aborting:  # nobody takes completions after an error: a resumed run gets it
            self._unfinished.append(pending.unfinished())
        else:
            self._requeue(pending, server, fault or ServerFault("it ended a response without a reason"), was_cancelled)
        self._assign()

    def _label_fault(self, server: Server, segment: DrawnSegment) -> ServerFault | None:
        """A fault if the labels are not this run's, or do not fit the tokens: the tokens are then void."""
        if segment.is_sound:
            return None
        fault = void(f"{segment.label_report}, but was given {self.label}")
        if segment.is_foreign and server.state == "ready":
            self.counts["foreign"] += 1
            server.state = "stale"
            server.count_failure(str(fault))
        return fault

    async def _draw(self, pending: PendingRequest, server: Server, segment: DrawnSegment) -> FinishReason | None:
        finish: FinishReason | None = None
        async with contextlib.aclosing(server.chunks(pending, self.stop_tokens)) as chunks:
            async for chunk in chunks:
                segment.add(chunk, is_proven=server.state == "ready" and server.version == segment.version)
                if chunk.tokens:
                    self.last_token_time = time.monotonic()
                finish = chunk.finish or finish
        return finish

    def _requeue(self, pending: PendingRequest, server: Server, fault: ServerFault, was_cancelled: bool) -> None:
        """Put the request back at the front of the queue; a strike for the server, unless all its requests were cancelled."""
        self.counts["resent"] += 1
        if server.state == "ready":
            server.reason = str(fault)
            server.rests_until = time.monotonic() + _REST_SECONDS
        if not was_cancelled and not fault.is_busy:
            self.counts["faults"] += 1
            server.strikes += 1
            pending.failures += 1
            pending.failed_at.add(server)
        if pending.failures >= self.config.attempts:
            self._unfinished.append(pending.unfinished())
            what = "refused" if fault.refused else "failed"
            way = "its longest sequence may be too short" if fault.refused else "repair it or leave it out"
            self.error = self.error or RolloutError(
                f"rollout.servers: a request of {len(pending.prompt)} tokens {what} {pending.failures} times, "
                f"last at {server}: {fault}",
                hint=f"see the server's log; {way}, and resume the run, whose state is saved",
            )
            return
        self._pending.appendleft(pending)
        if server.strikes >= _STRIKES and server.state == "ready":
            task = asyncio.create_task(self.mark_down(server, f"{server.strikes} faults in a row, the last: {fault}"))
            self._going_down.add(task)
            task.add_done_callback(self._going_down.discard)

    async def _watch(self) -> None:
        """Assign requests that wait for a server; check every server's health meanwhile, which may take long."""
        checks = asyncio.gather(*(self._health.check(server) for server in self.servers))
        next_check = time.monotonic() + self.config.health_seconds
        try:
            while True:
                await asyncio.sleep(min(self.config.health_seconds, _REST_SECONDS))
                self._assign()
                if checks.done() and time.monotonic() >= next_check:
                    checks.result()
                    checks = asyncio.gather(*(self._health.check(server) for server in self.servers))
                    next_check = time.monotonic() + self.config.health_seconds
        finally:
            await ended(checks)

    async def close(self) -> None:
        self._aborting = True
        tasks = [task for server in self.servers for task in server.running.values()]
        await ended(*tasks, *([self._watcher] if self._watcher else []))
        await asyncio.gather(*(server.close() for server in self.servers))
