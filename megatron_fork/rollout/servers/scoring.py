"""Log-probs of tokens that there already are, from servers with the weights that they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from megatron_fork.errors import RolloutError
from megatron_fork.recipe import part
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engines import engine_kind
from megatron_fork.rollout.servers.adoption import label_of_all
from megatron_fork.rollout.servers.server import Server, within_open_files
from megatron_fork.rollout.servers.wire import ServerFault

# Between two tries at a server that has failed, and two looks for a sequence that another one gave back.
_REST_SECONDS = 0.5


class ScoringServers:
    """The servers of `config.servers`, which share the sequences."""

    def __init__(self, config: RolloutConfig, model: str, vocabulary: int) -> None:
        """`model`: the name or folder under which each server has it."""
        kind = engine_kind(config.engine).server
        assert kind is not None, "the engine has servers"
        self.config, self.model, self.vocabulary = config, model, vocabulary
        self._kind = part(kind)
        self._label: str | None = None

    def logprobs(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
        """Of each sequence the log-probs, at temperature 1, of its tokens from its place in `firsts` on, which is above 0.

        Raises `RolloutError` if a server does not have the model, or all of one set of weights from the first call on, if one
        refuses a sequence, and if a sequence has failed `remote.attempts` times.
        """
        return asyncio.run(self._scored(sequences, firsts))

    async def _scored(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
        remote = within_open_files(self.config, lambda line: None)
        servers: list[Server] = [self._kind(url, remote, self.vocabulary) for url in self.config.servers]
        try:
            await self._check_weights(servers)
            work = _Work(sequences, firsts, remote.attempts)
            await work.share(servers, remote.requests_per_server)
            await self._check_weights(servers)
            return work.found
        finally:
            for server in servers:
                await server.close()

    async def _check_weights(self, servers: Sequence[Server]) -> None:
        label = await label_of_all(servers, self.model)
        self._label = label if self._label is None else self._label
        if label != self._label:
            raise RolloutError(
                f"rollout.servers had the weights {self._label} and have {label} now: another run sent them its own",
                hint="score at servers that nobody trains with",
            )


class _Work:
    """Sequences that wait for a server; whichever is free takes the next."""

    def __init__(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int], attempts: int) -> None:
        self.sequences, self.firsts, self.attempts = sequences, firsts, attempts
        self.found: list[list[float]] = [[] for _ in sequences]
        self._waiting = [place for place, each in enumerate(sequences) if len(each) > firsts[place]][::-1]
        self._open = len(self._waiting)
        self._faults = [0] * len(sequences)

    async def share(self, servers: Sequence[Server], requests: int) -> None:
        tasks = [asyncio.create_task(self._at(server)) for server in servers for _ in range(min(requests, self._open))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _at(self, server: Server) -> None:
        while self._open:
            if not self._waiting:
                await asyncio.sleep(_REST_SECONDS)
                continue
            place = self._waiting.pop()
            try:
                self.found[place] = await server.logprobs_of(self.sequences[place], self.firsts[place])
                self._open -= 1
            except ServerFault as fault:
                self._faults[place] += 1
                if fault.refused or self._faults[place] >= self.attempts:
                    length = len(self.sequences[place])
                    raise RolloutError(
                        f"rollout.servers: {server} does not score a sequence of {length:,} tokens: {fault}",
                        hint="a server must hold it, and one token more, in its longest sequence; or leave the servers out",
                    ) from fault
                self._waiting.insert(0, place)
                await asyncio.sleep(_REST_SECONDS)
