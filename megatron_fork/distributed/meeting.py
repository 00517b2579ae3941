"""Which ranks are there, before they connect: a rank that does not come is named, where connecting would only wait.

The first rank, which may hold the store by which they speak, waits for the others, gives all of them one answer, and stays
until they have read it. Whoever gets no answer, since the first rank has ended or never came, says that. A rank that has failed
before it could come (`early_failure`) is part of the answer, at once.
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

from megatron_fork.distributed.launcher import Launch, comes, launch
from megatron_fork.distributed.verdict import Verdict
from megatron_fork.errors import LayoutError, UnreachableError

# Keys of the store: the first rank has come or failed; what it answers; who failed before the call, and has said so itself.
FIRST, ANSWER, FAILED, SPOKEN = "first", "answer", "failed", "spoken"
# How long a rank is waited for that reads of a failure, and that is to print its own: together less than a minute.
HEARD_SECONDS, SPEAKING_SECONDS = 40.0, 10.0
_MOST_NAMED = 8
# How much later than its own end a rank expects the answer, and how long the first rank waits until it has been read.
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.5


def meeting_store(place: Launch, *, seconds: float) -> PrefixStore:
    """The store in which the ranks meet; raises `LayoutError` where it cannot be held, or reached within `seconds`."""
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
        raise no_meeting(place, error, seconds) from error
    return PrefixStore(f"roll_call/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def no_meeting(place: Launch, error: Exception, seconds: float) -> LayoutError:
    """Why this rank cannot meet the others at the launcher's address."""
    address, reason = f"{place.address}:{place.port}", str(error).splitlines()[0]
    if place.rank > 0:  # the first rank may have ended, for a reason of its own
        return UnreachableError(
            f"rank {place.rank} on {socket.gethostname()} cannot reach the first rank at {address} in {seconds:g} s: {reason}",
            hint="see that the first rank runs, that its name resolves on all nodes and that no firewall closes the port",
        )
    return LayoutError(
        f"MASTER_ADDR:MASTER_PORT={address} cannot be used: {reason}",
        hint="another job may hold the port: choose a free one with MASTER_PORT or `torchrun --master-port`",
    )


@contextmanager
def roll_call(*, seconds: float) -> Iterator[list[str]]:
    """The host of every rank, in rank order; raises `LayoutError` with the ranks that do not answer within `seconds`.

    Every rank calls it and connects by `initialize` in its context, up to whose end the first rank keeps the store: the
    others may already connect to it. The address is the one that the launcher gave. Raises `RankLostError` if a rank has failed
    before it came.
    """
    place = launch()
    if place is None:
        yield [socket.gethostname()]
        return
    comes()
    end = time.monotonic() + seconds
    calls = meeting_store(place, seconds=seconds)
    try:
        if place.rank == 0:
            calls.set(FIRST, "came")
        calls.set(str(place.rank), socket.gethostname())
        found, failed = _called(calls, place, end) if place.rank == 0 else _answered(calls, place, end)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UnreachableError(
            f"rank {place.rank} on {socket.gethostname()} has no answer of the first rank at {place.address}:{place.port}, "
            f"which has ended or did not come: {str(error).splitlines()[0]}",
            hint="see the log of the first rank",
        ) from error
    if failed is not None:
        raise failed.error(place.rank)
    hosts = [host for host in found if host is not None]
    if len(hosts) < place.world_size:
        raise _absence(found, place, seconds)
    yield hosts


def failed_before(calls: PrefixStore) -> Verdict | None:
    """On a rank that knows of a failure before the call: whose it is, once that rank has printed it."""
    if not calls.check([FAILED]):
        return None
    with suppress(dist.DistStoreError):  # a launcher ends all ranks with the first that leaves
        calls.wait([SPOKEN], timedelta(seconds=SPEAKING_SECONDS))
    return Verdict.from_json(calls.get(FAILED))


def _called(calls: PrefixStore, place: Launch, end: float) -> tuple[list[str | None], Verdict | None]:
    """On the first rank: the host of every rank, None for those that do not come; the others have then read it too."""
    found: list[str | None] = []
    for rank in range(place.world_size):
        found.append(_host_of(rank, calls, end))
        if found[-1] is None and calls.check([FAILED]):
            break
    failed = failed_before(calls)
    calls.set(ANSWER, json.dumps(found))
    if failed is not None:  # who has not come yet would only wait for this one
        found = [""] * place.world_size
    reading = [f"read/{rank}" for rank, host in enumerate(found) if rank and host is not None]
    with suppress(dist.DistStoreError):  # one of them has ended meanwhile
        if reading:
            calls.wait(reading, timedelta(seconds=_GRACE_SECONDS if failed is None else HEARD_SECONDS))
    return found, failed


def _host_of(rank: int, calls: PrefixStore, end: float) -> str | None:
    """None if the rank does not come before the end, or before another has failed."""
    while True:
        left = end - time.monotonic()
        try:
            calls.wait([str(rank)], timedelta(seconds=max(0.1, min(left, _LOOK_SECONDS))))
            return calls.get(str(rank)).decode()
        except dist.DistStoreError:
            if left <= _LOOK_SECONDS or calls.check([FAILED]):
                return None


def _answered(calls: PrefixStore, place: Launch, end: float) -> tuple[list[str | None], Verdict | None]:
    """On another rank: what the first one has found."""
    calls.wait([ANSWER], timedelta(seconds=max(0.1, end - time.monotonic()) + _GRACE_SECONDS))
    found: list[str | None] = json.loads(calls.get(ANSWER))
    failed = failed_before(calls)
    with suppress(dist.DistNetworkError):  # the first rank has waited long enough
        calls.set(f"read/{place.rank}", "")
    return found, failed


def _absence(found: list[str | None], place: Launch, seconds: float) -> LayoutError:
    absent = [rank for rank, host in enumerate(found) if host is None]
    came = sorted({host for host in found if host is not None})
    named = ", ".join(map(str, absent[:_MOST_NAMED])) + (", ..." if len(absent) > _MOST_NAMED else "")
    return LayoutError(
        f"{len(absent)} of {place.world_size} ranks did not come to {place.address}:{place.port} in {seconds:g} s: "
        f"{named}; {place.world_size - len(absent)} came, from {', '.join(came[:_MOST_NAMED])}",
        hint="see the logs of those ranks, and that the launcher started as many as it was asked for",
    )
