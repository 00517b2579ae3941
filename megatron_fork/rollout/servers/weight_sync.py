"""How weights get to servers: through a folder on disk, or by a broadcast from rank 0. A server that fails fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from transformers import PretrainedConfig

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.event_loop import ended, in_daemon_thread
from megatron_fork.rollout.servers.server import BroadcastAddress, Server
from megatron_fork.rollout.servers.wire import ServerFault
from megatron_fork.rollout.weights import Bucket
from megatron_fork.serving import Backend, TransferGroup, TransferStore, address_towards, join_transfer

Lost = Callable[[Server, str], Awaitable[None]]


class Delivery(ABC):
    """One update: `start` with the servers, `send` every bucket, `finish`. `lost` is called with each server that fails."""

    device = torch.device("cpu")

    def __init__(self, config: RemoteConfig, lost: Lost) -> None:
        self.config = config
        self.lost = lost
        self.servers: list[Server] = []
        self._held: set[Server] = set()
        self.bytes_sent = 0

    async def start(self, servers: Sequence[Server]) -> None:
        """Hold the requests in progress to the end of the update; they go on with the new weights."""
        self.servers = list(servers)
        self._held = {server for server in servers if server.running}

        async def open_one(server: Server) -> None:
            if server in self._held:
                await server.hold()
            await self._open(server)

        await self._each(open_one)

    @abstractmethod
    async def send(self, bucket: Bucket) -> None:
        """Send the next bucket to all servers that have not failed."""

    async def finish(self, label: str) -> list[Server]:
        """The servers that have all weights now, and say so."""

        async def close(server: Server) -> None:
            await self._close(server, label)
            await server.forget_prefixes()
            if server in self._held:
                await server.release()
            found = await server.weight_label()
            if found != label:
                raise ServerFault(f"after the update it has the weights {found}, not {label}")

        await self._each(close)
        return self.servers

    async def _open(self, server: Server) -> None:  # noqa: B027
        """Prepare one server, if it needs that."""

    @abstractmethod
    async def _close(self, server: Server, label: str) -> None:
        """End the update at one server."""

    async def _each(self, work: Callable[[Server], Awaitable[None]]) -> None:
        results = await asyncio.gather(*(work(server) for server in self.servers), return_exceptions=True)
        for server, result in zip(list(self.servers), results, strict=True):
            if isinstance(result, ServerFault):
                self.servers.remove(server)
                await self._give_up(server, f"weight update: {result}")
            elif isinstance(result, BaseException):
                raise result

    async def _give_up(self, server: Server, reason: str) -> None:
        await self.lost(server, reason)

    async def close(self) -> None:  # noqa: B027
        """Free what the delivery holds between updates."""


class DiskDelivery(Delivery):
    """A Hugging Face folder that servers load, one file per bucket. An update's folder stays until the next one is loaded."""

    def __init__(self, config: RemoteConfig, lost: Lost, folder: Path, hf_config: PretrainedConfig) -> None:
        super().__init__(config, lost)
        self.folder = folder.resolve()
        self.hf_config = hf_config
        self._files: dict[str, str] = {}
        self._count = 0

    async def start(self, servers: Sequence[Server]) -> None:
        await super().start(servers)
        self._files, self._count = {}, 0
        shutil.rmtree(self._partial, ignore_errors=True)
        with self._writing():
            self._partial.mkdir(parents=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RolloutError(
                f"{self._partial} cannot be written: {error}", hint="free some space, or check the folder's permissions"
            ) from error

    @property
    def _partial(self) -> Path:
        return self.folder / "partial"

    async def send(self, bucket: Bucket) -> None:
        self._count += 1
        name = f"model-{self._count:05d}.safetensors"
        with self._writing():
            await asyncio.to_thread(save_file, dict(bucket), self._partial / name, metadata={"format": "pt"})
        self._files.update({tensor: name for tensor, _ in bucket})
        self.bytes_sent += sum(tensor.nbytes for _, tensor in bucket)

    async def finish(self, label: str) -> list[Server]:
        index = {"metadata": {}, "weight_map": self._files}
        complete = self.folder / label.replace(":", "-")
        shutil.rmtree(complete, ignore_errors=True)
        with self._writing():
            (self._partial / "model.safetensors.index.json").write_text(json.dumps(index))
            self.hf_config.save_pretrained(self._partial)
            self._partial.rename(complete)
        servers = await super().finish(label)
        for old in self.folder.iterdir():
            if old != complete:
                shutil.rmtree(old, ignore_errors=True)
        return servers

    async def _close(self, server: Server, label: str) -> None:
        await server.reload(str(self.folder / label.replace(":", "-")), label)


@dataclass(frozen=True)
class _Connection:
    """A server's process group; the store must live as long. `falls`: how often the server had gone down when it was made."""

    group: TransferGroup
    rendezvous: BroadcastAddress
    store: TransferStore
    falls: int


class BroadcastDelivery(Delivery):
    """Tensor by tensor over one process group per server; a group is kept between updates, and made again when it breaks."""

    def __init__(self, config: RemoteConfig, lost: Lost, backend: Backend) -> None:
        super().__init__(config, lost)
        self.backend = backend
        if backend == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._groups: dict[Server, _Connection] = {}
        self._made = 0

    async def _open(self, server: Server) -> None:
        kept = self._groups.get(server)
        if kept is None or kept.falls != server.falls:
            self._forget(server)  # after it went down it may be another process than the one that joined
            await self._connect(server)
        await server.begin_update()

    async def _connect(self, server: Server) -> None:
        self._made += 1
        try:
            address = address_towards(*server.endpoint)
            store = TransferStore(address, timeout=self.config.control_seconds)
        except (OSError, RuntimeError) as error:  # no such host; torch raises the latter for a port
            raise ServerFault(f"its workers cannot be reached: {str(error).splitlines()[0]}") from error
        rendezvous = BroadcastAddress(
            address=address,
            port=store.port,
            name=f"megatron_fork_{self._made}_{store.port}",
            backend=self.backend,
            size=1 + await server.workers(),
            timeout=self.config.control_seconds,
        )
        joining = asyncio.create_task(server.join(rendezvous))
        forming = asyncio.create_task(in_daemon_thread(lambda: self._join(store, rendezvous, server)))
        try:
            # An answer before the group is formed is a refusal: the workers will not join any more.
            await asyncio.wait([joining, forming], return_when=asyncio.FIRST_COMPLETED)
            await joining
            group = await forming
        except RuntimeError as error:  # torch's rendezvous
            raise ServerFault(f"no process group with its workers: {str(error).splitlines()[0]}") from error
        finally:
            await ended(joining, forming)
        self._groups[server] = _Connection(group, rendezvous, store, server.falls)

    def _join(self, store: TransferStore, rendezvous: BroadcastAddress, server: Server) -> TransferGroup:
        inner: Store = store.store
        for prefix in server.store_prefixes(rendezvous):
            inner = PrefixStore(prefix, inner)
        return join_transfer(
            inner,
            self.backend,
            rank=0,
            size=rendezvous.size,
            address=rendezvous.address,
            timeout=self.config.control_seconds,
        )

    async def send(self, bucket: Bucket) -> None:
        names = [name for name, _ in bucket]
        dtypes = [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket]
        shapes = [list(tensor.shape) for _, tensor in bucket]
        self.bytes_sent += sum(tensor.nbytes for _, tensor in bucket) * len(self.servers)

        async def to(server: Server) -> None:
            connection = self._groups[server]
            answer = asyncio.create_task(server.receive(connection.rendezvous, names, dtypes, shapes))
            try:
                await self._broadcast(connection.group, bucket, answer)
                await answer
            finally:
                await ended(answer)

        await self._each(to)

    async def _broadcast(self, group: TransferGroup, bucket: Bucket, answer: asyncio.Task[None]) -> None:
        """Send tensor by tensor, and stop if the server answers before it has them all: that is a refusal."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.control_seconds
        for _, tensor in bucket:
            try:
                work = group.broadcast(tensor)
                while not work.is_completed():
                    if answer.done():
                        answer.result()
                    if loop.time() > deadline:
                        raise ServerFault(f"a bucket was not received within {self.config.control_seconds:.0f} s")
                    await asyncio.sleep(0.0005)
                work.wait()
            except RuntimeError as error:  # torch's: the connection is gone
                raise ServerFault(f"the broadcast broke off: {str(error).splitlines()[0]}") from error

    async def _close(self, server: Server, label: str) -> None:
        await server.end_update(label)

    async def _give_up(self, server: Server, reason: str) -> None:
        self._forget(server)
        await super()._give_up(server, reason)

    def _forget(self, server: Server) -> None:
        kept = self._groups.pop(server, None)
        if kept is not None:
            kept.group.close()

    async def close(self) -> None:
        for server in list(self._groups):
            self._forget(server)
