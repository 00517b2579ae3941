"""Megatron's GPTModel whose last stage returns token statistics, or a loss of them, instead of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.models.routing import Routing
from megatron_fork.vocab_parallel import (
    KeptSets,
    ReplayedStatistics,
    RowLoss,
    TokenStatistics,
    lm_head_loss,
    lm_head_statistics,
    replayed_statistics,
)


class LmHead(ColumnParallelLinear):
    """The output layer, which can run another head when it is called.

    Megatron gathers sharded parameters when the module that holds them is called. A head that used the weight without calling
    the module would compute with parameters that have not been gathered.
    """

    def forward(self, *args: Any, head: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs) if head is None else head()


def gathered_hidden_states(model: GPTModel, hidden_states: Tensor) -> Tensor:
    """`[tokens, d]` on every tensor rank, from Megatron's `[tokens (/tp), 1, d]`.

    A head must give every rank the same, whole gradient: under sequence parallelism backward only uses this rank's tokens.
    """
    if model.config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=model.pg_collection.tp
        )
    return hidden_states.squeeze(1)


class StatisticsModel(GPTModel):
    """GPTModel with three kinds of results of its last stage.

    `forward(tokens, positions, None, labels=targets, loss_mask=rows)` returns `TokenStatistics` at `rows`; with
    `row_loss=...` as well, the (loss, sums) of `vocab_parallel.lm_head_loss`; with `kept=...`, the set that each of the rows'
    targets was drawn from, the log-prob is under the softmax over that set (`ReplayedStatistics`). Without labels, this rank's
    logits `[batch, sequence, vocab/tp]`, like GPTModel.
    """

    def __init__(
        self,
        *args: Any,
        hf_config: PretrainedConfig,
        temperature: float,
        head: vocab_parallel.VocabParallelConfig,
        routing: Routing,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hf_config = hf_config
        self.routing = routing
        self.temperature = temperature
        self.head = head
        self._row_loss: RowLoss | None = None
        self._kept: KeptSets | None = None
        if self.post_process:
            weight: Tensor | None = self.get_submodule("output_layer").weight
            self.output_layer = self._head_around(weight)

    def _head_around(self, weight: Tensor | None) -> LmHead:
        """Megatron's output layer with its weight; None if the tied embedding is on this rank."""
        head = LmHead(
            self.config.hidden_size,
            self.vocab_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
            skip_weight_param_allocation=True,
            tp_group=self.pg_collection.tp,
        )
        head.weight = weight
        return head

    def forward(self, *args: Any, row_loss: RowLoss | None = None, kept: KeptSets | None = None, **kwargs: Any) -> Any:
        """Megatron's forward; `row_loss` and `kept` are held for `_postprocess`, to which Megatron does not pass them."""
        self._row_loss, self._kept = row_loss, kept
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._row_loss = self._kept = None

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | TokenStatistics | ReplayedStatistics | tuple[Tensor, dict[str, Tensor]]:
        """Override of Megatron's last step: the LM head runs on the rows marked in `loss_mask` `[1, tokens]` only."""
        if not self.post_process or labels is None:
            return super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
        hidden_td = gathered_hidden_states(self, hidden_states)
        rows_t = None if loss_mask is None else loss_mask[0]
        return self.output_layer(head=lambda: self._answer(hidden_td, labels[0], rows_t))

    def _answer(
        self, hidden_td: Tensor, targets_t: Tensor, rows_t: Tensor | None
    ) -> TokenStatistics | ReplayedStatistics | tuple[Tensor, dict[str, Tensor]]:
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        main_gradient = _wider_main_gradient(weight)
        if main_gradient is not None and torch.is_grad_enabled():
            # As Megatron's own products into that buffer say: its hook then does not sweep the buffer to add autograd's zeros.
            weight.grad_added_to_main_grad = True
        options: dict[str, Any] = {
            "rows": rows_t,
            "group": self.pg_collection.tp,
            "temperature": self.temperature,
            "vocab_size": self.hf_config.vocab_size,
            "config": self.head,
            "weight_gradient": main_gradient,
        }
        if self._kept is not None:
            statistics = replayed_statistics(hidden_td, weight, targets_t, self._kept, **options)
            trained = TokenStatistics(statistics.logprob, statistics.entropy)
            return statistics if self._row_loss is None else self._row_loss(trained, slice(0, len(trained.logprob)))
        if self._row_loss is None:
            return lm_head_statistics(hidden_td, weight, targets_t, **options)
        return lm_head_loss(hidden_td, weight, targets_t, self._row_loss, **options)


def _wider_main_gradient(weight: Tensor) -> Tensor | None:
    """Megatron's float32 gradient of a half-precision weight, which its DDP wrapper sets on the parameter."""
    main_gradient: Tensor | None = getattr(weight, "main_grad", None)
    return main_gradient if main_gradient is not None and main_gradient.dtype != weight.dtype else None
