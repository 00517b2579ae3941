"""Megatron's GPTModel whose last stage answers with token statistics instead of logits or a loss."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.vocab_parallel import TokenStatistics, lm_head_statistics


class StatisticsModel(GPTModel):
    """`forward(tokens, positions, None, labels=targets, loss_mask=rows)` gives `TokenStatistics` at `rows`.

    Without labels it gives this rank's logits `[batch, sequence, vocab/tp]`, as GPTModel does.
    """

    def __init__(self, *args: Any, hf_config: PretrainedConfig, temperature: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hf_config = hf_config
        self.temperature = temperature

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | TokenStatistics:
        """Override of Megatron's last step: the LM head runs on the rows marked in `loss_mask` `[1, tokens]` only."""
        if not self.post_process or labels is None:
            return super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
        if self.config.sequence_parallel:
            # The head sums d_hidden over the tensor ranks itself, so backward here only takes this rank's tokens.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        tied = self.share_embeddings_and_output_weights
        return lm_head_statistics(
            hidden_states.squeeze(1),
            self.shared_embedding_or_output_weight() if tied else self.output_layer.weight,
            labels[0],
            rows=None if loss_mask is None else loss_mask[0],
            group=self.pg_collection.tp,
            temperature=self.temperature,
            vocab_size=self.hf_config.vocab_size,
        )
