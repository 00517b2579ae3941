"""Writing several networks as one request to Megatron's writer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest


def one_after_the_other(requests: Sequence[AsyncRequest]) -> AsyncRequest:
    """One request that copies all states at once, writes them in order, and finalises them in the same order.

    Megatron's writers report through one queue of the process where each tensor was written, but not for which writer: if two
    wrote at the same time, the first to finish would take the other's metadata.
    """
    return AsyncRequest(
        _write_all,
        (requests, None),  # Megatron replaces the second entry by what `preload_fn` returns
        [finalize for request in requests for finalize in request.finalize_fns],
        preload_fn=partial(_stage_all, requests),
    )


def _stage_all(requests: Sequence[AsyncRequest]) -> list[Any]:
    """Runs in the trainer, which waits for it: copy from the devices to the host's memory."""
    return [request.preload_fn() if request.preload_fn is not None else None for request in requests]


def _write_all(requests: Sequence[AsyncRequest], staged: Sequence[Any]) -> None:
    """Runs in the writer's process; a rank may have nothing to write for a network."""
    for request, buckets in zip(requests, staged, strict=True):
        if request.async_fn is None:
            continue
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = buckets
        request.async_fn(*arguments, **request.async_fn_kwargs)
