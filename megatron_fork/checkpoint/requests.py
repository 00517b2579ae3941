"""Several networks on their way to the disk as one request to Megatron's writer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest


def one_after_the_other(requests: Sequence[AsyncRequest]) -> AsyncRequest:
    """One request that copies all states at once, writes them in order, and finalises them in the same order.

    Megatron's writers say through one queue of the process where each tensor ended up, and not whose it is: of two that write
    at the same time, the one that ends first would fill the other's metadata.
    """
    return AsyncRequest(
        _write_all,
        (requests, None),  # Megatron puts what `preload_fn` returns in the second place
        [finalize for request in requests for finalize in request.finalize_fns],
        preload_fn=partial(_stage_all, requests),
    )


def _stage_all(requests: Sequence[AsyncRequest]) -> list[Any]:
    """In the trainer, before it goes on: from the devices to this machine's memory."""
    return [request.preload_fn() if request.preload_fn is not None else None for request in requests]


def _write_all(requests: Sequence[AsyncRequest], staged: Sequence[Any]) -> None:
    """In the writer's process. A rank may have nothing of a network to write."""
    for request, buckets in zip(requests, staged, strict=True):
        if request.async_fn is None:
            continue
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = buckets
        request.async_fn(*arguments, **request.async_fn_kwargs)
