"""A rank that fails before the ranks have met: it says so itself where the first one does not fail too, and all hear of it.

Otherwise the others would wait for it, and its launcher might end them with no word of why. What all ranks meet, such as a
mistyped field, is printed by the first alone. The ranks speak by the store of `meeting`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from megatron_fork.distributed.launcher import Launch, awaits_others
from megatron_fork.distributed.meeting import (
    ANSWER,
    FAILED,
    FIRST,
    HEARD_SECONDS,
    SPEAKING_SECONDS,
    SPOKEN,
    meeting_store,
)
from megatron_fork.distributed.verdict import Verdict
from megatron_fork.errors import LayoutError

_LEFT = "left"
# Between the first rank's word that it leaves and its end, and between that and the end of those who wait for it.
_LEAVING_SECONDS = 0.5


@contextmanager
def telling_others(error: BaseException) -> Iterator[bool]:
    """Around what prints the error, before this process ends: whether a rank other than the first fails by it alone.

    True also where the first rank is not there to ask in 10 seconds. At the end, after a minute at most, the others have heard.
    """
    place = awaits_others()
    if place is None:
        yield False
        return
    own = Verdict.of_failed(place.rank, error).to_json()
    if place.rank == 0:
        yield False
        with suppress(LayoutError, dist.DistError):  # a port that is taken, or ranks that are gone
            _tell_as_first(place, own)
        return
    began = time.monotonic()
    calls: PrefixStore | None = None
    is_alone = True
    with suppress(LayoutError, dist.DistError):
        calls = meeting_store(place, seconds=SPEAKING_SECONDS)
        is_alone = _is_alone(calls, place, own)
    yield is_alone
    with suppress(LayoutError, dist.DistError):
        if calls is None:
            _tell_late(place, own, seconds=HEARD_SECONDS - (time.monotonic() - began))
        elif is_alone:
            calls.set(SPOKEN, "")
        else:  # a launcher ends all ranks with the first that leaves
            calls.wait([SPOKEN], timedelta(seconds=SPEAKING_SECONDS))
            if calls.get(FIRST) == b"failed":
                calls.wait([_LEFT], timedelta(seconds=SPEAKING_SECONDS))
                time.sleep(2 * _LEAVING_SECONDS)


def _tell_as_first(place: Launch, own: str) -> None:
    """Hold the store until every other rank has failed too, or has heard."""
    calls = meeting_store(place, seconds=SPEAKING_SECONDS)
    calls.set(FIRST, "failed")
    calls.set(FAILED, own)
    calls.set(SPOKEN, "")
    calls.set(ANSWER, json.dumps([]))
    with suppress(dist.DistStoreError):
        calls.wait([f"read/{rank}" for rank in range(1, place.world_size)], timedelta(seconds=HEARD_SECONDS))
    calls.set(_LEFT, "")
    time.sleep(_LEAVING_SECONDS)


def _is_alone(calls: PrefixStore, place: Launch, own: str) -> bool:
    """Whether this rank, which has failed, is the first of those that have, and the first rank does not fail like it."""
    is_first = calls.compare_set(FAILED, "", own) == own.encode()
    first = b""
    with suppress(dist.DistStoreError):  # torchrun's store is there before the first rank is
        calls.wait([FIRST], timedelta(seconds=SPEAKING_SECONDS))
        first = calls.get(FIRST)
    calls.set(f"read/{place.rank}", "")  # the last: then the first rank may leave
    return is_first and first != b"failed"


def _tell_late(place: Launch, own: str, *, seconds: float) -> None:
    """To a first rank that comes later."""
    calls = meeting_store(place, seconds=max(1.0, seconds))
    calls.compare_set(FAILED, "", own)
    calls.set(SPOKEN, "")
    calls.set(f"read/{place.rank}", "")
