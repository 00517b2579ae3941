"""Which ranks are there, before they connect: a rank that does not come is named, where connecting would only wait.

The first rank, which may hold the store by which they speak, waits for the others, gives all of them one answer, and stays
until they have read it. Whoever gets no answer, since the first rank has ended or never came, says that.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from megatron_fork.distributed.launcher import Launch, launch
from megatron_fork.errors import LayoutError, UnreachableError

_MOST_NAMED = 8
_ANSWER = "answer"
# How much later than its own end a rank expects the answer, and how long the first rank waits until it has been read.
_GRACE_SECONDS = 5.0


@contextmanager
def roll_call(*, seconds: float) -> Iterator[list[str]]:
    """The host of every rank, in rank order; raises `LayoutError` with the ranks that do not answer within `seconds`.

    Every rank calls it and connects by `initialize` in its context, up to whose end the first rank keeps the store: the
    others may already connect to it. The address is the one that the launcher gave.
    """
    place = launch()
    if place is None:
        yield [socket.gethostname()]
        return
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
    try:
        calls.set(str(place.rank), socket.gethostname())
        found = _called(calls, place, end) if place.rank == 0 else _answered(calls, place, end)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UnreachableError(
            f"rank {place.rank} on {socket.gethostname()} has no answer of the first rank at {place.address}:{place.port}, "
            f"which has ended or did not come: {str(error).splitlines()[0]}",
            hint="see the log of the first rank",
        ) from error
    hosts = [host for host in found if host is not None]
    if len(hosts) < place.world_size:
        raise _absence(found, place, seconds)
    yield hosts


def _called(calls: PrefixStore, place: Launch, end: float) -> list[str | None]:
    """On the first rank: the host of every rank, None for those that do not come; the others have then read it too."""
    found: list[str | None] = []
    for rank in range(place.world_size):
        try:
            calls.wait([str(rank)], timedelta(seconds=max(0.1, end - time.monotonic())))
            found.append(calls.get(str(rank)).decode())
        except dist.DistStoreError:
            found.append(None)
    calls.set(_ANSWER, json.dumps(found))
    reading = [f"read/{rank}" for rank, host in enumerate(found) if rank and host is not None]
    with suppress(dist.DistStoreError):  # one of them has ended meanwhile
        if reading:
            calls.wait(reading, timedelta(seconds=_GRACE_SECONDS))
    return found


def _answered(calls: PrefixStore, place: Launch, end: float) -> list[str | None]:
    """On another rank: what the first one has found."""
    calls.wait([_ANSWER], timedelta(seconds=max(0.1, end - time.monotonic()) + _GRACE_SECONDS))
    found: list[str | None] = json.loads(calls.get(_ANSWER))
    with suppress(dist.DistNetworkError):  # the first rank has waited long enough
        calls.set(f"read/{place.rank}", "")
    return found


def _absence(found: list[str | None], place: Launch, seconds: float) -> LayoutError:
    absent = [rank for rank, host in enumerate(found) if host is None]
    came = sorted({host for host in found if host is not None})
    named = ", ".join(map(str, absent[:_MOST_NAMED])) + (", ..." if len(absent) > _MOST_NAMED else "")
    return LayoutError(
        f"{len(absent)} of {place.world_size} ranks did not come to {place.address}:{place.port} in {seconds:g} s: "
        f"{named}; {place.world_size - len(absent)} came, from {', '.join(came[:_MOST_NAMED])}",
        hint="see the logs of those ranks, and that the launcher started as many as it was asked for",
    )
