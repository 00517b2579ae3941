"""The policy and its frozen reference: a statistics pass over all response tokens, an update over the selected ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.data import MicroBatch
from megatron_fork.distributed import Layout, collectives
from megatron_fork.experience import Batch
from megatron_fork.models import ComputeConfig, ExpertsConfig, build_chunks
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.config import OptimizerConfig, PolicyConfig
from megatron_fork.policy.network import Network, Task, Update, finish_loss, no_tokens
from megatron_fork.policy.truncation import kept_sets_of
from megatron_fork.vocab_parallel import KeptSets, ReplayedStatistics, TokenStatistics

# From the statistics of selected rows and their places in the batch's columns to a loss that is divided by a global count. It
# is additive: called on a part of the rows it gives that part of the loss.
LossFunction = Callable[[TokenStatistics, Tensor], PolicyLoss]


class Policy(Network):
    """The language model being trained, or without an optimizer the frozen reference."""

    def __init__(
        self,
        config: PolicyConfig,
        optimizer: OptimizerConfig | None,
        hf_config: PretrainedConfig,
        layout: Layout,
        *,
        temperature: float = 1.0,
        head: vocab_parallel.VocabParallelConfig | None = None,
        compute: ComputeConfig | None = None,
        experts: ExpertsConfig | None = None,
    ) -> None:
        chunks = build_chunks(
            hf_config,
            layout.config,
            dtype=config.dtype,
            temperature=temperature,
            head=head,
            compute=compute,
            experts=experts,
        )
        super().__init__(config, optimizer, chunks, layout)

    def statistics(self, batch: Batch) -> TokenStatistics:
        """Log-prob and entropy of every response token of this rank's share, `[response tokens]` in order, on the CPU.

        Of tokens whose kept set the batch has, the log-prob is under the softmax over that set. The entropy is of the whole
        vocabulary.
        """
        logprob_t, entropy_t, _ = self.replayed_statistics(batch)
        return TokenStatistics(logprob_t, entropy_t)

    def replayed_statistics(self, batch: Batch) -> ReplayedStatistics:
        """`statistics` with the entropy of the softmax over each token's kept set."""
        if self.kept_sets(batch) is not None:
            return ReplayedStatistics(*self.columns(batch, 3))
        logprob_t, entropy_t = self.columns(batch, 2)
        return ReplayedStatistics(logprob_t, entropy_t, entropy_t)

    def kept_sets(self, batch: Batch) -> KeptSets | None:
        return kept_sets_of(batch)

    def update(
        self,
        batch: Batch,
        selected_t: Tensor,
        loss_function: LossFunction,
        *,
        learning_rate: float,
        whole_responses: bool = False,
    ) -> Update:
        """One optimizer step on this rank's share: LM head, loss and backward on the selected rows only.

        Args:
            batch: this rank's share of the mini-batch.
            selected_t: bool `[response tokens]`, the tokens that carry gradient.
            loss_function: see `LossFunction`.
            learning_rate: of this step.
            whole_responses: the loss needs all selected rows of a response at once. Otherwise it is evaluated on a chunk of
                rows at a time while their logits exist, which saves a matrix product.

        """
        parts = self._parts(batch, selected_t, loss_function, whole_responses=whole_responses)
        return self.step(batch, *parts, learning_rate=learning_rate)

    def gradient(
        self, batch: Batch, selected_t: Tensor, loss_function: LossFunction, *, whole_responses: bool = False
    ) -> float:
        """Leave the gradient of `update` in the gradient buffers, and return its norm; the weights stay."""
        self.backward(batch, *self._parts(batch, selected_t, loss_function, whole_responses=whole_responses))
        return self.gradient_norm()

    def _parts(
        self, batch: Batch, selected_t: Tensor, loss_function: LossFunction, *, whole_responses: bool
    ) -> tuple[list[MicroBatch], list[Tensor], list[Task]]:
        """Micro-batches, the rows of the LM head in each, and what is done with them."""
        whole = self.micro_batches(batch)
        micro_batches = self.local(whole)
        rows = [micro_batch.rows(selected_t) for micro_batch in micro_batches]
        places = [_marked(micro_batch, selected_t) for micro_batch in micro_batches]
        tasks = [
            Task(
                partial(_loss_of_whole_responses, loss_function, place_r, _marked(row, selected_t), self.layout.context)
            )
            if whole_responses
            else Task(finish_loss, row_loss=partial(_loss_of_some_rows, loss_function, place_r))
            for place_r, row in zip(places, whole, strict=True)
        ]
        return micro_batches, rows, tasks


def _marked(micro_batch: MicroBatch, selected_t: Tensor) -> Tensor:
    """The places of a micro-batch's selected response tokens in the batch's columns."""
    return micro_batch.place_r[selected_t[micro_batch.place_r]]


def _loss_of_whole_responses(
    loss_function: LossFunction,
    place_r: Tensor,
    whole_place_r: Tensor,
    context: collectives.Group,
    statistics: TokenStatistics | ReplayedStatistics,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Each context rank evaluates the loss of whole responses; gradients reach only its own tokens."""
    ranks, trained = collectives.size(context), TokenStatistics(*statistics[:2])
    if ranks == 1:
        return finish_loss(loss_function(trained, place_r))
    order_r = whole_place_r.argsort()
    own_r = order_r[torch.searchsorted(whole_place_r[order_r], place_r)].to(trained.logprob.device)
    loss, metrics = loss_function(
        TokenStatistics(*(_of_all_ranks(own, own_r, len(whole_place_r), context) for own in trained)), whole_place_r
    )
    # Every rank of the group holds the same value: each reports its fraction of it, while gradients are not scaled.
    shared = {name: value / ranks for name, value in {"loss": loss.detach(), **metrics}.items()}
    return loss, no_tokens(), shared


def _of_all_ranks(own_r: Tensor, place_r: Tensor, count: int, group: collectives.Group) -> Tensor:
    """`[count]` values of all ranks, each rank's at its own places; only this rank's have a gradient."""
    known = own_r.new_zeros(count).index_copy(0, place_r, own_r.detach())
    known = collectives.all_reduce_sum(known, group)
    return known.index_copy(0, place_r, own_r)


def _loss_of_some_rows(
    loss_function: LossFunction, place_r: Tensor, statistics: TokenStatistics, chunk: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = loss_function(statistics, place_r[chunk])
    return loss, metrics
