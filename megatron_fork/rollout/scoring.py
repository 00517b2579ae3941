"""Rewards while generation goes on: a thread scores whatever has arrived since it last looked."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


def score_on_arrival(arriving: Iterable[T], score: Callable[[Sequence[T]], Sequence[S]]) -> list[S]:
    """`score` of everything that arrives, in several calls and in order of arrival; errors of either side are raised."""
    arrived: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1, thread_name_prefix="rewards") as executor:
        scores = executor.submit(_drain, arrived, score)
        try:
            for item in arriving:
                arrived.put(item)
        finally:
            arrived.put(None)
        return scores.result()


def _drain(arrived: queue.SimpleQueue[T | None], score: Callable[[Sequence[T]], Sequence[S]]) -> list[S]:
    scores: list[S] = []
    ended = False
    while not ended:
        waiting = [arrived.get()]
        while not arrived.empty():
            waiting.append(arrived.get())
        ended = waiting[-1] is None
        batch = [item for item in waiting if item is not None]
        scores += score(batch) if batch else []
    return scores
