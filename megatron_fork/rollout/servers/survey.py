"""What every server says about itself and a few tokens that it draws; its weights and its requests stay as they are."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from megatron_fork.recipe import part
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Request
from megatron_fork.rollout.engines import engine_kind
from megatron_fork.rollout.pending import PendingRequest
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault

_TOKENS = 4


@dataclass(frozen=True)
class ServerAnswer:
    """Of one server."""

    label: str = ""
    """Of the weights that it has now."""
    workers: int = 0
    """Its ranks, which receive weights."""
    tokens: tuple[int, ...] = ()
    logprob: tuple[float, ...] = ()
    """In nats, of `tokens`."""
    is_up: bool = True
    """Whether it is healthy; otherwise nothing else was asked."""
    fault: str = ""
    """What is wrong with it, in a few words; empty if nothing is."""


def ask_servers(
    config: RolloutConfig, *, vocabulary: int, prompt: Sequence[int], stop_tokens: Sequence[int], seconds: float
) -> dict[str, ServerAnswer]:
    """The answer of each of `config.servers` within `seconds`, by its address; all are asked at once."""

    async def ask(url: str) -> ServerAnswer:
        kind = engine_kind(config.engine).server
        assert kind is not None
        server = part(kind)(url, config.remote, vocabulary)
        try:
            return await _in_time(server, config, prompt, stop_tokens, seconds)
        finally:
            await server.close()

    async def ask_all() -> list[ServerAnswer]:
        return await asyncio.gather(*(ask(url) for url in config.servers))

    return dict(zip(config.servers, asyncio.run(ask_all()), strict=True))


async def _in_time(
    server: Server, config: RolloutConfig, prompt: Sequence[int], stop_tokens: Sequence[int], seconds: float
) -> ServerAnswer:
    try:
        async with asyncio.timeout(seconds):
            if not await server.is_healthy():
                return ServerAnswer(is_up=False, fault=server.reason)
            label, workers = await server.weight_label(), await server.workers()
            request = Request(0, tuple(prompt), 0, config.temperature, _TOKENS)
            pending = PendingRequest.of(request, queue.Queue())
            tokens: list[int] = []
            logprob: list[float] = []
            async with aclosing(server.chunks(pending, stop_tokens)) as chunks:
                async for chunk in chunks:
                    tokens += chunk.tokens
                    logprob += chunk.logprob
        return ServerAnswer(label, workers, tuple(tokens), tuple(logprob))
    except TimeoutError:
        return ServerAnswer(fault=f"it did not answer in {seconds:g} s")
    except ServerFault as fault:
        return ServerAnswer(fault=str(fault))
