"""PPO's critic: the expected return from each state, with its own backbone and optimizer (arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.distributed import Layout
from megatron_fork.experience import Batch
from megatron_fork.models import ComputeConfig, ExpertsConfig, build_value_chunks
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.config import OptimizerConfig, PolicyConfig
from megatron_fork.policy.network import Network, Task, Update, finish_loss

# From values `[rows]` and their places in the batch's columns to a loss divided by a global count.
ValueLossFunction = Callable[[Tensor, Tensor], PolicyLoss]


class Critic(Network):
    """The value of the state before each response token: the prompt and the response so far."""

    def __init__(
        self,
        config: PolicyConfig,
        optimizer: OptimizerConfig,
        hf_config: PretrainedConfig,
        layout: Layout,
        *,
        compute: ComputeConfig | None = None,
        experts: ExpertsConfig | None = None,
    ) -> None:
        chunks = build_value_chunks(hf_config, layout.config, dtype=config.dtype, compute=compute, experts=experts)
        super().__init__(config, optimizer, chunks, layout)

    def values(self, batch: Batch) -> Tensor:
        """Values of this rank's share, float32 `[response tokens]` in order, on the CPU."""
        return self.columns(batch, 1)[0]

    def update(
        self, batch: Batch, trained_t: Tensor, loss_function: ValueLossFunction, *, learning_rate: float
    ) -> Update:
        """One optimizer step on this rank's share, over the tokens marked in `trained_t` (bool `[response tokens]`)."""
        micro_batches = self.local(self.micro_batches(batch))
        tasks = [
            Task(partial(_loss, loss_function, micro_batch.place_r[trained_t[micro_batch.place_r]]))
            for micro_batch in micro_batches
        ]
        rows = [micro_batch.rows(trained_t) for micro_batch in micro_batches]
        return self.step(batch, micro_batches, rows, tasks, learning_rate=learning_rate)


def _loss(
    loss_function: ValueLossFunction, place_r: Tensor, answer: tuple[Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return finish_loss(loss_function(answer[0], place_r))
