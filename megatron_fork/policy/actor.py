"""The policy: a statistics pass over all response tokens, and an update over the marked ones; and its frozen reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.distributed import Layout
from megatron_fork.experience import Batch
from megatron_fork.models import build_model
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.network import Config, Network, Task, Update, finish_loss
from megatron_fork.policy.optimizer import OptimizerConfig
from megatron_fork.vocab_parallel import TokenStatistics

# From the statistics of marked rows, and their places in the batch's columns, to a loss divided by a global count. Additive:
# called on a part of the rows it gives that part of the loss.
LossFunction = Callable[[TokenStatistics, Tensor], PolicyLoss]


class Policy(Network):
    """The language model being trained, or with no optimizer the frozen one that it is held to."""

    def __init__(
        self,
        config: Config,
        optimizer: OptimizerConfig | None,
        hf_config: PretrainedConfig,
        layout: Layout,
        *,
        temperature: float = 1.0,
        head: vocab_parallel.Config | None = None,
    ) -> None:
        model = build_model(hf_config, layout.config, dtype=config.dtype, temperature=temperature, head=head)
        super().__init__(config, optimizer, model, layout)

    def statistics(self, batch: Batch) -> TokenStatistics:
        """Log-prob and entropy of every response token of this rank's share, `[response tokens]` in its order, on the CPU."""
        return TokenStatistics(*self.columns(batch, 2))

    def update(
        self,
        batch: Batch,
        selected_t: Tensor,
        loss_function: LossFunction,
        *,
        learning_rate: float,
        whole_responses: bool = False,
    ) -> Update:
        """One optimizer step on this rank's share: LM head, loss and backward on the marked rows only.

        Args:
            batch: this rank's share of the mini-batch.
            selected_t: bool `[response tokens]`, the tokens that carry gradient.
            loss_function: see `LossFunction`.
            learning_rate: of this step.
            whole_responses: the loss needs all marked rows of a response at once. Otherwise it is evaluated a chunk of rows
                at a time while their logits live, which saves a matrix product.

        """
        micro_batches = self.micro_batches(batch)
        rows = [micro_batch.rows(selected_t) for micro_batch in micro_batches]
        places = [micro_batch.place_r[selected_t[micro_batch.place_r]] for micro_batch in micro_batches]
        tasks = [
            Task(partial(_loss_of_all_rows, loss_function, place_r))
            if whole_responses
            else Task(finish_loss, row_loss=partial(_loss_of_some_rows, loss_function, place_r))
            for place_r in places
        ]
        return self.step(micro_batches, rows, tasks, learning_rate=learning_rate)


def _loss_of_all_rows(
    loss_function: LossFunction, place_r: Tensor, statistics: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return finish_loss(loss_function(TokenStatistics(*statistics), place_r))


def _loss_of_some_rows(
    loss_function: LossFunction, place_r: Tensor, statistics: TokenStatistics, chunk: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = loss_function(statistics, place_r[chunk])
    return loss, metrics
