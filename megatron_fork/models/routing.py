"""Routers of a mixture of experts that know which token of the share each row is.

Two features need this, and neither may depend on micro-batches, packing or layout:

* The balance loss, computed per sequence (arXiv 2412.19437, equations 17 to 20). For a sequence of T tokens,

      balance = E sum_e f_e P_e      f_e = chosen_e / (k T)      P_e = mean over its tokens of p_e

  with p the softmax over all E experts; the loss is the mean over the sequences of the mini-batch, summed over layers. Only P
  has a gradient and f is known from the whole sequence, so that each token's part can be added on the rank that has the token.
  Megatron's losses over micro-batches change with the way a mini-batch is split.
* Routing replay (arXiv 2510.11370): tokens go to the experts that the rollout engine chose, with weights of the current router.

Design: Megatron passes a padding mask to its routers, also in recomputation. Here it holds each row's token instead, -1 for
padding, and all routers of a network share one `Routing` that describes the tokens of a share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError
from megatron_fork.models.config import ExpertsConfig


@dataclass
class Routing:
    """The tokens of the current share, sequences end to end; one object for all routers of a network."""

    config: ExpertsConfig = field(default_factory=ExpertsConfig)
    sequence_n: Tensor | None = None  # [tokens of the share] int64
    length_s: Tensor | None = None  # [sequences of the share] float32
    sequences: int = 1
    """Number in the mini-batch, over all ranks."""
    chosen_nlk: Tensor | None = None  # [tokens of the share, layers, k] the engine's choices
    balance: float = 0.0
    """This rank's part of the balance loss since it was last set to 0."""


class ReplayedChoice:
    """Gives Megatron's router the engine's experts in place of its k largest scores."""

    def __init__(self, router: PackedRouter) -> None:
        self._router = router

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        largest: Callable[..., tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Scores and indices `[tokens, k]`: of the engine's experts, and of the largest scores for padding."""
        values, indices = largest(scores, topk, num_groups=num_groups, group_topk=group_topk)
        chosen = self._router.replayed()
        if chosen is None:
            return values, indices
        indices = torch.where(chosen >= 0, chosen, indices)
        return scores.gather(1, indices), indices


class PackedRouter(TopKRouter):
    """Megatron's router with replay, and with a balance loss that does not depend on the layout."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        *,
        routing: Routing,
        **place: Any,
    ) -> None:
        super().__init__(config, pg_collection, **place)
        self.known = routing
        self.token_t: Tensor | None = None
        if routing.config.replay:
            self.router_replay = ReplayedChoice(self)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and choices `[tokens, experts]`; in training the balance loss is attached to the weights."""
        weights_te, chosen_te = super().routing(logits, padding_mask)
        if self.known.config.balance and self.training and torch.is_grad_enabled():
            loss = self._balance_loss(logits.flatten(0, -2), chosen_te)
            self.known.balance += float(loss.detach())
            weights_te = MoEAuxLossAutoScaler.apply(weights_te, loss)
        return weights_te, chosen_te

    def replayed(self) -> Tensor | None:
        """`[tokens, k]` experts that the engine chose, -1 for padding; None if nothing is replayed."""
        chosen_nlk = self.known.chosen_nlk
        if chosen_nlk is None or self.token_t is None:
            return None
        layer = self.layer_number - 1
        if layer >= chosen_nlk.shape[1] or chosen_nlk.shape[2] != self.topk:
            raise RolloutError(
                f"the engine reports {chosen_nlk.shape[2]} experts in {chosen_nlk.shape[1]} layers, the model has "
                f"{self.topk} in {self.config.num_layers}",
                hint="set experts.replay=false, or serve the policy's own model",
            )
        chosen_tk = chosen_nlk[self.token_t.clamp(min=0), layer].long()
        return chosen_tk.masked_fill(self.token_t[:, None] < 0, -1)

    def _balance_loss(self, logits_te: Tensor, chosen_te: Tensor) -> Tensor:
        """The part of this rank's tokens, times the coefficient and divided by the mini-batch's sequences."""
        known = self.known
        assert self.token_t is not None and known.sequence_n is not None and known.length_s is not None
        true_t = self.token_t >= 0
        sequence_t = known.sequence_n[self.token_t[true_t]]
        probability_te = logits_te[true_t].float().softmax(-1)
        counts_se = probability_te.new_zeros(len(known.length_s), probability_te.shape[1])
        counts_se.index_add_(0, sequence_t, chosen_te[true_t].to(counts_se.dtype))
        counts_se = collectives.all_reduce_sum(counts_se, self.tp_cp_group)
        scale = self.config.num_moe_experts * known.config.balance / (self.topk * known.sequences)
        weight_te = counts_se[sequence_t] * (scale / known.length_s[sequence_t] ** 2)[:, None]
        return (weight_te * probability_te).sum()


class PackedExperts(MoELayer):
    """Megatron's layer, whose "padding mask" is the token of each row, int64 `[1, tokens]`, for its router."""

    def forward(
        self, hidden_states: Tensor, intermediate_tensors: Any = None, padding_mask: Tensor | None = None
    ) -> Any:
        self.router.token_t = None if padding_mask is None else self._of_this_rank(padding_mask[0], hidden_states)
        return super().forward(hidden_states, intermediate_tensors)

    def _of_this_rank(self, token_t: Tensor, hidden_states: Tensor) -> Tensor:
        """This rank's tokens: Megatron splits the mask over tensor ranks on the first pipeline stage only."""
        rows = hidden_states.shape[0]
        return token_t if len(token_t) == rows else token_t.split(rows)[self.attn_tp_group.rank()]
