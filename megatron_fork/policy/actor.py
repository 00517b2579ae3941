"""The policy: Megatron's model and optimizer behind two methods, `statistics` and `update`.

Both go through Megatron's forward-backward schedule, so that pipeline stages, data-parallel reduction and gradient
finalisation are Megatron's own. Losses arrive divided by a global count; Megatron only sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.data import MicroBatch, deal, pack
from megatron_fork.distributed import Layout, collectives, device
from megatron_fork.errors import ConfigError
from megatron_fork.experience import Batch
from megatron_fork.models import StatisticsModel, build_model
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.optimizer import OptimizerConfig, build_optimizer
from megatron_fork.vocab_parallel import RowLoss, TokenStatistics


@dataclass
class Config:
    """How the policy computes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    tokens_per_micro_batch: int = 16384
    """Token budget of a micro-batch in the update; a longer sequence gets one of its own."""
    tokens_per_statistics_batch: int = 32768
    """Token budget of a micro-batch in the statistics pass, which keeps no activations."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_micro_batch", "tokens_per_statistics_batch"):
            if vars(self)[name] < 1:
                raise ConfigError(f"policy.{name}={vars(self)[name]} is not a token count", hint="try 16384")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass(frozen=True)
class Update:
    """What one optimizer step did: global loss, gradient norm before clipping, sums over the trained tokens."""

    loss: float
    gradient_norm: float
    learning_rate: float
    sums: dict[str, float]


# From the statistics of marked rows, and their places in the batch's columns, to a loss divided by a global count. Additive:
# called on a part of the rows it gives that part of the loss.
LossFunction = Callable[[TokenStatistics, Tensor], PolicyLoss]


class Policy:
    """The model being trained on this rank."""

    def __init__(
        self,
        config: Config,
        optimizer: OptimizerConfig,
        hf_config: PretrainedConfig,
        layout: Layout,
        *,
        temperature: float = 1.0,
        head: vocab_parallel.Config | None = None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.optimizer_config = optimizer
        self.model: StatisticsModel = build_model(
            hf_config, layout.config, dtype=config.dtype, temperature=temperature, head=head
        )
        self._chunk = self._wrap(self.model)
        self.optimizer = build_optimizer(optimizer, self._chunk, config.dtype)

    def _wrap(self, model: StatisticsModel) -> DistributedDataParallel:
        model.config.finalize_model_grads_func = _finalize_gradients
        inner: nn.Module = Float16Module(model.config, model) if self.config.precision == "bf16" else model
        return DistributedDataParallel(
            model.config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=self.optimizer_config.distributed,
                check_for_nan_in_grad=True,
            ),
            inner,
        )

    def weights_changed(self) -> None:
        """To be called after weights were loaded: float32 main parameters follow the model's."""
        self.optimizer.reload_model_params()

    def share(self, batch: Batch) -> Batch:
        """This data-parallel rank's part of a mini-batch."""
        return deal(batch, self.layout.data.rank(), self.layout.data.size())

    def micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """How `update` cuts this rank's share."""
        return pack(batch, token_budget=self.config.tokens_per_micro_batch, alignment=self.layout.config.alignment)

    @torch.no_grad()
    def statistics(self, batch: Batch) -> TokenStatistics:
        """Log-prob and entropy of every response token of this rank's share, `[response tokens]` in its order, on the CPU."""
        micro_batches = pack(
            batch, token_budget=self.config.tokens_per_statistics_batch, alignment=self.layout.config.alignment
        )
        self.model.eval()
        rows = [micro_batch.response_1t for micro_batch in micro_batches]
        results = self._run(micro_batches, rows, [_Task(_collect)] * len(rows), forward_only=True)
        columns_2t = torch.zeros(2, batch.response_tokens)
        for micro_batch, statistics in zip(micro_batches, results, strict=False):
            columns_2t[:, micro_batch.place_r] = torch.stack(tuple(statistics)).cpu()
        source = self.layout.last_stage_rank
        columns_2t = collectives.broadcast(columns_2t.to(device()), source, self.layout.pipeline).cpu()
        return TokenStatistics(*columns_2t)

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
        self.model.train()
        self._chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        rows = [micro_batch.rows(selected_t) for micro_batch in micro_batches]
        places = [micro_batch.place_r[selected_t[micro_batch.place_r]] for micro_batch in micro_batches]
        tasks = [
            _Task(partial(_apply, loss_function, place_r))
            if whole_responses
            else _Task(_pass_on, row_loss=partial(_row_loss, loss_function, place_r))
            for place_r in places
        ]
        results = self._run(micro_batches, rows, tasks)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        _, gradient_norm, _ = self.optimizer.step()
        sums = self._global_sums(results)
        return Update(sums.pop("loss", 0.0), float(gradient_norm), learning_rate, sums)

    def _run(
        self,
        micro_batches: list[MicroBatch],
        rows: list[Tensor],
        tasks: list[_Task],
        *,
        forward_only: bool = False,
    ) -> list[Any]:
        """Through Megatron's schedule; what the last stage collected of each micro-batch, nothing on the others."""
        where = device()
        items = iter(
            [
                (micro_batch.to(where), row_1t.to(where), task)
                for micro_batch, row_1t, task in zip(micro_batches, rows, tasks, strict=True)
            ]
        )
        return get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=items,
            model=self._chunk,
            num_microbatches=len(micro_batches),
            seq_length=max(micro_batch.tokens for micro_batch in micro_batches),
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _global_sums(self, results: list[dict[str, Tensor]]) -> dict[str, float]:
        names = sorted(results[0]) if results else []
        totals = torch.zeros(len(names), dtype=torch.float64)
        for result in results:
            totals += torch.stack([result[name].double().cpu() for name in names])
        totals = collectives.all_reduce_sum(totals.to(device()), self.layout.data).cpu()
        stages = collectives.gather_objects(dict(zip(names, totals.tolist(), strict=True)), self.layout.pipeline)
        return stages[-1]


@dataclass(frozen=True)
class _Task:
    """What the last stage does with a micro-batch: a loss inside the LM head, and what follows the model's answer."""

    finish: Callable[[Any], tuple[Tensor, Tensor, Any]]
    row_loss: RowLoss | None = None


def _forward_step(
    items: Iterator[tuple[MicroBatch, Tensor, _Task]], model: nn.Module
) -> tuple[Any, Callable[[Any], tuple[Tensor, Tensor, Any]]]:
    micro_batch, row_1t, task = next(items)
    output = model(
        micro_batch.token_1t,
        micro_batch.position_1t,
        None,
        labels=micro_batch.target_1t,
        loss_mask=row_1t,
        row_loss=task.row_loss,
        packed_seq_params=PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=micro_batch.cumulative_lengths,
            cu_seqlens_kv=micro_batch.cumulative_lengths,
            max_seqlen_q=micro_batch.longest,
            max_seqlen_kv=micro_batch.longest,
        ),
    )
    return output, task.finish


def _no_tokens() -> Tensor:
    """Megatron's own count, by which nothing is divided: see `_finalize_gradients`."""
    return torch.zeros((), dtype=torch.int, device=device())


def _apply(
    loss_function: LossFunction, place_r: Tensor, statistics: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss, metrics = loss_function(TokenStatistics(*statistics), place_r)
    return loss, _no_tokens(), {"loss": loss.detach(), **metrics}


def _row_loss(
    loss_function: LossFunction, place_r: Tensor, statistics: TokenStatistics, chunk: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = loss_function(statistics, place_r[chunk])
    return loss, metrics


def _pass_on(answer: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss, metrics = answer
    return loss, _no_tokens(), {"loss": loss.detach(), **metrics}


def _collect(statistics: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, TokenStatistics]:
    result = TokenStatistics(*statistics)
    return result.logprob.sum(), _no_tokens(), result


def _finalize_gradients(chunks: list[nn.Module], _: Tensor | None, **groups: Any) -> None:
    """Megatron's reductions without its division by a token count: the loss has been divided already."""
    finalize_model_grads(chunks, None, **groups)
