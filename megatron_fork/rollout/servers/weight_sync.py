"""How weights get to servers. Here: through a folder on disk; `broadcast` sends them from rank 0. A server fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PretrainedConfig

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault
from megatron_fork.rollout.weights import Bucket

Lost = Callable[[Server, str], Awaitable[None]]


class Delivery(ABC):
    """One update: `start` with the servers, `send` every bucket, `finish`. `lost` is called with each server that fails.

    Then `again` holds the servers that another one broke it for: start again with them, from the first bucket.
    """

    device = torch.device("cpu")

    def __init__(self, config: RemoteConfig, lost: Lost) -> None:
        self.config = config
        self.lost = lost
        self.servers: list[Server] = []
        self.again: list[Server] = []
        self.notes: list[str] = []
        """Lines that the run is to print."""
        self._held: set[Server] = set()
        self.bytes_sent = 0

    async def start(self, servers: Sequence[Server]) -> None:
        """Hold the requests in progress to the end of the update; they go on with the new weights."""
        self.servers, self.again = list(servers), []

        async def open_one(server: Server) -> None:
            if server.running and server not in self._held:
                self._held.add(server)
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
                self._held.discard(server)
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
                await self._give_up(server, str(result))
            elif isinstance(result, BaseException):
                raise result

    async def _give_up(self, server: Server, reason: str) -> None:
        self.servers.remove(server)
        self._held.discard(server)  # whoever finds it healthy lets it go on
        self.notes.append(f"rollout.servers: {server} gets no weights: {reason}")
        await self.lost(server, f"weight update: {reason}")

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
