"""A Megatron model on this rank: wrapped for data parallelism, run by Megatron's schedule, updated by its optimizer.

Policy, critic and reference are networks. All use Megatron's forward-backward schedule, so that pipeline stages, data-parallel
reduction and gradient finalisation are Megatron's own. Losses are divided by a global count before; Megatron only sums them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn
from transformers import PretrainedConfig

from megatron_fork.data import MicroBatch, RowShape, deal, micro_batches_needed, pack
from megatron_fork.distributed import Layout, collectives, device, threads_of_a_pass
from megatron_fork.experience import Batch
from megatron_fork.models import PackedModel, PackedRow, tokens_multiple, tokens_where_attention_is_half
from megatron_fork.objective import PolicyLoss
from megatron_fork.policy.config import OptimizerConfig, PolicyConfig
from megatron_fork.policy.routing import describe
from megatron_fork.policy.wrapping import build_optimizer, connect_schedule, data_parallel
from megatron_fork.vocab_parallel import KeptSets, RowLoss


@dataclass(frozen=True)
class Update:
    """What one optimizer step did: global loss, gradient norm before clipping, sums over the trained tokens."""

    loss: float
    gradient_norm: float
    learning_rate: float
    sums: dict[str, float]
    balance: float = 0.0
    """Balance loss of a mixture of experts, with its coefficient; part of the gradient, not of `loss`."""
    is_applied: bool = True
    """Whether the optimizer made its step; false on every rank where the loss or the gradient norm is not finite."""
    suspects: tuple[int, ...] = ()
    """If not applied: numbers of the sequences in micro-batches whose loss is not finite, or of all if none is."""


@dataclass(frozen=True)
class Task:
    """What the last stage does with a micro-batch: a loss inside the LM head, and a function of its output."""

    finish: Callable[[Any], tuple[Tensor, Tensor, Any]]
    row_loss: RowLoss | None = None


class Network:
    """One model, its wrappers, and its optimizer if it is trained."""

    def __init__(
        self, config: PolicyConfig, optimizer: OptimizerConfig | None, chunks: Sequence[PackedModel], layout: Layout
    ) -> None:
        self.config = config
        self.layout = layout
        self._chunks = list(chunks)
        self._gathering = False
        self._quadratic_at = tokens_where_attention_is_half(self.hf_config)
        self._wrapped: list[nn.Module] = [
            Float16Module(chunk.config, chunk) if config.precision == "bf16" else chunk for chunk in self._chunks
        ]
        self._optimizer: MegatronOptimizer | None = None
        if optimizer is not None:
            self._wrapped = list(data_parallel(optimizer, self._wrapped))
            self._optimizer = build_optimizer(optimizer, self._wrapped, config.dtype)
            connect_schedule(optimizer, self._wrapped, self._optimizer)
        self._overlaps = optimizer is not None and optimizer.overlap_parameters

    @property
    def model(self) -> list[PackedModel]:
        """This rank's part of the model, one chunk per virtual pipeline stage, after all parameters have been gathered."""
        if self._gathering:
            for wrapped in self._wrapped:
                assert isinstance(wrapped, DistributedDataParallel)
                wrapped.start_param_sync(force_sync=True)
            self._gathering = False
        return self._chunks

    @property
    def hf_config(self) -> PretrainedConfig:
        return self._chunks[0].hf_config

    @property
    def optimizer(self) -> MegatronOptimizer:
        assert self._optimizer is not None, "this network is not trained"
        return self._optimizer

    def weights_changed(self) -> None:
        """Copy the model's weights to the float32 main parameters; must be called after weights were loaded."""
        self.optimizer.reload_model_params()

    def share(self, batch: Batch) -> Batch:
        """This data-parallel rank's part of a mini-batch."""
        return deal(batch, self.layout.data.rank(), self.layout.data.size(), quadratic_at=self._quadratic_at)

    def micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """The micro-batches of this rank's share in an update: whole rows, of which each context rank takes its part."""
        return self._packed(batch, self.config.tokens_per_micro_batch)

    def local(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """This context rank's part of whole rows."""
        context = self.layout.context
        return [micro_batch.on_context_rank(context.rank(), context.size()) for micro_batch in micro_batches]

    @torch.no_grad()
    def columns(self, batch: Batch, count: int) -> Tensor:
        """The model's outputs for this rank's share, `[count, response tokens]` in the batch's order, on the CPU."""
        self._describe(batch)
        micro_batches = self.local(self._packed(batch, self.config.tokens_per_statistics_batch))
        for chunk in self._chunks:
            chunk.eval()
        rows = [micro_batch.response_1t for micro_batch in micro_batches]
        answers = self._run(batch, micro_batches, rows, [Task(_collect)] * len(rows), forward_only=True)
        columns_kt = torch.zeros(count, batch.response_tokens)
        for micro_batch, answer in zip(micro_batches, answers, strict=False):
            columns_kt[:, micro_batch.place_r] = torch.stack(tuple(answer)).cpu()
        columns_kt = collectives.all_reduce_sum(columns_kt.to(device()), self.layout.context)
        return collectives.broadcast(columns_kt, self.layout.last_stage_rank, self.layout.pipeline).cpu()

    def _packed(self, batch: Batch, token_budget: int) -> list[MicroBatch]:
        parallel = self.layout.config
        count = micro_batches_needed(batch, token_budget=token_budget)
        if parallel.expert > 1:
            # Ranks exchange tokens between their experts in every micro-batch, so all need the same number of them.
            everywhere = collectives.all_reduce_max(torch.tensor(count, device=device()), self.layout.data)
            count = int(everywhere)
        if parallel.virtual_pipeline > 1:
            count += -count % parallel.pipeline  # the interleaved schedule needs a multiple of the stages
        multiple = parallel.alignment * tokens_multiple(self._chunks[0].config)
        shape = RowShape(alignment=multiple, context=parallel.context)
        return pack(batch, token_budget=token_budget, count=count, shape=shape, quadratic_at=self._quadratic_at)

    def step(
        self,
        batch: Batch,
        micro_batches: list[MicroBatch],
        rows: list[Tensor],
        tasks: list[Task],
        *,
        learning_rate: float,
    ) -> Update:
        """Forward, backward and one optimizer step on this rank's share and its micro-batches.

        An update whose loss or gradient norm is not finite is not applied on any rank: weights, optimizer and rates stay.
        """
        results = self.backward(batch, micro_batches, rows, tasks)
        sums = self._global_sums(results)
        loss, balance = sums.pop("loss", 0.0), self._balance()
        gradient_norm = self.gradient_norm()
        if not self._is_finite_everywhere(loss, gradient_norm):
            suspects = self._suspects(batch, micro_batches, results)
            self.optimizer.zero_grad()
            return Update(loss, gradient_norm, 0.0, sums, balance, is_applied=False, suspects=suspects)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._gathering = self._overlaps
        return Update(loss, gradient_norm, learning_rate, sums, balance)

    def backward(
        self, batch: Batch, micro_batches: list[MicroBatch], rows: list[Tensor], tasks: list[Task]
    ) -> list[dict[str, Tensor]]:
        """Put the gradient into the gradient buffers; returns the results of each micro-batch, on the last stage."""
        self._describe(batch)
        for chunk, wrapped in zip(self._chunks, self._wrapped, strict=True):
            chunk.train()
            assert isinstance(wrapped, DistributedDataParallel)
            wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(batch, micro_batches, rows, tasks, forward_only=False)

    def gradient_norm(self) -> float:
        """The norm over all ranks of what is in the gradient buffers, as an update would have it before clipping."""
        self.optimizer.prepare_grads()
        return float(self.optimizer.get_grad_norm())

    @property
    def gradient_buffers(self) -> list[Tensor]:
        """This rank's gradients, float32, in place."""
        wrapped = [each for each in self._wrapped if isinstance(each, DistributedDataParallel)]
        return [buffer.grad_data for each in wrapped for buffer in [*each.buffers, *each.expert_parallel_buffers]]

    def _is_finite_everywhere(self, *values: float) -> bool:
        """Whether the values are finite on every rank: ranks of other layers, experts or shards may see another norm."""
        broken = torch.tensor(float(not all(map(math.isfinite, values))), device=device())
        return not float(collectives.all_reduce_max(broken, self.layout.world))

    def _suspects(
        self, batch: Batch, micro_batches: list[MicroBatch], results: list[dict[str, Tensor]]
    ) -> tuple[int, ...]:
        """Numbers of the sequences in micro-batches whose loss is not finite, of all ranks; of the whole update if none is."""
        all_of_rank = [each.number for each in batch.sequences]
        of_loss = [
            all_of_rank[index]
            for micro_batch, result in zip(micro_batches, results, strict=False)
            if not math.isfinite(float(result["loss"]))
            for index in batch.sequence_t[micro_batch.place_r].unique().tolist()
        ]
        found = collectives.gather_objects((of_loss, all_of_rank), self.layout.world)
        suspected = {number for of_rank, _ in found for number in of_rank}
        return tuple(sorted(suspected or {number for _, of_rank in found for number in of_rank}))

    def _describe(self, batch: Batch) -> None:
        """Describe the tokens of this rank's share to the routers of a mixture of experts."""
        if self.has_experts:
            describe(self._chunks[0].routing, batch, self.layout.data)

    def _balance(self) -> float:
        """The balance loss of an update: tensor, context, data and pipeline ranks each hold a part of it."""
        if not self.has_experts:
            return 0.0
        part = torch.tensor(self._chunks[0].routing.balance, dtype=torch.float64, device=device())
        return float(collectives.all_reduce_sum(part, self.layout.world))

    @property
    def has_experts(self) -> bool:
        return self._chunks[0].config.num_moe_experts is not None

    def kept_sets(self, batch: Batch) -> KeptSets | None:
        """What the tokens of a share were drawn from, where the network's softmax runs over that; see `policy.truncation`."""
        return None

    def _run(
        self,
        batch: Batch,
        micro_batches: list[MicroBatch],
        rows: list[Tensor],
        tasks: list[Task],
        *,
        forward_only: bool,
    ) -> list[Any]:
        """Run Megatron's schedule; returns the results of each micro-batch on the last stage, an empty list on others."""
        where, sets = device(), self.kept_sets(batch)
        items = [
            (
                micro_batch.to(where),
                row_1t.to(where),
                task,
                None if sets is None else sets.take(micro_batch.places(row_1t)).to(where),
            )
            for micro_batch, row_1t, task in zip(micro_batches, rows, tasks, strict=True)
        ]
        # Every chunk of an interleaved pipeline reads the same micro-batches, each at its own time.
        iterators = [iter(items) for _ in self._wrapped]
        interleaved = len(self._wrapped) > 1
        with threads_of_a_pass():
            answers: list[Any] = get_forward_backward_func()(
                forward_step_func=_forward_step,
                data_iterator=iterators if interleaved else iterators[0],
                model=self._wrapped if interleaved else self._wrapped[0],
                num_microbatches=len(micro_batches),
                seq_length=max(micro_batch.tokens for micro_batch in micro_batches) * self.layout.context.size(),
                micro_batch_size=1,
                forward_only=forward_only,
            )
        return answers

    def _global_sums(self, results: list[dict[str, Tensor]]) -> dict[str, float]:
        names = sorted(results[0]) if results else []
        totals = torch.zeros(len(names), dtype=torch.float64)
        for result in results:
            totals += torch.stack([result[name].double().cpu() for name in names])
        totals = collectives.all_reduce_sum(totals.to(device()), self.layout.data_and_context).cpu()
        stages = collectives.gather_objects(dict(zip(names, totals.tolist(), strict=True)), self.layout.pipeline)
        return stages[-1]


def no_tokens() -> Tensor:
    """The token count that Megatron's schedule expects; nothing is divided by it: see `wrapping.finalize_gradients`."""
    return torch.zeros((), dtype=torch.int, device=device())


def finish_loss(answer: PolicyLoss | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A loss and its sums in the form that Megatron's schedule expects."""
    loss, metrics = answer
    return loss, no_tokens(), {"loss": loss.detach(), **metrics}


def _forward_step(
    items: Iterator[tuple[MicroBatch, Tensor, Task, KeptSets | None]], model: nn.Module
) -> tuple[Any, Callable[[Any], tuple[Tensor, Tensor, Any]]]:
    micro_batch, row_1t, task, kept = next(items)
    config: Any = model.config
    output = model(
        micro_batch.token_1t,
        micro_batch.position_1t,
        None,
        labels=micro_batch.target_1t,
        loss_mask=row_1t,
        row_loss=task.row_loss,
        kept=kept,
        padding_mask=micro_batch.number_1t,
        packed_seq_params=PackedRow.of(
            micro_batch.lengths,
            micro_batch.cumulative_lengths,
            micro_batch.position_1t[0],
            ranks=config.context_parallel_size,
        ),
    )
    return output, task.finish


def _collect(answer: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    return answer[0].sum(), no_tokens(), answer
