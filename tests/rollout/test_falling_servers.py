"""What a server has when it is found to be down goes on elsewhere, at whatever moment that is."""

import asyncio
import queue

import pytest

from megatron_fork.rollout import Completion, RemoteConfig, Request
from megatron_fork.rollout.servers.fleet import Fleet
from megatron_fork.rollout.servers.vllm import VllmServer


@pytest.mark.parametrize("turns", range(4))
def test_a_request_that_was_just_given_out_is_given_back(turns: int) -> None:
    """In the first turn of the loop its task has not even begun."""

    async def work() -> None:
        config = RemoteConfig()
        server = VllmServer("http://127.0.0.1:9", config, 100)
        fleet = Fleet([server], config, stop_tokens=(1,))
        await fleet.expect("label", 0)
        server.state, server.version = "ready", 0
        arrived: queue.Queue[Completion] = queue.Queue()
        await fleet.submit([Request(number, (3, 4), number, 1.0, 4) for number in range(3)], arrived)
        assert len(server.running) == 3
        for _ in range(turns):
            await asyncio.sleep(0)
        await fleet.mark_down(server, "gone")
        for _ in range(100):
            await asyncio.sleep(0)
        assert not server.running and server.load == 0
        await fleet.abort()
        assert sorted(each.number for each in await fleet.take_unfinished()) == [0, 1, 2]
        await fleet.close()

    asyncio.run(work())
