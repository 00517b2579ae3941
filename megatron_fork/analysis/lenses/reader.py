"""Reads sequences with a model of transformers: log-probs, entropies and hidden states of the tokens that follow a prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_fork.vocab_parallel import token_statistics


class Reading(NamedTuple):
    """Tokens to be read; those of `targets` are scored, all before them are their context."""

    prefix: Sequence[int]
    targets: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens that the model reads: the last target is only predicted."""
        return len(self.prefix) + len(self.targets) - 1


@dataclass(frozen=True)
class Scored:
    """Of each target: nats, and the last layer's hidden state that predicts it, before the final norm."""

    logprob_t: np.ndarray[Any, np.dtype[np.float64]]
    entropy_t: np.ndarray[Any, np.dtype[np.float64]]
    hidden_td: np.ndarray[Any, np.dtype[np.float32]]


class ModelReader:
    """One model on one rank."""

    def __init__(self, model: Any, *, tokens_a_batch: int, temperature: float = 1.0) -> None:
        """`tokens_a_batch`: read together at most, padding included; `temperature`: of the softmax."""
        self._model = model
        self._tokens_a_batch = tokens_a_batch
        self._temperature = temperature
        self._hidden: Tensor | None = None
        model.model.layers[-1].register_forward_hook(self._keep)

    def last_hidden(self, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """`[d]`: the last layer's hidden state at the last token of a text of its own."""
        (scored,) = self.read([Reading(tokens, tokens[-1:])])
        return np.asarray(scored.hidden_td[0])

    def read(self, sequences: Sequence[Reading]) -> list[Scored]:
        """Scores of all sequences, in order."""
        found: dict[int, Scored] = {}
        for batch in self._batches(sequences):
            found |= self._read([(number, sequences[number]) for number in batch])
        return [found[number] for number in range(len(sequences))]

    @torch.no_grad()
    def _read(self, batch: Sequence[tuple[int, Reading]]) -> dict[int, Scored]:
        device = next(self._model.parameters()).device
        length = max(each.length for _, each in batch)
        token_bs = torch.zeros(len(batch), length, dtype=torch.long)
        mask_bs = torch.zeros_like(token_bs)
        for row, (_, each) in enumerate(batch):
            token_bs[row, : each.length] = torch.tensor([*each.prefix, *each.targets][:-1], dtype=torch.long)
            mask_bs[row, : each.length] = 1  # padding at the right: causal attention does not see it
        logits_bsv = self._model(
            input_ids=token_bs.to(device), attention_mask=mask_bs.to(device), use_cache=False
        ).logits
        assert self._hidden is not None
        found = {}
        for row, (number, each) in enumerate(batch):
            rows = slice(len(each.prefix) - 1, each.length)
            targets_t = torch.tensor(list(each.targets), dtype=torch.long, device=device)
            of_row = token_statistics(logits_bsv[row, rows].float(), targets_t, temperature=self._temperature)
            found[number] = Scored(
                of_row.logprob.double().cpu().numpy(),
                of_row.entropy.double().cpu().numpy(),
                self._hidden[row, rows].float().cpu().numpy(),
            )
        self._hidden = None
        return found

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    def _batches(self, sequences: Sequence[Reading]) -> Iterator[list[int]]:
        batch: list[int] = []
        for number in sorted(range(len(sequences)), key=lambda number: -sequences[number].length):
            if batch and (len(batch) + 1) * sequences[batch[0]].length > self._tokens_a_batch:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch
