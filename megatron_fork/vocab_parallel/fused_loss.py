"""A loss computed from hidden states, whose gradients are formed from logits that still exist: three products, not four.

If a token's loss depends only on that token's statistics, its coefficients are known as soon as the statistics are.
Design: a chunk of rows keeps its logits over all the shard's columns, one collective of four floats per token completes
its statistics, and the loss is evaluated on them. The last chunk, on a GPU mostly the only one, keeps its logits until
backward: only there is the upstream scalar known, and it enters the rows' coefficients, so that each product goes to
the place where it is wanted: d_weight to Megatron's buffer, with no sweep of its own. Chunks before it form their
gradients at once; d_weight is summed in float32 by products that add to it, and backward multiplies it by the upstream
scalar.

Bytes moved on a GPU for R rows, V columns, width D, bfloat16, n chunks, besides the operands of the products:

    logits        4 R V written by the product, read by the sweep, read for the gradient; 2 R V written (`kept`)
    d_weight      2 V D written (one chunk, autograd's); 8 V D read and written (one chunk, `main_grad`), and 2 V D of
                  zeros that autograd makes for itself beside `main_grad`
                  more chunks: 4 V D + 8 V D (n - 1), and 12 V D to multiply and add (`main_grad`; 14 V D for autograd)
    d_hidden      8 R D for every tile of 32,768 columns

docs/lm-head.md counts them for the heads of Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.vocab_parallel.config import VocabParallelConfig
from megatron_fork.vocab_parallel.free_memory import logits_bytes
from megatron_fork.vocab_parallel.head import Coefficients, Head
from megatron_fork.vocab_parallel.kept import KeptLogits
from megatron_fork.vocab_parallel.lm_head import ChosenRows, chunks_of, head_of, recomputed_gradients, shard_sums
from megatron_fork.vocab_parallel.overlap import sent_to_host
from megatron_fork.vocab_parallel.shard import TokenStatistics, bad_tokens, over_ranks, refuse_bad, statistics_of
from megatron_fork.vocab_parallel.weight_gradient import WeightGradient

# From the statistics of some of the chosen rows, and their slice of the row order, to their part of the loss and to detached
# sums: the parts add up to the whole.
RowLoss = Callable[[TokenStatistics, slice], tuple[Tensor, dict[str, Tensor]]]


def lm_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: RowLoss,
    *,
    rows: Tensor | None = None,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    config: VocabParallelConfig | None = None,
    weight_gradient: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `loss` over chunks of the chosen rows, differentiable in `hidden` and `weight`, and its other sums.

    Args:
        hidden: `[tokens, d]`; see `lm_head_statistics` for this and the following arguments.
        weight: `[vocab/tp, d]`.
        targets: `[tokens]` int64.
        loss: additive over tokens; see `RowLoss`. It is called on every rank of `group` with the same statistics; if no row
            is chosen, it is called once without any.
        rows: the tokens to compute.
        group: ranks that share the vocabulary.
        temperature: of the softmax.
        vocab_size: without the padding.
        chunk_tokens: rows whose logits exist at a time, by default as many as fit in `config.chunk_mib`.
        config: kernels and memory.
        weight_gradient: where d_weight is added in backward.

    Raises:
        StatisticsError: as `lm_head_statistics`; on a GPU in backward, so that it need not be waited for before.

    """
    chosen = ChosenRows.of(hidden, weight, targets, rows)
    config = config or VocabParallelConfig()
    head = head_of(weight, vocab_size, group, temperature, config)
    if chunk_tokens is None:
        chunk_tokens = head.row_tokens(logits_bytes(config, weight.device, group))
    work = _Work(head, loss, chunks_of(chosen.targets.numel(), max(1, chunk_tokens)) or [slice(0, 0)], chosen)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        total = _LmHeadLoss.apply(chosen.hidden, weight, work, weight_gradient)
    else:
        total = work.forward(chosen.hidden, weight, keep=False, with_weight=False)
    return total, work.sums


class _Work:
    """The work of one call over its chunks of rows: the sums, and what backward needs.

    With `keep`, the last chunk keeps its logits; the gradients of those before it are formed at once, and d_weight is
    summed in float32.
    """

    def __init__(self, head: Head, loss: RowLoss, chunks: list[slice], chosen: ChosenRows) -> None:
        self.head, self.chunks, self.chosen = head, chunks, chosen
        self.sums: dict[str, Tensor] = {}
        self._loss = loss
        self._kept: KeptLogits | None = None
        self._of_chunks: list[Coefficients] = []
        self._d_hidden_td: Tensor | None = None
        self._sum_vd: Tensor | None = None
        self._is_bad: Callable[[], bool] | None = None
        self._found: list[TokenStatistics] = []

    def forward(self, hidden_td: Tensor, weight_vd: Tensor, *, keep: bool, with_weight: bool) -> Tensor:
        """The loss."""
        head = self.head
        total = torch.zeros((), dtype=head.sum_dtype, device=hidden_td.device)
        found = self._found
        for chunk in self.chunks:
            targets_c = self.chosen.targets[chunk]
            if keep:
                self._kept = KeptLogits(head, head.operand(hidden_td[chunk], "hidden"), targets_c)
                partial_4c = self._kept.partial_4c
            else:
                tokens = chunk.stop - chunk.start
                partial_4c = shard_sums(
                    head, hidden_td[chunk], targets_c, [slice(0, tokens)], head.kept_columns(tokens)
                )
            log_z_c, *values = statistics_of(over_ranks(partial_4c, head.shard))
            found.append(TokenStatistics(*values))
            if not head.on_gpu:
                self._refuse(found[-1:], chunk)
            part, of_logprob_c, of_entropy_c = self._evaluate(found[-1], chunk)
            total += part
            if keep:
                self._of_chunks.append(Coefficients(log_z_c, found[-1].entropy, of_logprob_c, of_entropy_c))
            if keep and chunk is not self.chunks[-1]:
                self._form(chunk, hidden_td, self._of_chunks[-1], self._early_sum(hidden_td, weight_vd, with_weight))
        if head.on_gpu:
            bad = [
                bad_tokens(each, self.chosen.targets[rows], head.shard)
                for each, rows in zip(found, self.chunks, strict=True)
            ]
            self._is_bad = sent_to_host(torch.cat(bad).any())
        if not keep:
            self.check()
        return total

    def check(self) -> None:
        """Refuse what is bad on a GPU: one wait a call, for statistics that are there before what has been queued since."""
        if self._is_bad is not None and self._is_bad():
            self._refuse(self._found, slice(0, self.chunks[-1].stop))
        self._is_bad = None

    def _refuse(self, found: list[TokenStatistics], rows: slice) -> None:
        statistics = TokenStatistics(*(torch.cat(column) for column in zip(*found, strict=True)))
        tokens = torch.arange(rows.start, rows.stop) if self.chosen.tokens is None else self.chosen.tokens[rows]
        refuse_bad(statistics, self.chosen.targets[rows], self.head.shard, tokens)

    def _evaluate(self, statistics: TokenStatistics, chunk: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss, d loss / d log-prob, d loss / d entropy) of one chunk; None if the entropy has no gradient."""
        with torch.enable_grad():
            leaves = TokenStatistics(*(each.detach().requires_grad_() for each in statistics))
            part, sums = self._loss(leaves, chunk)
            of_logprob_c, of_entropy_c = (
                torch.autograd.grad(part, tuple(leaves), allow_unused=True) if part.requires_grad else (None, None)
            )
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if of_logprob_c is None:
            of_logprob_c = torch.zeros_like(statistics.logprob)
        return part.detach(), of_logprob_c, of_entropy_c

    def _early_sum(self, hidden_td: Tensor, weight_vd: Tensor, with_weight: bool) -> WeightGradient | None:
        """Where the gradients of a chunk that does not wait for backward are summed."""
        if self._d_hidden_td is None:
            self._d_hidden_td = torch.empty(hidden_td.shape, dtype=self.head.sum_dtype, device=hidden_td.device)
        if not with_weight:
            return None
        if self._sum_vd is not None:
            return WeightGradient(self.head, weight_vd, None, self._sum_vd)
        self._sum_vd = torch.empty(weight_vd.shape, dtype=self.head.sum_dtype, device=weight_vd.device)
        self._sum_vd[self.head.shard.columns :] = 0.0
        return WeightGradient(self.head, weight_vd, None, self._sum_vd, is_new=True)

    def _form(
        self, chunk: slice, hidden_td: Tensor, coefficients: Coefficients, d_weight: WeightGradient | None
    ) -> None:
        """Turn the kept logits into their gradient: the chunk's rows of d_hidden, and a summand of d_weight."""
        assert self._kept is not None and self._d_hidden_td is not None
        head, d_hidden_cd = self.head, self._d_hidden_td[chunk]
        hidden_cd = head.operand(hidden_td[chunk], "hidden")
        if not self._kept.tiles:
            d_hidden_cd.zero_()
        for tile, gradient_ck in self._kept.gradients(coefficients):
            weight_kd = head.operand(head.weight_vd[tile], "weight")
            if tile.start == 0:
                head.multiply(gradient_ck, weight_kd, d_hidden_cd)
            else:
                head.add_product(d_hidden_cd, gradient_ck, weight_kd)
            if d_weight is not None:
                of_tile = d_weight.tile(tile, 1)
                of_tile.add(gradient_ck, hidden_cd)
                of_tile.finish()
        self._kept = None

    def backward(
        self, hidden_td: Tensor, weight_vd: Tensor, upstream: Tensor, buffer_vd: Tensor | None, *, with_weight: bool
    ) -> tuple[Tensor, WeightGradient | None]:
        """d_hidden, this rank's part of it, in the dtype of the sums, and d_weight."""
        if self._kept is None:
            return self._again(hidden_td, weight_vd, upstream, buffer_vd, with_weight=with_weight)
        last, sum_vd = self.chunks[-1], self._sum_vd
        if self._d_hidden_td is None:
            self._d_hidden_td = torch.empty(hidden_td.shape, dtype=self.head.sum_dtype, device=hidden_td.device)
        else:
            self._d_hidden_td[: last.start].mul_(upstream)
        if sum_vd is not None and buffer_vd is not None:
            buffer_vd.addcmul_(sum_vd, upstream)
        elif sum_vd is not None and (self.head.on_gpu or upstream != 1.0):
            sum_vd.mul_(upstream)
        d_weight = WeightGradient(self.head, weight_vd, buffer_vd, sum_vd) if with_weight else None
        self._form(last, hidden_td, self._of_chunks[-1].times(upstream), d_weight)
        d_hidden_td = self._d_hidden_td
        # No reference is kept: a gradient that nothing else references becomes `weight.grad` without a copy.
        self._d_hidden_td = self._sum_vd = None
        self.head.scratch.clear()
        return d_hidden_td, d_weight

    def _again(
        self, hidden_td: Tensor, weight_vd: Tensor, upstream: Tensor, buffer_vd: Tensor | None, *, with_weight: bool
    ) -> tuple[Tensor, WeightGradient | None]:
        """Backward after another: the first one has overwritten the logits, which are computed anew."""
        d_weight = WeightGradient(self.head, weight_vd, buffer_vd) if with_weight else None
        d_hidden_td = recomputed_gradients(
            self.head,
            hidden_td,
            self.chosen.targets,
            Coefficients.joined(self._of_chunks).times(upstream),
            d_weight,
            chunks=self.chunks if hidden_td.shape[0] else [],
            columns=self.head.kept_columns(hidden_td.shape[0]),
        )
        self.head.scratch.clear()
        return d_hidden_td, d_weight


class _LmHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_td: Tensor, weight_vd: Tensor, work: _Work, weight_gradient_vd: Tensor | None
    ) -> Tensor:
        ctx.with_weight = ctx.needs_input_grad[1] or weight_gradient_vd is not None
        loss = work.forward(hidden_td, weight_vd, keep=True, with_weight=ctx.with_weight)
        ctx.save_for_backward(hidden_td, weight_vd)
        ctx.work, ctx.weight_gradient_vd = work, weight_gradient_vd
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_td, weight_vd = ctx.saved_tensors
        work: _Work = ctx.work
        d_hidden_td, d_weight = work.backward(
            hidden_td, weight_vd, upstream, ctx.weight_gradient_vd, with_weight=ctx.with_weight
        )
        collectives.all_reduce_sum(d_hidden_td, work.head.shard.group)
        work.check()
        return d_hidden_td.to(hidden_td.dtype), None if d_weight is None else d_weight.for_autograd(), None, None
