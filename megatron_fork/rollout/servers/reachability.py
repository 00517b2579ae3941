"""Whether servers answer, asked of all at once and for a few seconds at most."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import aclosing

import httpx

from megatron_fork.masking import KEY_VARIABLE, masked
from megatron_fork.rollout.servers.wire import Late, ServerFault, Wire

SECONDS = 3.0


def server_states(urls: Sequence[str], *, seconds: float = SECONDS) -> dict[str, str]:
    """For every address what its `/health` says to a run: `healthy`, or what is wrong in a few words."""

    async def ask(url: str) -> str:
        try:
            async with aclosing(Wire(url.rstrip("/"), os.environ.get(KEY_VARIABLE), connections=1)) as wire:
                status = (await wire.ask("GET", "/health", seconds)).status
        except Late:
            return f"no answer in {seconds:g} seconds"
        except (ServerFault, httpx.InvalidURL) as error:
            return f"cannot be reached: {masked(str(error))}"
        return "healthy" if status == 200 else f"answers /health with {status}"

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(url) for url in urls))

    return dict(zip(urls, asyncio.run(ask_all()), strict=True))
