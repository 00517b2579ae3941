"""How weights get to servers. Here: through a folder on disk; `broadcast` sends them from rank 0. A server fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.servers.arrival import Arrival
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import Late, ServerFault
from megatron_fork.rollout.weights import Bucket, packed
from megatron_fork.serving import Message, WeightCopy, described, write_message

T = TypeVar("T")
Lost = Callable[[Server, str], Awaitable[None]]

# The label of weights that have not been compared with what was sent.
_UNCHECKED = "unchecked"


class Delivery(ABC):
    """One update: `start` with the servers, `send` every bucket, `finish`. `lost` is called with each server that fails.

    Then `again` holds the servers that another one broke it for: start again with them, from the first bucket.

    With `delta_updates` servers that all have the weights of the last update are sent what has changed since; whenever one of
    them has not, all are sent everything. With `verify_weights` a server is named as having the weights only after checksums of
    what its workers hold equal those of what was sent.
    """

    device = torch.device("cpu")
    compresses = True
    """Whether changes are made smaller still before they are sent: the way is slower than the compression."""

    def __init__(self, config: RemoteConfig, lost: Lost) -> None:
        self.config = config
        self.lost = lost
        self.servers: list[Server] = []
        self.again: list[Server] = []
        self.notes: list[str] = []
        """Lines that the run is to print."""
        self._held: set[Server] = set()
        self.bytes_sent = 0
        self._label = ""
        self._arrival = Arrival()
        self._checked: dict[Server, int] = {}
        """How often a server had been down when it was last compared: it may be another process since."""
        self._checking: set[Server] = set()
        self._copy = WeightCopy() if config.delta_updates else None
        self._acknowledged: dict[Server, tuple[str, int]] = {}
        """Which weights a server has said that it has, and how often it had been down then."""
        self._as_changes = False

    async def start(self, servers: Sequence[Server], label: str) -> None:
        """Hold the requests in progress to the end of the update, to the weights `label`; they go on with those."""
        self.servers, self.again = list(servers), []
        self._label, self._arrival, self._checking = label, Arrival(), set()
        if self._copy is not None:
            self._copy.begin()
            base = self._copy.base
            is_base = all(self._acknowledged.get(server) == (base, server.falls) for server in servers)
            self._as_changes = bool(base) and base != label and is_base

        async def open_one(server: Server) -> None:
            if server.running and server not in self._held:
                self._held.add(server)
                await server.hold()
            if self.config.verify_weights == "always" or self._checked.get(server) != server.falls:
                await self._expect_report(server)
            await self._open(server)

        await self._each(open_one)

    async def _expect_report(self, server: Server) -> None:
        """Compare the server at the end, if it can say what it holds."""
        if self.config.verify_weights == "never":
            return
        try:
            self._arrival.expect(await server.held_types())
            self._checking.add(server)
        except Late:
            raise
        except ServerFault as fault:
            if self._checked.get(server) != server.falls:
                self.notes.append(
                    f"rollout.servers: {server} cannot prove which weights it holds, the probe alone checks them: {fault} "
                    "(start it with megatron_fork.serving.start, or set rollout.remote.verify_weights=never)"
                )
            self._checked[server] = server.falls

    async def send(self, bucket: Bucket) -> None:
        """Send the next bucket to all servers that have not failed."""
        if self._copy is None:
            message, data = described(bucket), packed(bucket)
        else:
            send = partial(self._copy.send, version=self._label, as_changes=self._as_changes, compress=self.compresses)
            message, data = await _in_thread(send, bucket)
            data = data if self._as_changes else packed(bucket)
        sums = _in_thread(self._arrival.add, bucket) if self._checking else asyncio.sleep(0)
        await asyncio.gather(self._send(bucket, message, data), sums)

    @abstractmethod
    async def _send(self, bucket: Bucket, message: Message, data: Tensor) -> None:
        """Send the `[message.bytes]` of a bucket, and count them."""

    async def finish(self, label: str) -> list[Server]:
        """The servers that have all weights now, and say so."""
        if self._copy is not None:
            self._copy.finish()

        async def close(server: Server) -> None:
            if server in self._checking:
                await self._close(server, _UNCHECKED)
                await self._compare(server)
                await server.name_weights(label)
            else:
                await self._close(server, label)
            await server.forget_prefixes()
            if server in self._held:
                await server.release()
                self._held.discard(server)
            found = await server.weight_label()
            if found != label:
                raise ServerFault(f"after the update it has the weights {found}, not {label}")
            self._acknowledged[server] = label, server.falls

        await self._each(close)
        return self.servers

    async def _compare(self, server: Server) -> None:
        """Raises `ServerFault` that names the tensors which the server does not hold as they were sent."""
        parts = await server.held(self._arrival.tensors)
        fault = self._arrival.fault_of(parts)
        if fault:
            raise ServerFault(f"{fault}; it is sent all weights again, and is left out if that does not help")
        unseen = self._arrival.unseen(parts)
        if unseen and self._checked.get(server) != server.falls:
            self.notes.append(
                f"rollout.servers: {server} says nothing that can be compared of {len(unseen)} tensors, such as {unseen[0]}: "
                "the probe checks them"
            )
        self._checked[server] = server.falls

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


async def _in_thread(work: Callable[[Bucket], T], bucket: Bucket) -> T:
    """As `asyncio.to_thread`, whose threads hold what they were given for a moment after the result is there: here, nothing."""
    given = [bucket]
    del bucket
    return await asyncio.to_thread(lambda: work(given.pop()))


class DiskDelivery(Delivery):
    """A Hugging Face folder that servers load, one file per bucket. An update's folder stays until the next one is loaded."""

    def __init__(self, config: RemoteConfig, lost: Lost, folder: Path, hf_config: PretrainedConfig) -> None:
        super().__init__(config, lost)
        self.folder = folder.resolve()
        self.hf_config = hf_config
        self._files: dict[str, str] = {}
        self._count = 0

    async def start(self, servers: Sequence[Server], label: str) -> None:
        await super().start(servers, label)
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

    async def _send(self, bucket: Bucket, message: Message, data: Tensor) -> None:
        self._count += 1
        self.bytes_sent += message.bytes
        if self._copy is not None:
            with self._writing():
                await asyncio.to_thread(write_message, self._partial, self._count, message, data)
            return
        name = f"model-{self._count:05d}.safetensors"
        with self._writing():
            await asyncio.to_thread(save_file, dict(bucket), self._partial / name, metadata={"format": "pt"})
        self._files.update({tensor: name for tensor, _ in bucket})

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
        folder = str(self.folder / self._label.replace(":", "-"))
        await (server.reload(folder, label) if self._copy is None else server.take_messages(folder, label))
