"""The engine that draws at servers of vLLM or SGLang; the first rank talks to them.

Every rank has one of these and makes the same calls; the first rank's talks to the servers, and the others' follow its
requests (see `control`). The servers' side runs on an event loop in a thread of its own, so that responses arrive while the
main thread scores, and health is watched while it trains.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError, StopRequested
from megatron_fork.recipe import part
from megatron_fork.rollout.config import RemoteConfig, RolloutConfig
from megatron_fork.rollout.engine import Completion, Request, answers
from megatron_fork.rollout.engines import EngineContext, engine_kind
from megatron_fork.rollout.servers.adoption import label_of_all
from megatron_fork.rollout.servers.broadcast import BroadcastDelivery
from megatron_fork.rollout.servers.control import HEARTBEAT_SECONDS, ControlRequests
from megatron_fork.rollout.servers.event_loop import EventLoop
from megatron_fork.rollout.servers.fleet import Fleet
from megatron_fork.rollout.servers.routed import ExpertsShape
from megatron_fork.rollout.servers.server import within_open_files
from megatron_fork.rollout.servers.weight_passes import WeightPasses
from megatron_fork.rollout.servers.weight_sync import Delivery, DiskDelivery

# How long to wait for a completion before checking the servers.
_POLL_SECONDS = 0.5
# Time between two lines that say which servers the run waits for.
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
        records_experts: bool = False,
        stop_point: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`folder` takes weights on disk; every rank calls `save` before a wait that may end the run.

        With `records_experts` every completion says which experts its tokens were sent to.

        `say` prints what the run waits for. If `stop_point` raises `StopRequested` on the first rank, every rank does.
        """
        self.config = config
        self.version = -1
        self.update_seconds = 0.0
        self._records_experts = records_experts
        self._save = save
        self._stop_point = stop_point
        self._say = say
        self._closed = False
        self._aborted = False
        self._last_heartbeat = 0.0
        self._arrived: queue.Queue[Completion] = queue.Queue()
        self._control = ControlRequests(world)
        self._passes = WeightPasses(self._control, config.remote.bucket_mebibytes << 20, stop_point, say)
        self._keeps_theirs = False
        self._nonce = secrets.token_hex(4)  # another run's weights never have this run's labels
        if self._control.leads:
            self._loop = self._passes.loop = EventLoop()
            self._loop.call(self._build(within_open_files(config, say), hf_config, stop_tokens, folder))

    @property
    def parameters(self) -> int:
        """Numbers in the weights that the last update passed over."""
        return self._passes.parameters

    @property
    def update_bytes(self) -> int:
        """Sent by the last update."""
        return self._passes.bytes_sent

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """The engine of a run; weights on disk go into the run's folder."""
        return cls(
            context.config,
            context.hf_config,
            stop_tokens=context.stop_tokens,
            folder=context.folder / "engine_weights",
            world=context.world,
            records_experts=context.records_experts,
            save=context.save,
            stop_point=context.stop_point,
            say=context.say,
        )

    async def _build(
        self, remote: RemoteConfig, hf_config: PretrainedConfig, stop_tokens: Sequence[int], folder: Path
    ) -> None:
        server = engine_kind(self.config.engine).server
        assert server is not None
        servers = [part(server)(url, remote, hf_config.vocab_size) for url in self.config.servers]
        for each in servers if self._records_experts else []:
            each.experts = ExpertsShape.of(hf_config)
        self.fleet = Fleet(servers, remote, stop_tokens=stop_tokens)
        self._delivery: Delivery = (
            DiskDelivery(remote, self.fleet.mark_down, folder, hf_config)
            if self.config.sync == "disk"
            else BroadcastDelivery(remote, self.fleet.mark_down, self.config.sync)
        )
        await self.fleet.start()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Returns when at least one server has the weights; the others get them when they are back.

        Raises `RolloutError` on all ranks when no server is ready within `remote.patience_seconds`. All ranks iterate over
        `weights` together; an iterator, which is empty after one pass, has nothing for a server that comes back later, or
        for those whose update another one broke. With
        one trainer rank it may be called between two completions of `generate`: requests in progress go on with the new
        weights.
        """
        self.version, self._keeps_theirs = version, False
        self._passes.weights = weights
        if not self._control.leads:
            self._follow()
            return
        started = time.monotonic()
        with self._leading():
            self._loop.call(self.fleet.expect(f"{self._nonce}:{version}", version))
            self._until_ready()
        self.update_seconds = time.monotonic() - started

    def adopt_weights(self, model: str) -> None:
        """Draw with the weights that the servers have, in place of `update_weights`.

        `model`: the name or folder under which each server has it. Raises `RolloutError` if one does not answer or serves
        another, or if their weights have different labels.
        """
        self.version, self._keeps_theirs = 0, True
        if not self._control.leads:
            self._follow()
            return
        with self._leading():
            self._loop.call(self.fleet.adopt(self._loop.call(label_of_all(self.fleet.servers, model))))
            self._until_ready()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """On the first rank, completions as they arrive from any server; nothing on the others, which wait for its end."""
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
        """On the first rank, completions of what it submitted, even before the last weight update; the others follow."""
        if not self._control.leads:
            self._follow()
            return
        self._aborted = False
        with self._leading():
            while True:
                yield self._next(self._arrived)

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """Each ready server's answers to `requests`, drawn at all of them at a time."""
        if not self._control.leads:
            self._follow()
            return {}
        answers: dict[str, list[Completion]] = {}
        with self._leading():
            while not answers:
                self._until_ready()  # a server that failed at the last try is checked again, `attempts` times at most
                answers |= self._loop.call(self._drawn_at_each(requests))
        return answers

    async def _drawn_at_each(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        asked = self.fleet.ready  # all at a time: one after the other, 64 of them take a minute
        drawn = await asyncio.gather(*(self.fleet.draw_at(server, requests) for server in asked))
        return {str(server): each for server, each in zip(asked, drawn, strict=True) if each is not None}

    def abort(self) -> None:
        if self._control.leads:
            self._loop.call(self.fleet.abort())
            self._aborted = True

    def unfinished(self) -> list[Request]:
        return self._loop.call(self.fleet.take_unfinished()) if self._control.leads else []

    def rest(self) -> None:
        """Servers hold no memory of the trainer."""

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
            self._passes.free()

    def _is_given_up(self) -> bool:
        self._stop_point()
        return self._aborted

    def _next(self, arrived: queue.Queue[Completion]) -> Completion | None:
        """The next completion, or None if none arrives for a while; servers that are back get their weights first."""
        error = self.fleet.error
        try:
            return arrived.get(timeout=0.0 if self._aborted or error is not None else _POLL_SECONDS)
        except queue.Empty:
            pass
        if error is not None:  # completions from before it were given out first
            raise error
        if any(server.state == "stale" for server in self.fleet.servers) or not self.fleet.ready:
            self._until_ready()
        elif (
            self.fleet.is_drawing
            and time.monotonic() - self.fleet.last_token_time > self.config.remote.patience_seconds
        ):
            self._save_all()
            raise self._out_of_patience("none has sent a token", "find out why they take no requests, or add servers")
        elif time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._control.send("wait")
            self._last_heartbeat = time.monotonic()
        return None

    def _until_ready(self) -> None:
        """Give weights to the servers that need them; wait while no server is ready."""
        began: float | None = None
        while True:
            stale = self._loop.call(self.fleet.find_stale(), self._stop_point)
            if stale and self._keeps_theirs:  # started again with another model, say: others may go on
                for server in stale:
                    self._loop.call(self.fleet.mark_down(server, server.reason))
            elif stale:
                self._passes.deliver(self._delivery, stale, self.fleet)
            if self.fleet.ready:
                return
            if self.fleet.is_given_up:
                self._save_all()
                raise self._none_left("none can be used", "repair or replace them")
            if began is None:
                began = spoke = time.monotonic()
                self._save_all()
                self._say(self._waiting(began))
            elif time.monotonic() - began > self.config.remote.patience_seconds:
                raise self._out_of_patience("none is ready", "start the servers again")
            elif time.monotonic() - spoke > _REMINDER_SECONDS:
                spoke = time.monotonic()
                self._say(self._waiting(began))
            self._control.send("wait")
            time.sleep(min(1.0, self.config.remote.health_seconds))
            self._stop_point()

    def _waiting(self, began: float) -> str:
        waited, patience = time.monotonic() - began, self.config.remote.patience_seconds
        return f"waiting for rollout.servers, {waited:.0f} of {patience:.0f} s: {self.fleet.reasons}"

    def _save_all(self) -> None:
        self._control.send("save")
        self._save()

    def _out_of_patience(self, what: str, remedy: str) -> RolloutError:
        return self._none_left(f"{what} after {self.config.remote.patience_seconds:.0f} s", remedy)

    def _none_left(self, what: str, remedy: str) -> RolloutError:
        return RolloutError(
            f"rollout.servers: {what}: {self.fleet.reasons}", hint=f"{remedy}, and resume the run; its state is saved"
        )

    def _follow(self) -> None:
        self._control.follow({"weights": self._passes.follow, "save": self._save})

    @contextmanager
    def _leading(self) -> Iterator[None]:
        """The other ranks follow until the end of this context, and fail if it fails."""
        try:
            yield
        except StopRequested:
            self._control.send("stopped")
            raise
        except RolloutError as error:
            self._control.send("failed", error.message, error.hint)
            raise
        except GeneratorExit:  # the caller needs no more completions
            pass
        except BaseException as error:
            self._control.send("failed", f"the first rank stopped: {error!r}")
            raise
        self._control.send("done")
