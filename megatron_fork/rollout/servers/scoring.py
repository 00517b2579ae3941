"""Log-probs of tokens that there already are, from servers with the weights that they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from megatron_fork.recipe import part
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engines import engine_kind
from megatron_fork.rollout.servers.adoption import label_of_those_up
from megatron_fork.rollout.servers.server import Server, within_open_files
from megatron_fork.rollout.servers.shared_scoring import SharedScoring


class ScoringServers:
    """The servers of `config.servers`, which share the sequences."""

    def __init__(
        self, config: RolloutConfig, model: str, vocabulary: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """`model`: the name or folder under which each server has it; `say` is told of servers that fail or come back."""
        kind = engine_kind(config.engine).server
        assert kind is not None, "the engine has servers"
        self.config, self.model, self.vocabulary = config, model, vocabulary
        self._kind, self._say = part(kind), say
        self._label: str | None = None

    def logprobs(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
        """Of each sequence the log-probs, at temperature 1, of its tokens from its place in `firsts` on, which is above 0.

        What a server that fails has not scored, others score. Raises `RolloutError` if at the first call no server answers,
        or those that do have another model or not all the same weights; later if none with these weights is left, if all
        refuse a sequence, and if a sequence has failed `remote.attempts` times and at each of them.
        """
        return asyncio.run(self._scored(sequences, firsts))

    async def _scored(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
        remote = within_open_files(self.config, self._say)
        servers: list[Server] = [self._kind(url, remote, self.vocabulary) for url in self.config.servers]
        try:
            if self._label is None:
                self._label, silent = await label_of_those_up(servers, self.model)
                for server, fault in silent.items():
                    self._say(f"{server} does not answer, the others score without it: {fault}")
            sharing = SharedScoring(servers, remote, self.model, self._label, self._say)
            return await sharing.logprobs(sequences, firsts)
        finally:
            for server in servers:
                await server.close()
