"""Log-probs of responses that there already are, from servers that hold the model: no weights are built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_fork import conversion, distributed, rollout
from megatron_fork.errors import ConfigError, LayoutError, ModelError
from megatron_fork.rollout import ScoringServers
from megatron_fork.run.checks import tokenizer_of
from megatron_fork.run.console import Display
from megatron_fork.run.offline import check_served
from megatron_fork.run.place import config_of
from megatron_fork.run.scoring import check_vocabulary, sequences_of
from megatron_fork.traces import TraceFiles, Traces


class ServerReader:
    """The model that servers hold: what is known of it is read from its folder here, log-probs come from them."""

    def __init__(
        self,
        place: Path,
        display: Display,
        *,
        served: str,
        saved: str | None = None,
        overrides: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> None:
        """See `scorer`; `served`: the name or folder under which the servers have the model.

        Raises `ConfigError` for an engine without servers and for another temperature than 1, at which servers score what is
        given, `ModelError` for a model without a folder.
        """
        self.config = config_of(place, [f"rollout.temperature={temperature}", *overrides], checkpoint=saved)
        check_served(self.config.rollout, served)
        rollout.check_engine(self.config.rollout, ranks=1)
        if (asked := self.config.rollout.temperature) != 1.0:
            raise ConfigError(
                f"--engine-holds-model={served} with traces at temperature {asked:g}: servers score given tokens at 1 alone",
                hint="leave it out: a statistics pass scores at every temperature; or ask for --setting rollout.temperature=1",
            )
        if distributed.world_size() > 1:
            raise LayoutError(
                f"servers score for one rank, this is one of {distributed.world_size()}",
                hint="start it without torchrun",
            )
        tokenizer = tokenizer_of(self.config.model)
        if tokenizer is None:
            raise ModelError(f"{place} has no model folder", hint="give the folder of the model that the servers hold")
        self.tokenizer = tokenizer
        self._hf_config = conversion.read_config(Path(self.config.model.path or ""))
        self._servers = ScoringServers(self.config.rollout, served, self.vocab_size, display.say)

    @property
    def vocab_size(self) -> int:
        return int(self._hf_config.vocab_size)

    @property
    def longest(self) -> int:
        return int(vars(self._hf_config).get("max_position_embeddings") or 1 << 30)

    def rescored(self, files: TraceFiles) -> Iterator[Traces]:
        """The responses part by part with the servers' log-probs and without entropies, which servers do not report.

        Raises `TraceError` as the statistics pass does, `RolloutError` where a server fails.
        """
        check_vocabulary(files, self)
        for part in files.parts():
            sequences = sequences_of(part, self)
            whole = [[*each.prompt.tokens, *(int(token) for token in each.response)] for each in sequences]
            found = self._servers.logprobs(whole, [len(each.prompt.tokens) for each in sequences])
            yield part.with_flat(logprob=np.concatenate([np.zeros(0), *found]).astype(np.float32), entropy=None)
