"""Which ranks are there, before they connect: a rank that does not come is named, where connecting would only wait."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from megatron_fork.distributed.launcher import launch
from megatron_fork.errors import LayoutError, UnreachableError

_MOST_NAMED = 8


def roll_call(*, seconds: float) -> list[str]:
    """The host of every rank, in rank order; raises `LayoutError` with the ranks that do not answer within `seconds`.

    Every rank calls it, before `initialize`, and uses the address that the launcher gave.
    """
    place = launch()
    if place is None:
        return [socket.gethostname()]
    end = time.monotonic() + seconds
    # torchrun keeps a store of its own at the address.
    leads = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(
            place.address,
            place.port,
            place.world_size,
            leads,
            timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UnreachableError(
            f"rank {place.rank} on {socket.gethostname()} cannot reach the first rank at {place.address}:{place.port} in "
            f"{seconds:g} s: {str(error).splitlines()[0]}",
            hint="see that the first rank runs, that its name resolves on all nodes and that no firewall closes the port",
        ) from error
    calls = PrefixStore(f"roll_call/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    calls.set(str(place.rank), socket.gethostname())
    hosts: list[str] = []
    absent: list[int] = []
    for rank in range(place.world_size):
        try:
            calls.wait([str(rank)], timedelta(seconds=max(0.1, end - time.monotonic())))
            hosts.append(calls.get(str(rank)).decode())
        except dist.DistStoreError:
            absent.append(rank)
    if absent:
        named = ", ".join(map(str, absent[:_MOST_NAMED])) + (", ..." if len(absent) > _MOST_NAMED else "")
        raise LayoutError(
            f"{len(absent)} of {place.world_size} ranks did not come to {place.address}:{place.port} in {seconds:g} s: "
            f"{named}; {len(hosts)} came, from {', '.join(sorted(set(hosts))[:_MOST_NAMED])}",
            hint="see the logs of those ranks, and that the launcher started as many as it was asked for",
        )
    _leave_together(calls, place.rank, place.world_size, end)
    return hosts


def _leave_together(calls: PrefixStore, rank: int, world_size: int, end: float) -> None:
    """The first rank holds the store, and must not leave it before all have read it."""
    calls.set(f"read/{rank}", "")
    if rank == 0:
        calls.wait([f"read/{each}" for each in range(world_size)], timedelta(seconds=max(1.0, end - time.monotonic())))
