"""Passes over the policy's weights, which all ranks make together and whose buckets the first rank sends to servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers.control import ControlRequests
from megatron_fork.rollout.servers.event_loop import EventLoop
from megatron_fork.rollout.servers.fleet import Fleet
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.weight_sync import Delivery
from megatron_fork.rollout.weights import buckets

# The buckets of a model that would fit into fewer, and the least that is worth a call to the servers.
_BUCKETS = 8
_LEAST_BYTES = 64 << 20


class WeightPasses:
    """The weights of the last update, for every server that needs them, now or when it is back."""

    def __init__(
        self, control: ControlRequests, bucket_bytes: int, stop_point: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """`stop_point` and `say`: as for the engine."""
        self.weights: Iterable[tuple[str, Tensor]] = ()
        self.parameters = 0
        self.bytes_sent = 0
        self._bytes = 0  # of the last pass
        self._pieces = [torch.empty(0, dtype=torch.uint8)] * 2
        self.loop: EventLoop | None = None
        """On the first rank: where the servers' side runs."""
        self._control, self._bucket_bytes, self._stop_point, self._say = control, bucket_bytes, stop_point, say

    def follow(self) -> None:
        """On the other ranks: one pass."""
        self.parameters = sum(tensor.numel() for _, tensor in self.weights)

    def deliver(self, delivery: Delivery, servers: Sequence[Server], fleet: Fleet) -> None:
        """Give them the weights; again from the first bucket those for whom another server broke it."""
        before = delivery.bytes_sent
        while servers:
            self._pass_over(delivery, servers, fleet)
            servers = delivery.again
        self.bytes_sent = delivery.bytes_sent - before

    def free(self) -> None:
        """Give back the memory of buckets, however long this lives."""
        self._pieces = [torch.empty(0, dtype=torch.uint8)] * 2

    def _pieces_on(self, device: torch.device) -> list[Tensor]:
        """The memory of buckets. New main memory is found and cleared first, which takes longer than to fill it: it is kept.

        A GPU's is not: training needs it, and torch has it again at once.
        """
        if device.type != "cpu":
            return [torch.empty(0, dtype=torch.uint8, device=device)] * 2
        return self._pieces

    def _pass_over(self, delivery: Delivery, servers: Sequence[Server], fleet: Fleet) -> None:
        """All ranks make it together, whatever happens to the servers."""
        assert self.loop is not None, "the first rank delivers"
        self._control.send("weights")
        self.parameters = 0
        self.loop.call(delivery.start(servers, fleet.label), self._stop_point)
        # A small model comes in several buckets as well: while one is sent, the next is gathered.
        limit = (
            min(self._bucket_bytes, max(_LEAST_BYTES, self._bytes // _BUCKETS)) if self._bytes else self._bucket_bytes
        )
        remaining = buckets(self.weights, limit, delivery.device, pieces=self._pieces_on(delivery.device))
        self._bytes = 0
        sending: Future[None] | None = None
        try:
            for bucket in remaining:  # which is gathered while the one before it is sent: two are held, never more
                self.parameters += sum(tensor.numel() for _, tensor in bucket)
                self._bytes += sum(tensor.nbytes for _, tensor in bucket)
                if sending is not None:
                    self.loop.wait(sending, self._stop_point)
                sending = self.loop.begin(delivery.send(bucket))
            if sending is not None:
                self.loop.wait(sending, self._stop_point)
        finally:
            if sending is not None:
                sending.cancel()
            for _ in remaining:  # the other ranks are in the middle of the same pass
                pass
        if not self.parameters:
            raise RolloutError(
                "a server came back, or broke an update, and there are no weights to send again",
                hint="give `update_weights` weights that can be iterated again",
            )
        for server in self.loop.call(delivery.finish(fleet.label), self._stop_point):
            self.loop.call(fleet.mark_ready(server))
        while delivery.notes:
            self._say(delivery.notes.pop(0))
