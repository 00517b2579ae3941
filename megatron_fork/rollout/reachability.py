"""Whether servers answer, asked of all at once and for a few seconds at most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from megatron_fork.masking import masked

SECONDS = 3.0


def server_states(urls: Sequence[str], *, seconds: float = SECONDS) -> dict[str, str]:
    """For every address what its `/health` says: `healthy`, or what is wrong in a few words."""

    async def ask(client: httpx.AsyncClient, url: str) -> str:
        try:
            async with asyncio.timeout(seconds):
                answer = await client.get(f"{url.rstrip('/')}/health")
        except TimeoutError:
            return f"no answer in {seconds:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            return f"cannot be reached: {masked(' '.join(str(error).split()))[:200] or type(error).__name__}"
        return "healthy" if answer.is_success else f"answers /health with {answer.status_code}"

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(timeout=seconds) as client:
            return await asyncio.gather(*(ask(client, url) for url in urls))

    return dict(zip(urls, asyncio.run(ask_all()), strict=True))
