"""A Megatron model on this rank: wrapped for data parallelism, run through Megatron's schedule, stepped by its optimizer.

Policy, critic and reference are networks. All go through Megatron's forward-backward schedule, so that pipeline stages,
data-parallel reduction and gradient finalisation are Megatron's own. Losses arrive divided by a global count; Megatron sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn

from megatron_fork.data import MicroBatch, deal, pack
from megatron_fork.distributed import Layout, collectives, device
from megatron_fork.errors import ConfigError
from megatron_fork.experience import Batch
from megatron_fork.models import PackedModel
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.optimizer import OptimizerConfig, build_optimizer
from megatron_fork.vocab_parallel import RowLoss


@dataclass
class Config:
    """How the networks compute."""

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


@dataclass(frozen=True)
class Task:
    """What the last stage does with a micro-batch: a loss inside the LM head, and what follows the model's answer."""

    finish: Callable[[Any], tuple[Tensor, Tensor, Any]]
    row_loss: RowLoss | None = None


class Network:
    """One model, its wrappers, and its optimizer where it is trained."""

    def __init__(self, config: Config, optimizer: OptimizerConfig | None, model: PackedModel, layout: Layout) -> None:
        self.config = config
        self.layout = layout
        self.model = model
        model.config.finalize_model_grads_func = _finalize_gradients
        self._chunk: nn.Module = Float16Module(model.config, model) if config.precision == "bf16" else model
        self._optimizer: MegatronOptimizer | None = None
        if optimizer is not None:
            self._chunk = DistributedDataParallel(
                model.config,
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=True,
                    use_distributed_optimizer=optimizer.distributed,
                    check_for_nan_in_grad=True,
                ),
                self._chunk,
            )
            self._optimizer = build_optimizer(optimizer, self._chunk, config.dtype)

    @property
    def optimizer(self) -> MegatronOptimizer:
        assert self._optimizer is not None, "this network is not trained"
        return self._optimizer

    def weights_changed(self) -> None:
        """To be called after weights were loaded: float32 main parameters follow the model's."""
        self.optimizer.reload_model_params()

    def share(self, batch: Batch) -> Batch:
        """This data-parallel rank's part of a mini-batch."""
        return deal(batch, self.layout.data.rank(), self.layout.data.size())

    def micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """How an update cuts this rank's share."""
        return pack(batch, token_budget=self.config.tokens_per_micro_batch, alignment=self.layout.config.alignment)

    @torch.no_grad()
    def columns(self, batch: Batch, count: int) -> Tensor:
        """`[count, response tokens]` of this rank's share, on the CPU: what the model answers, in the batch's order."""
        micro_batches = pack(
            batch, token_budget=self.config.tokens_per_statistics_batch, alignment=self.layout.config.alignment
        )
        self.model.eval()
        rows = [micro_batch.response_1t for micro_batch in micro_batches]
        answers = self._run(micro_batches, rows, [Task(_collect)] * len(rows), forward_only=True)
        columns_kt = torch.zeros(count, batch.response_tokens)
        for micro_batch, answer in zip(micro_batches, answers, strict=False):
            columns_kt[:, micro_batch.place_r] = torch.stack(tuple(answer)).cpu()
        return collectives.broadcast(columns_kt.to(device()), self.layout.last_stage_rank, self.layout.pipeline).cpu()

    def step(
        self, micro_batches: list[MicroBatch], rows: list[Tensor], tasks: list[Task], *, learning_rate: float
    ) -> Update:
        """Forward, backward and one optimizer step."""
        self.model.train()
        assert isinstance(self._chunk, DistributedDataParallel)
        self._chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = self._run(micro_batches, rows, tasks, forward_only=False)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        _, gradient_norm, _ = self.optimizer.step()
        sums = self._global_sums(results)
        return Update(sums.pop("loss", 0.0), float(gradient_norm), learning_rate, sums)

    def _run(
        self, micro_batches: list[MicroBatch], rows: list[Tensor], tasks: list[Task], *, forward_only: bool
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


def no_tokens() -> Tensor:
    """Megatron's own count, by which nothing is divided: see `_finalize_gradients`."""
    return torch.zeros((), dtype=torch.int, device=device())


def finish_loss(answer: PolicyLoss | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What Megatron's schedule wants of a loss and its sums."""
    loss, metrics = answer
    return loss, no_tokens(), {"loss": loss.detach(), **metrics}


def _forward_step(
    items: Iterator[tuple[MicroBatch, Tensor, Task]], model: nn.Module
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


def _collect(answer: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    return answer[0].sum(), no_tokens(), answer


def _finalize_gradients(chunks: list[nn.Module], _: Tensor | None, **groups: Any) -> None:
    """Megatron's reductions without its division by a token count: the loss has been divided already."""
    finalize_model_grads(chunks, None, **groups)
