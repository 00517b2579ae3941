"""Requests over many servers: by outstanding tokens, and elsewhere again when a server fails. Runs on one event loop.

A pending is with the queue or with one task of one server, never both, and what a task drew counts only when the task says so:
that is why nothing is lost and nothing counted twice.
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
from megatron_fork.rollout.servers.pace import ended
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault

# A server that fails this often in a row gets no further request until it has proven healthy.
_STRIKES = 3
_REST_SECONDS = 1.0
# Looks at its health that a server may miss.
_MISSES = 2


class Fleet:
    """The servers, the requests that wait for one, and the queue of each submission for its completions."""

    def __init__(self, servers: Sequence[Server], config: RemoteConfig, *, stop_tokens: Sequence[int]) -> None:
        self.servers = list(servers)
        self.config = config
        self.stop_tokens = tuple(stop_tokens)
        self.error: Exception | None = None
        """What ends the run."""
        self.versions: dict[str, int] = {}
        self.label = ""
        self.counts = {"resent": 0, "faults": 0, "foreign": 0}
        self.heard = time.monotonic()
        """When tokens last arrived, or were last asked for after a rest."""
        self._pending: deque[PendingRequest] = deque()
        self._unfinished: list[Request] = []
        self._aborting = False
        self._watcher: asyncio.Task[None] | None = None
        self._examining = {server: asyncio.Lock() for server in self.servers}
        self._dropping: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())
        self._watcher.add_done_callback(self._report)

    async def submit(self, requests: Sequence[Request], arrived: queue.Queue[Completion]) -> None:
        """Draw `requests`; the completions go to `arrived`."""
        if not self.is_drawing:
            self.heard = time.monotonic()
        for pending in (PendingRequest.of(request, arrived) for request in requests):
            finish = pending.finish(self.stop_tokens)
            if finish is None:
                self._pending.append(pending)
            else:  # begun, and broken off after its end
                pending.arrived.put(pending.completion(finish))
        self._assign()

    async def draw_at(self, server: Server, requests: Sequence[Request]) -> list[Completion] | None:
        """What this server answers; None, and the server is down, where it does not."""

        async def one(request: Request) -> Completion:
            pending, segment = PendingRequest.of(request, queue.Queue()), DrawnSegment(server.version, self.versions)
            finish = await self._draw(pending, server, segment)
            if finish is None or not segment.is_sound:
                raise ServerFault(f"{segment.said}, where it was given {self.label}, or did not end")
            pending.add(segment)
            return pending.completion(finish)

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        except ServerFault as fault:
            await self.drop(server, f"probe: {fault}")
            return None
        finally:
            await ended(*tasks)

    async def abort(self) -> None:
        """Stop everything; what had begun is in `take_unfinished`."""
        self._aborting = True
        self._unfinished += [pending.unfinished() for pending in self._pending]
        self._pending.clear()
        stops = [asyncio.create_task(server.stop_all()) for server in self.servers if server.running]
        if stops:
            await asyncio.wait(stops, timeout=self.config.health_timeout_seconds)
            await ended(*stops)
        tasks = [task for server in self.servers for task in server.running.values()]
        if tasks:
            # Servers answer with what there is; one that does not loses the last few tokens only.
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
            server.setbacks = 0
            if server.state == "ready":
                server.state = "stale"

    async def look(self) -> list[Server]:
        """Ask all servers that are down; those in want of weights."""
        await asyncio.gather(*(self._examine(server) for server in self.servers if server.state == "down"))
        return [server for server in self.servers if server.state == "stale"]

    async def welcome(self, server: Server) -> None:
        """The server has the weights `label`, as it says itself."""
        server.state, server.version = "ready", self.versions[self.label]
        server.strikes, server.rests_until = 0, 0.0
        self.heard = time.monotonic()
        self._assign()

    async def drop(self, server: Server, reason: str) -> None:
        """Nothing more is asked of the server until it is healthy; what it worked on is drawn elsewhere."""
        if server.state == "down":  # many of its requests may say so at a time
            return
        server.state = "down"
        server.falls += 1
        server.set_back(reason)
        for task in list(server.running.values()):
            task.cancel()

    @property
    def is_given_up(self) -> bool:
        """Whether waiting is of no use: all servers are."""
        return all(server.is_given_up for server in self.servers)

    def _assign(self) -> None:
        """Hand out requests in their order, but that one may wait for a server where it has not failed yet."""
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
        """A defect of ours in a task must end the run, not the task alone: its pending would never come."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and self.error is None:
            self.error = error

    def _free(self) -> list[Server]:
        now = time.monotonic()
        most = self.config.requests_per_server
        return [server for server in self.ready if len(server.running) < most and server.rests_until <= now]

    def _server_for(self, pending: PendingRequest, free: Sequence[Server]) -> Server | None:
        """The least loaded; a faulty one, which is often free, must not take all attempts while another is busy."""
        if pending.failed_at.issuperset(self.ready):
            pending.failed_at.clear()
        others = [server for server in free if server not in pending.failed_at]
        return min(others, key=lambda server: server.load, default=None)

    async def _work(self, pending: PendingRequest, server: Server) -> None:
        segment = DrawnSegment(server.version, self.versions)
        fault: ServerFault | None = None
        was_dropped = False
        try:
            ended = await self._draw(pending, server, segment) is not None
            if ended and segment.labels is None and segment.version != server.version:
                raise ServerFault("it had new weights meanwhile, and does not say what they drew", is_void=True)
            server.strikes = 0
        except ServerFault as error:
            fault = error
        except asyncio.CancelledError:
            fault, was_dropped = ServerFault(server.reason), True
        finally:
            del server.running[id(pending)]
            server.load -= pending.load
        fault = self._of_labels(server, segment) or fault
        if fault is None or not fault.is_void:
            segment.leave_out_unproven()
            pending.add(segment)
            server.setbacks = 0 if segment.tokens else server.setbacks
        finish = pending.finish(self.stop_tokens)
        if finish is not None and self.error is None:
            pending.arrived.put(pending.completion(finish))
        elif finish is not None or self._aborting:  # nobody takes completions after an error: whoever goes on has it
            self._unfinished.append(pending.unfinished())
        else:
            self._again(pending, server, fault or ServerFault("it ended a response without a reason"), was_dropped)
        self._assign()

    def _of_labels(self, server: Server, segment: DrawnSegment) -> ServerFault | None:
        """Where the labels are not this run's, or not of these tokens: then these do not exist."""
        if segment.is_sound:
            return None
        fault = ServerFault(f"{segment.said}, where it was given {self.label}", is_void=True)
        if segment.is_foreign and server.state == "ready":
            self.counts["foreign"] += 1
            server.state = "stale"
            server.set_back(str(fault))
        return fault

    async def _draw(self, pending: PendingRequest, server: Server, segment: DrawnSegment) -> FinishReason | None:
        finish: FinishReason | None = None
        async with contextlib.aclosing(server.chunks(pending, self.stop_tokens)) as chunks:
            async for chunk in chunks:
                segment.add(chunk, is_proven=server.state == "ready" and server.version == segment.version)
                if chunk.tokens:
                    self.heard = time.monotonic()
                finish = chunk.finish or finish
        return finish

    def _again(self, pending: PendingRequest, server: Server, fault: ServerFault, was_dropped: bool) -> None:
        """Back to the front of the queue, and a mark against the server, unless it fell with all that it worked on."""
        self.counts["resent"] += 1
        if server.state == "ready":
            server.reason = str(fault)
            server.rests_until = time.monotonic() + _REST_SECONDS
        if not was_dropped and not fault.is_busy:
            self.counts["faults"] += 1
            server.strikes += 1
            pending.failures += 1
            pending.failed_at.add(server)
        if pending.failures >= self.config.attempts:
            self._unfinished.append(pending.unfinished())
            what = "refused" if fault.refused else "failed"
            way = "its longest sequence may be too short" if fault.refused else "mend it or leave it out"
            self.error = self.error or RolloutError(
                f"rollout.servers: a request of {len(pending.prompt)} tokens {what} {pending.failures} times, "
                f"last at {server}: {fault}",
                hint=f"the server's log says more; {way}, and resume the run, whose state is saved",
            )
            return
        self._pending.appendleft(pending)
        if server.strikes >= _STRIKES and server.state == "ready":
            task = asyncio.create_task(self.drop(server, f"{server.strikes} faults in a row, the last: {fault}"))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)

    async def _watch(self) -> None:
        """Wakes up requests that wait for a server that rested; looks at every server's health beside, which takes its time."""
        missed = dict.fromkeys(self.servers, 0)
        looks = asyncio.gather(*(self._check(server, missed) for server in self.servers))
        looks_at = time.monotonic() + self.config.health_seconds
        try:
            while True:
                await asyncio.sleep(min(self.config.health_seconds, _REST_SECONDS))
                self._assign()
                if looks.done() and time.monotonic() >= looks_at:
                    looks.result()
                    looks = asyncio.gather(*(self._check(server, missed) for server in self.servers))
                    looks_at = time.monotonic() + self.config.health_seconds
        finally:
            await ended(looks)

    async def _check(self, server: Server, missed: dict[Server, int]) -> None:
        if server.state == "down":
            await self._examine(server)
            return
        if server.state == "stale":  # perhaps in the middle of an update, which has its own time-outs
            return
        missed[server] = 0 if await server.is_healthy() else missed[server] + 1
        if missed[server] >= _MISSES:
            missed[server] = 0
            await self.drop(server, "it does not answer /health")

    async def _examine(self, server: Server) -> None:
        """A server that was down: whether it is back, and with which weights."""
        async with self._examining[server]:
            # The watcher and `look` may both have come; the second would wake a server that an update has paused by now.
            if server.state != "down" or server.is_given_up or not await server.is_healthy():
                return
            seconds = self.config.health_timeout_seconds
            try:
                async with asyncio.timeout(seconds):
                    label = await server.weight_label()
                    await server.release()  # a weight update that broke off may have left it paused
            except (ServerFault, TimeoutError) as error:
                server.reason = str(error) or f"it did not tell its weights within {seconds:g} s"
                return
            if label == self.label and label in self.versions:
                await self.welcome(server)
            else:
                server.state, server.reason = "stale", f"it has the weights {label}, not {self.label}"

    async def close(self) -> None:
        self._aborting = True
        tasks = [task for server in self.servers for task in server.running.values()]
        await ended(*tasks, *([self._watcher] if self._watcher else []))
        await asyncio.gather(*(server.close() for server in self.servers))
