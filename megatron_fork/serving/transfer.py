"""The process group over which weights travel from the trainer to servers: the trainer is rank 0, the workers of all follow.

One that dies or hangs breaks the group for all. The trainer then closes the group's store, and workers that wait for a tensor
see that and leave. The group is independent of the default one: neither side needs to be a member of the other's world.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

Backend = Literal["gloo", "nccl"]
# Between two looks at a broadcast, and at the store of one that takes long.
_POLL_SECONDS = 0.0005
_LOOK_SECONDS = 0.2


class TransferStore:
    """The trainer's end of the rendezvous, which listens only at `address`, on a port that the system chooses.

    It lasts as long as the group. After `close` whoever still waits for a rank, or for a tensor, fails at once.
    """

    def __init__(self, address: str, *, timeout: float) -> None:
        self.address = address
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.bind((address, 0))
        listener.listen()
        self.port: int = listener.getsockname()[1]
        limit = timedelta(seconds=timeout)
        self._served: TCPStore | None = TCPStore(
            address,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=limit,
            master_listen_fd=listener.detach(),
        )
        # The trainer's own connection: a thread that waits in it does not keep the store open.
        self.store = TCPStore(address, self.port, is_master=False, timeout=limit)

    def close(self) -> None:
        self._served = None


def is_open(store: Store) -> bool:
    """Whether the trainer still has the store of a worker's connection."""
    try:
        store.check(["open"])
    except RuntimeError:  # torch's, of a connection that is gone
        return False
    return True


class TransferGroup:
    """Rank 0 broadcasts; `close` never waits for a peer."""

    def __init__(self, group: Any, backend: Backend) -> None:
        self._group = group
        self._backend = backend

    def broadcast(self, tensor: Tensor) -> dist.Work:
        """Start to send the contiguous `tensor` from rank 0, or to receive into it."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        work: dist.Work = self._group.broadcast([tensor], options)
        return work

    def receive(self, tensor: Tensor, *, timeout: float, is_wanted: Callable[[], bool]) -> None:
        """Receive into the contiguous `tensor`; raises `RuntimeError` after `timeout` seconds, or once it is not wanted."""
        work = self.broadcast(tensor)
        began = looked = time.monotonic()
        while not work.is_completed():
            now = time.monotonic()
            if now - began > timeout:
                raise RuntimeError(f"a tensor did not arrive within {timeout:g} s")
            if now - looked > _LOOK_SECONDS:
                looked = now
                if not is_wanted():
                    raise RuntimeError("the trainer has given up this process group")
            time.sleep(_POLL_SECONDS)
        work.wait()

    def close(self) -> None:
        """Give the group up, whatever its peers are doing."""
        group, self._group = self._group, None
        if group is None:
            return
        if self._backend == "nccl":
            group.abort()
            return
        # Destroying a gloo group joins its threads, which a hung peer blocks until the time-out: do it in a thread.
        kept = [group]
        del group
        threading.Thread(target=kept.clear, daemon=True).start()


def join_transfer(
    store: Store, backend: Backend, *, rank: int, size: int, address: str, timeout: float
) -> TransferGroup:
    """Wait for all `size` ranks and form the group; raises torch's `RuntimeError` if one is missing after `timeout` seconds.

    Args:
        store: common to all ranks, with a prefix of this group's own.
        backend: gloo for tensors in main memory, nccl for those on GPUs.
        rank: 0 is the trainer.
        size: 1 + the workers of all servers.
        address: of this side's network interface.
        timeout: of the rendezvous and of every broadcast.

    """
    limit = timedelta(seconds=timeout)
    store.set_timeout(limit)
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        # Torch ends the process when this has passed: both sides are to give up before.
        options._timeout = 2 * limit
        group: Any = dist.ProcessGroupNCCL(store, rank, size, options)
        group.eager_connect_single_device(torch.device("cuda", torch.cuda.current_device()))
        return TransferGroup(group, backend)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return TransferGroup(dist.ProcessGroupGloo(store, rank, size, options), backend)


def address_towards(host: str, port: int) -> str:
    """This machine's address on the network interface by which `host` is reached; nothing is sent."""
    family, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        address: str = probe.getsockname()[0]
    return address
