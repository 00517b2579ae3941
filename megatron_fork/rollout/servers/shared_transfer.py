"""One process group of rank 0 and the workers of several servers, over which each bucket is sent once, in one message.

What one server does wrong breaks it for all of them. So all are asked at a time, each is watched while it receives, and when it
breaks the servers that did it are told from those that only waited for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self

from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.event_loop import ended, in_daemon_thread
from megatron_fork.rollout.servers.server import BroadcastAddress, Server
from megatron_fork.rollout.servers.wire import ServerFault
from megatron_fork.serving import Backend, Message, TransferGroup, TransferStore, join_transfer

# Looks at a server that it may miss while it receives.
_MISSES = 2
# Of `control_seconds`, for each side of a transfer: what is left is for the servers to say that it failed.
_FRACTION = 0.5


class TransferBroken(Exception):
    """`lost` are the servers that broke it, each with a reason; the others can receive as before."""

    def __init__(self, reason: str, lost: Mapping[Server, str]) -> None:
        super().__init__(reason)
        self.lost = lost


class SharedTransfer:
    """Kept between updates, as long as its servers stay the same."""

    def __init__(
        self,
        servers: Sequence[Server],
        workers: Mapping[Server, int],
        address: str,
        config: RemoteConfig,
        backend: Backend,
    ) -> None:
        """Raises `ServerFault` if nothing can listen at `address`."""
        self.servers = tuple(servers)
        self.config = config
        self.seconds = config.control_seconds * _FRACTION
        self._falls = tuple(server.falls for server in servers)
        try:
            self._store = TransferStore(address, timeout=self.seconds)
        except (OSError, RuntimeError) as error:  # torch raises the latter for a port
            raise ServerFault(f"its workers cannot be reached: {_first_line(error)}") from error
        self._group: TransferGroup | None = None
        self._rendezvous: dict[Server, BroadcastAddress] = {}
        size = 1 + sum(workers[server] for server in servers)
        offset = 1
        for server in servers:
            self._rendezvous[server] = BroadcastAddress(
                address=address,
                port=self._store.port,
                name=f"megatron_fork_{self._store.port}_{id(self)}",
                backend=backend,
                offset=offset,
                size=size,
                timeout=self.seconds,
            )
            offset += workers[server]

    @classmethod
    async def formed(
        cls,
        servers: Sequence[Server],
        workers: Mapping[Server, int],
        address: str,
        config: RemoteConfig,
        backend: Backend,
    ) -> Self:
        """With all of `servers`; raises `TransferBroken` if one does not join."""
        try:
            made = cls(servers, workers, address, config, backend)
        except ServerFault as fault:
            raise TransferBroken(str(fault), dict.fromkeys(servers, str(fault))) from fault
        await made._together({server: server.join(made._rendezvous[server]) for server in servers}, made._join())
        return made

    def fits(self, servers: Sequence[Server]) -> bool:
        """Whether it has these servers; one that went down may be another process than the one that joined."""
        return self.servers == tuple(servers) and self._falls == tuple(server.falls for server in servers)

    async def send(self, message: Message, data: Tensor) -> None:
        """Send the bytes of a message to all; raises `TransferBroken` if one does not receive or load it."""
        calls = {server: server.receive(self._rendezvous[server], message) for server in self.servers}
        await self._together(calls, self._broadcast(data))

    async def _join(self) -> None:
        first = self._rendezvous[self.servers[0]]
        inner: Store = self._store.store
        for prefix in self.servers[0].store_prefixes(first):
            inner = PrefixStore(prefix, inner)

        def join() -> TransferGroup:
            return join_transfer(
                inner, first.backend, rank=0, size=first.size, address=first.address, timeout=self.seconds
            )

        try:
            self._group = await in_daemon_thread(join)
        except RuntimeError as error:  # torch's rendezvous
            raise ServerFault(f"no process group with its workers: {_first_line(error)}") from error

    async def _broadcast(self, data: Tensor) -> None:
        assert self._group is not None
        if not len(data):  # nothing has changed
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.seconds
        try:
            work = self._group.broadcast(data)
            while not work.is_completed():
                if loop.time() > deadline:
                    raise ServerFault(f"a bucket was not received within {self.seconds:g} s")
                await asyncio.sleep(0.0005)
            work.wait()
        except RuntimeError as error:  # torch's: a connection is gone
            raise ServerFault(f"the broadcast broke off: {_first_line(error)}") from error

    async def _together(
        self, calls: Mapping[Server, Coroutine[Any, Any, None]], ours: Coroutine[Any, Any, None]
    ) -> None:
        """Our side and the answers of all servers; the first fault of any is the end for all."""
        answers = {server: asyncio.create_task(call) for server, call in calls.items()}
        watches = {server: asyncio.create_task(self._watch(server, answer)) for server, answer in answers.items()}
        everything = [*answers.values(), *watches.values(), asyncio.create_task(ours)]
        try:
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_EXCEPTION)
            fault = next((task.exception() for task in everything if task in done and task.exception()), None)
            if fault is None:
                return
            self.close()
            if not isinstance(fault, ServerFault):
                raise fault
            raise TransferBroken(str(fault), await self._culprits(str(fault), answers, watches))
        finally:
            await ended(*everything)

    async def _watch(self, server: Server, answer: asyncio.Task[None]) -> None:
        """Raises `ServerFault` if the server is not there any more, long before its answer is late."""
        missed = 0
        while not answer.done():
            await asyncio.wait([answer], timeout=self.config.health_seconds)
            missed = 0 if answer.done() or await server.has_pulse() else missed + 1
            if missed >= _MISSES:
                raise ServerFault(f"{server.pulse} was not answered while it was given weights")

    async def _culprits(
        self, reason: str, answers: Mapping[Server, asyncio.Task[None]], watches: Mapping[Server, asyncio.Task[None]]
    ) -> dict[Server, str]:
        """Servers that are not there, or do not say that they gave up; the others only waited for them."""
        if len(answers) == 1:
            return dict.fromkeys(answers, reason)
        gone = {
            server: str(watch.exception()) for server, watch in watches.items() if watch.done() and watch.exception()
        }
        waited = [server for server in answers if server not in gone]
        seconds = _MISSES * self.config.health_timeout_seconds

        async def give_up(server: Server) -> None:
            await asyncio.wait([answers[server]])
            await server.leave(self._rendezvous[server])  # workers that wait for this one's see that it is gone

        leaving = [asyncio.create_task(give_up(server)) for server in waited]
        if leaving:
            await asyncio.wait(leaving, timeout=seconds)
        await ended(*leaving)
        alive = await asyncio.gather(*(server.has_pulse() for server in waited))
        for server, is_alive in zip(waited, alive, strict=True):
            answer = answers[server]
            if not answer.done():
                gone[server] = f"it did not give up within {seconds:g} s what another broke: {reason}"
            elif not is_alive:
                gone[server] = str(answer.exception() or f"{server.pulse} was not answered: {reason}")
        return gone

    async def leave(self, servers: Sequence[Server]) -> None:
        """Give it up, and tell these servers."""
        self.close()
        await asyncio.gather(*(server.leave(self._rendezvous[server]) for server in servers), return_exceptions=True)

    def close(self) -> None:
        """Give it up: workers that still wait for a tensor see it."""
        self._store.close()
        if self._group is not None:
            self._group.close()
            self._group = None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
