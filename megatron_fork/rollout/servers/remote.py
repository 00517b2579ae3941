"""The engine that is elsewhere: servers of vLLM or SGLang, for which the first rank speaks.

Every rank has one of these and makes the same calls; the first rank's talks to the servers, the others' follow its orders
(see `control`). The servers' side lives on an event loop in a thread of its own, so that responses arrive while the main
thread scores, and health is watched while it trains.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError, StopRequested
from megatron_fork.recipe import part
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Request, answers
from megatron_fork.rollout.engines import EngineContext, engine_kind
from megatron_fork.rollout.servers.control import HEARTBEAT_SECONDS, ControlRequests
from megatron_fork.rollout.servers.fleet import Fleet
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.weight_sync import BroadcastDelivery, Delivery, DiskDelivery
from megatron_fork.rollout.weights import buckets

T = TypeVar("T")
# How long to wait for a completion before looking at the servers.
_GLANCE_SECONDS = 0.5
# Between two lines that say what is waited for.
_REMINDER_SECONDS = 60.0


class RemoteEngine:
    """Implements `Engine` over the servers of `config.servers`."""

    is_coordinated = True

    def __init__(
        self,
        config: RolloutConfig,
        hf_config: PretrainedConfig,
        *,
        stop_tokens: Sequence[int],
        folder: Path,
        world: collectives.Group,
        save: Callable[[], None] = lambda: None,
        stop_point: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`folder` is where weights on disk go; every rank calls `save` before a wait that may end the run.

        Waits are told to `say`. `stop_point` raises `StopRequested` on the first rank; then every rank does.
        """
        self.config = config
        self.version = -1
        self.parameters = 0
        self.update_seconds = 0.0
        self.update_bytes = 0
        self._save = save
        self._stop_point = stop_point
        self._say = say
        self._closed = False
        self._aborted = False
        self._spoke = 0.0
        self._arrived: queue.Queue[Completion] = queue.Queue()
        self._control = ControlRequests(world)
        self._weights: Iterable[tuple[str, Tensor]] = ()
        self._nonce = secrets.token_hex(4)  # another run's weights never have this run's labels
        if self._control.leads:
            self._loop = _Loop()
            self._loop.call(self._build(hf_config, stop_tokens, folder))

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """As a run has it: weights on disk go into its folder."""
        return cls(
            context.config,
            context.hf_config,
            stop_tokens=context.stop_tokens,
            folder=context.folder / "engine_weights",
            world=context.world,
            save=context.save,
            stop_point=context.stop_point,
            say=context.say,
        )

    async def _build(self, hf_config: PretrainedConfig, stop_tokens: Sequence[int], folder: Path) -> None:
        server, remote = engine_kind(self.config.engine).server, self.config.remote
        assert server is not None
        servers = [part(server)(url, remote, hf_config.vocab_size) for url in self.config.servers]
        self.fleet = Fleet(servers, remote, stop_tokens=stop_tokens)
        self._delivery: Delivery = (
            DiskDelivery(remote, self.fleet.drop, folder, hf_config)
            if self.config.sync == "disk"
            else BroadcastDelivery(remote, self.fleet.drop, self.config.sync)
        )
        await self.fleet.start()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Returns when one server at least has them; the others get them when they are back.

        Raises `RolloutError` on all ranks when no server can be had within `remote.patience_seconds`. All ranks iterate over
        `weights` together; an iterator, which can do so once only, has nothing for a server that comes back later. With one
        trainer rank it may be called between two completions of `generate`: the requests in progress go on under the new
        weights.
        """
        self.version = version
        self._weights = weights
        if not self._control.leads:
            self._follow()
            return
        started = time.monotonic()
        with self._leading():
            self._loop.call(self.fleet.expect(f"{self._nonce}:{version}", version))
            self._until_ready()
        self.update_seconds = time.monotonic() - started

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """On the first rank, completions as they arrive from anywhere; nothing on the others, which wait for its end."""
        if not self._control.leads:
            self._follow()
            return
        self._aborted = False
        arrived: queue.Queue[Completion] = queue.Queue()
        with self._leading():
            self._loop.call(self.fleet.submit(requests, arrived))
            yield from answers(lambda: self._next(arrived), len(requests), self._is_given_up)

    def submit(self, requests: Sequence[Request]) -> None:
        if self._control.leads:
            self._loop.call(self.fleet.submit(requests, self._arrived))

    def completions(self) -> Generator[Completion | None, None, None]:
        """On the first rank, what was submitted there, also before the last weight update; the others follow to its end."""
        if not self._control.leads:
            self._follow()
            return
        self._aborted = False
        with self._leading():
            while True:
                yield self._next(self._arrived)

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """Each ready server's answers to `requests`."""
        if not self._control.leads:
            self._follow()
            return {}
        answers: dict[str, list[Completion]] = {}
        with self._leading():
            while not answers:
                self._until_ready()  # one that fell at the last try is looked at again, `attempts` times at most
                for server in list(self.fleet.ready):
                    drawn = self._loop.call(self.fleet.draw_at(server, requests))
                    if drawn is not None:
                        answers[str(server)] = drawn
        return answers

    def abort(self) -> None:
        if self._control.leads:
            self._loop.call(self.fleet.abort())
            self._aborted = True

    def unfinished(self) -> list[Request]:
        return self._loop.call(self.fleet.take_unfinished()) if self._control.leads else []

    def rest(self) -> None:
        """Servers hold nothing of the trainer's."""

    def health(self) -> bool:
        """Whether any server is ready, on all ranks alike."""
        ready = bool(self.fleet.ready) if self._control.leads else False
        return bool(collectives.broadcast_object(ready, self._control.world))

    def close(self) -> None:
        if self._control.leads and not self._closed:
            self._closed = True
            self._loop.call(self._delivery.close())
            self._loop.call(self.fleet.close())
            self._loop.close()

    def _is_given_up(self) -> bool:
        self._stop_point()
        return self._aborted

    def _next(self, arrived: queue.Queue[Completion]) -> Completion | None:
        """The next to arrive, None where there is none for a while; servers that are back get their weights first."""
        error = self.fleet.error
        try:
            return arrived.get(timeout=0.0 if self._aborted or error is not None else _GLANCE_SECONDS)
        except queue.Empty:
            pass
        if error is not None:  # what had been answered before it is kept
            raise error
        if any(server.state == "stale" for server in self.fleet.servers) or not self.fleet.ready:
            self._until_ready()
        elif self.fleet.is_drawing and time.monotonic() - self.fleet.heard > self.config.remote.patience_seconds:
            self._save_all()
            raise self._out_of_patience("none has sent a token", "see why they take no requests, or add servers")
        elif time.monotonic() - self._spoke > HEARTBEAT_SECONDS:
            self._control.give("wait")
            self._spoke = time.monotonic()
        return None

    def _until_ready(self) -> None:
        """Give weights to the servers in want of them; wait while there is no server at all."""
        began: float | None = None
        while True:
            stale = self._loop.call(self.fleet.look(), self._stop_point)
            if stale:
                self._deliver(stale)
            if self.fleet.ready:
                return
            if self.fleet.is_given_up:
                self._save_all()
                raise self._none_left("none is of use", "mend or replace them")
            if began is None:
                began = spoke = time.monotonic()
                self._save_all()
                self._say(self._waiting(began))
            elif time.monotonic() - began > self.config.remote.patience_seconds:
                raise self._out_of_patience("none is ready", "start the servers again")
            elif time.monotonic() - spoke > _REMINDER_SECONDS:
                spoke = time.monotonic()
                self._say(self._waiting(began))
            self._control.give("wait")
            time.sleep(min(1.0, self.config.remote.health_seconds))
            self._stop_point()

    def _waiting(self, began: float) -> str:
        waited, patience = time.monotonic() - began, self.config.remote.patience_seconds
        return f"waiting for rollout.servers, {waited:.0f} of {patience:.0f} s: " + "; ".join(
            f"{server}: {server.reason}" for server in self.fleet.servers
        )

    def _save_all(self) -> None:
        self._control.give("save")
        self._save()

    def _out_of_patience(self, what: str, remedy: str) -> RolloutError:
        return self._none_left(f"{what} after {self.config.remote.patience_seconds:.0f} s", remedy)

    def _none_left(self, what: str, remedy: str) -> RolloutError:
        return RolloutError(
            f"rollout.servers: {what}: " + "; ".join(f"{server}: {server.reason}" for server in self.fleet.servers),
            hint=f"{remedy}, and resume the run; its state is saved",
        )

    def _deliver(self, servers: Sequence[Server]) -> None:
        """One pass over the weights, which all ranks make together, whatever becomes of the servers."""
        self._control.give("weights")
        before, self.parameters = self._delivery.bytes_sent, 0
        self._loop.call(self._delivery.start(servers), self._stop_point)
        pieces = buckets(self._weights, self.config.remote.bucket_mebibytes << 20, self._delivery.device)
        try:
            for bucket in pieces:
                self.parameters += sum(tensor.numel() for _, tensor in bucket)
                self._loop.call(self._delivery.send(bucket), self._stop_point)
        finally:
            for _ in pieces:  # the other ranks are in the middle of it
                pass
        if not self.parameters:
            raise RolloutError(
                "a server came back and there are no weights to give it",
                hint="give `update_weights` something that can be iterated again",
            )
        for server in self._loop.call(self._delivery.finish(self.fleet.label), self._stop_point):
            self._loop.call(self.fleet.welcome(server))
        self.update_bytes = self._delivery.bytes_sent - before

    def _follow(self) -> None:
        def gather() -> None:
            self.parameters = sum(tensor.numel() for _, tensor in self._weights)

        self._control.follow({"weights": gather, "save": self._save})

    @contextmanager
    def _leading(self) -> Iterator[None]:
        """The other ranks follow until the end of this context, and fail as it fails."""
        try:
            yield
        except StopRequested:
            self._control.give("stopped")
            raise
        except RolloutError as error:
            self._control.give("failed", error.message, error.hint)
            raise
        except GeneratorExit:  # whoever takes completions has enough
            pass
        except BaseException as error:
            self._control.give("failed", f"the first rank stopped: {error!r}")
            raise
        self._control.give("done")


class _Loop:
    """An event loop in a thread; `call` runs a coroutine there and waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout servers", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], stop_point: Callable[[], None] = lambda: None) -> T:
        """The result of `work`, which is given up where `stop_point` raises."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not futures.wait([future], _GLANCE_SECONDS).done:
                stop_point()
        except StopRequested:
            future.cancel()
            raise
        return future.result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
