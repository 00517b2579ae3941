"""Scores responses with a model that transformers builds, for families that this project does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from megatron_fork import distributed, models, vocab_parallel
from megatron_fork.config import RunConfig
from megatron_fork.errors import LayoutError, ModelError
from megatron_fork.experience import Demonstration
from megatron_fork.run.checks import tokenizer_of
from megatron_fork.run.scoring import Scores, joined


class TransformersScorer:
    """The whole model on one rank; sequences of like lengths in batches of at most `policy.tokens_per_statistics_batch`."""

    def __init__(self, config: RunConfig) -> None:
        """Raises `ModelError` if transformers cannot build it, `LayoutError` on several ranks."""
        if distributed.world_size() > 1:
            raise LayoutError(
                f"{config.model.path} is scored by transformers on one rank, this is one of {distributed.world_size()}",
                hint="start it without torchrun",
            )
        self.config = config
        tokenizer = tokenizer_of(config.model)
        assert tokenizer is not None, "the model has a folder"
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.load(config.model)

    @property
    def vocab_size(self) -> int:
        return int(self._model.get_output_embeddings().weight.shape[0])

    @property
    def longest(self) -> int:
        return int(vars(self._model.config).get("max_position_embeddings") or 1 << 30)

    def load(self, model: models.ModelConfig) -> None:
        assert model.path, "the model has a folder"
        disable_progress_bar()
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                model.path, trust_remote_code=False, use_safetensors=True, dtype=self.config.policy.dtype
            )
        except Exception as error:  # model classes raise anything
            raise ModelError(
                f"{model.path} cannot be built by transformers: {type(error).__name__}: {models.shown(error)}",
                hint="it must be a causal language model that the installed transformers knows, with safetensors",
            ) from error
        self._model.to(distributed.device()).eval()

    @torch.no_grad()
    def score(self, sequences: Sequence[Demonstration]) -> Scores:
        found: dict[int, tuple[Any, Any]] = {}
        for batch in self._batches(sequences):
            length = max(each.length for each in batch)
            token_bs = torch.zeros(len(batch), length, dtype=torch.long)
            mask_bs = torch.zeros_like(token_bs)
            for row, each in enumerate(batch):
                whole = torch.tensor([*each.prompt.tokens, *each.response][:-1], dtype=torch.long)
                token_bs[row, : len(whole)] = whole  # padding at the right: causal attention does not see it
                mask_bs[row, : len(whole)] = 1
            where = distributed.device()
            logits_bsv = self._model(input_ids=token_bs.to(where), attention_mask=mask_bs.to(where)).logits
            for row, each in enumerate(batch):
                first = len(each.prompt.tokens) - 1
                targets_t = torch.tensor(list(each.response), dtype=torch.long, device=where)
                statistics = vocab_parallel.token_statistics(
                    logits_bsv[row, first : first + len(targets_t)].float(),
                    targets_t,
                    temperature=self.config.rollout.temperature,
                )
                found[each.number] = (statistics.logprob.cpu().numpy(), statistics.entropy.cpu().numpy())
        nothing = (np.zeros(0, np.float32), np.zeros(0, np.float32))
        return joined([found.get(each.number, nothing) for each in sequences])

    def _batches(self, sequences: Sequence[Demonstration]) -> list[list[Demonstration]]:
        budget, batches = self.config.policy.tokens_per_statistics_batch, list[list[Demonstration]]()
        for each in sorted((each for each in sequences if len(each.response)), key=lambda each: -each.length):
            if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= budget:
                batches[-1].append(each)
            else:
                batches.append([each])
        return batches
