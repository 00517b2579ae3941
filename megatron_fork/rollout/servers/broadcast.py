"""Weights from rank 0 over one process group with all servers: one copy leaves it, however many they are.

A server that dies or hangs breaks the process group. It is then formed anew without that server, and the update is made again
from its first bucket: a server has new weights only once it has all of them and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import torch
from torch import Tensor

from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.shared_transfer import SharedTransfer, TransferBroken
from megatron_fork.rollout.servers.weight_sync import Delivery, Lost
from megatron_fork.rollout.servers.wire import ServerFault
from megatron_fork.rollout.weights import Bucket
from megatron_fork.serving import Backend, Message, address_towards

# How often one update may break for servers that share a process group; each then gets one of its own.
_BREAKS = 2


class BroadcastDelivery(Delivery):
    """Tensor by tensor to servers that share a process group, which is kept between updates.

    An update that breaks too often is made with a process group for each server: whoever fails then fails alone. If none
    does, and no server was found to have broken it, they cannot share one, and it is not tried again.
    """

    def __init__(self, config: RemoteConfig, lost: Lost, backend: Backend) -> None:
        super().__init__(config, lost)
        self.backend = backend
        self.compresses = backend != "nccl"
        if backend == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._transfers: list[SharedTransfer] = []
        self._workers: dict[Server, int] = {}
        self._addresses: dict[Server, str] = {}
        self._breaks = 0
        self._was_explained = True
        self._never_shares = False

    async def start(self, servers: Sequence[Server], label: str) -> None:
        if list(servers) != self.again:
            self._breaks, self._was_explained = 0, False
        await super().start(servers, label)
        await self._form()

    async def _open(self, server: Server) -> None:
        try:
            self._addresses[server] = address_towards(*server.endpoint)
        except OSError as error:  # no such host
            raise ServerFault(f"its workers cannot be reached: {error}") from error
        self._workers[server] = await server.workers()
        await server.begin_update()

    async def _form(self) -> None:
        """A process group for all servers, which is formed anew until all that are left have joined."""
        while True:
            wanted = self._divided()
            fitting = [each for each in self._transfers if any(each.fits(servers) for _, servers in wanted)]
            missing = [each for each in wanted if not any(kept.fits(each[1]) for kept in fitting)]
            old = [each for each in self._transfers if each not in fitting]
            self._transfers = fitting
            await asyncio.gather(*(each.leave([s for s in each.servers if s.state != "down"]) for each in old))
            results = await asyncio.gather(
                *(
                    SharedTransfer.formed(servers, self._workers, address, self.config, self.backend)
                    for address, servers in missing
                ),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, SharedTransfer):
                    self._transfers.append(result)
                elif isinstance(result, TransferBroken):
                    await self._count_break(result)
                else:
                    raise result
            if not any(isinstance(result, TransferBroken) for result in results):
                return

    def _divided(self) -> list[tuple[str, list[Server]]]:
        """Servers that share a process group, each with rank 0's address there.

        All do, unless this machine has several addresses towards them. A server on this machine itself reaches all of those.
        """
        if self._never_shares or self._breaks >= _BREAKS:
            return [(self._addresses[server], [server]) for server in self.servers]
        outer = [address for address in map(self._addresses.__getitem__, self.servers) if not _is_loopback(address)]
        divided: dict[str, list[Server]] = {}
        for server in self.servers:
            address = self._addresses[server]
            divided.setdefault(outer[0] if outer and _is_loopback(address) else address, []).append(server)
        return list(divided.items())

    async def _send(self, bucket: Bucket, message: Message, data: Tensor) -> None:
        transfers, data = list(self._transfers), data.to(self.device)
        results = await asyncio.gather(*(each.send(message, data) for each in transfers), return_exceptions=True)
        for transfer, result in zip(transfers, results, strict=True):
            if isinstance(result, TransferBroken):
                self._transfers.remove(transfer)
                await self._count_break(result)
                waiting = [server for server in transfer.servers if server in self.servers]
                self.servers = [server for server in self.servers if server not in waiting]
                self.again += waiting
            elif result is not None:
                raise result
            else:
                self.bytes_sent += message.bytes

    async def _count_break(self, broken: TransferBroken) -> None:
        """Leave out the servers that did it, if that is known."""
        self._breaks += 1
        self._was_explained = self._was_explained or bool(broken.lost)
        if not broken.lost:
            self.notes.append(f"rollout.servers: a weight update broke, and is made again: {broken}")
        for server, reason in broken.lost.items():
            await self._give_up(server, reason)

    async def _close(self, server: Server, label: str) -> None:
        await server.end_update(label)

    async def finish(self, label: str) -> list[Server]:
        finished = await super().finish(label)
        if self._breaks >= _BREAKS and not self._was_explained and not self.again:
            self._never_shares = True
            self.notes.append("rollout.servers cannot share a process group: from now on each gets weights by itself")
        return finished

    async def close(self) -> None:
        for transfer in self._transfers:
            transfer.close()
        self._transfers = []


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback
