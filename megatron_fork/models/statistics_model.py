"""Megatron's GPTModel whose last stage answers with token statistics, or a loss of them, instead of logits."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.models.hidden_states import gathered_hidden_states
from megatron_fork.vocab_parallel import RowLoss, TokenStatistics, lm_head_loss, lm_head_statistics


class StatisticsModel(GPTModel):
    """GPTModel with three answers of its last stage.

    `forward(tokens, positions, None, labels=targets, loss_mask=rows)` gives `TokenStatistics` at `rows`; with
    `row_loss=...` as well, the (loss, sums) of `vocab_parallel.lm_head_loss`; without labels, this rank's logits
    `[batch, sequence, vocab/tp]`, as GPTModel does.
    """

    def __init__(
        self,
        *args: Any,
        hf_config: PretrainedConfig,
        temperature: float,
        head: vocab_parallel.Config,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hf_config = hf_config
        self.temperature = temperature
        self.head = head
        self._row_loss: RowLoss | None = None

    def forward(self, *args: Any, row_loss: RowLoss | None = None, **kwargs: Any) -> Any:
        """Megatron's forward; `row_loss` waits here for `_postprocess`, which Megatron calls without it."""
        self._row_loss = row_loss
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._row_loss = None

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | TokenStatistics | tuple[Tensor, dict[str, Tensor]]:
        """Override of Megatron's last step: the LM head runs on the rows marked in `loss_mask` `[1, tokens]` only."""
        if not self.post_process or labels is None:
            return super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        options: dict[str, Any] = {
            "rows": None if loss_mask is None else loss_mask[0],
            "group": self.pg_collection.tp,
            "temperature": self.temperature,
            "vocab_size": self.hf_config.vocab_size,
            "config": self.head,
            "weight_gradient": _wider_main_gradient(weight),
        }
        hidden_td = gathered_hidden_states(self, hidden_states)
        if self._row_loss is None:
            return lm_head_statistics(hidden_td, weight, labels[0], **options)
        return lm_head_loss(hidden_td, weight, labels[0], self._row_loss, **options)


def _wider_main_gradient(weight: Tensor) -> Tensor | None:
    """Megatron's float32 gradient of a half-precision weight, which its DDP wrapper hangs on the parameter."""
    main_gradient: Tensor | None = getattr(weight, "main_grad", None)
    return main_gradient if main_gradient is not None and main_gradient.dtype != weight.dtype else None
