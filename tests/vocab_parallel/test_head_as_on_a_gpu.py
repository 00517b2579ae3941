"""The way that the LM head goes on a GPU gives the results of a float64 softmax, whatever the tiles, chunks and streams.

It is the same code, told that it is on a GPU: half-precision operands, sums in float32, the gradient in the logits' memory, two buffers,
and work beside the products that is done as late as it may be. Only cuBLAS and the streams themselves are missing.
"""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.late import LateLane
from torch import Tensor

from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, fused_loss, kept, lm_head
from megatron_fork.vocab_parallel import head as head_module
from megatron_fork.vocab_parallel.overlap import SameLane

WIDTH = 16
HEAD_OF = lm_head.head_of


@dataclasses.dataclass(frozen=True)
class Case:
    """What a GPU may be given; `late`: how late work beside the products is done."""

    tokens: int = 23
    columns: int = 90
    padding: int = 3
    chosen: int = 17
    dtype: torch.dtype = torch.bfloat16
    fp32_head: bool = False
    late: bool = True
    tile_columns: int = 16
    first_columns: int = 4
    chunk_tokens: int | None = None
    of_entropy: bool = True
    upstream: float = 1.0
    into_buffer: bool = False
    seed: int = 0

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states, weight, targets, rows."""
        generator = torch.Generator().manual_seed(self.seed)
        hidden = torch.randn(self.tokens, WIDTH, generator=generator, dtype=torch.float64)
        weight = torch.randn(self.columns, WIDTH, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, self.columns - self.padding, (self.tokens,), generator=generator)
        rows = torch.randperm(self.tokens, generator=generator)[: self.chosen]
        return hidden.to(self.dtype), weight.to(self.dtype), targets, rows

    def loss(self, statistics: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Additive over rows, with coefficients that depend on the statistics."""
        places = torch.arange(self.chosen, dtype=statistics.logprob.dtype)[place]
        total = ((1 + places.cos()) * statistics.logprob.sigmoid()).sum()
        if self.of_entropy:
            total = total + (places.sin() * statistics.entropy.square()).sum()
        return total, {"rows": torch.tensor(float(len(places)))}

    def as_on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> VocabParallelConfig:
        def head_of(weight: Tensor, *words: Any) -> head_module.Head:
            head = HEAD_OF(weight, *words)
            wide = self.fp32_head or self.dtype == torch.float64
            lane = LateLane() if self.late else SameLane()
            dtype = head.sum_dtype if wide else weight.dtype
            return dataclasses.replace(head, on_gpu=True, product_dtype=dtype, lane=lane)

        for module in (lm_head, fused_loss):
            monkeypatch.setattr(module, "head_of", head_of)
        monkeypatch.setattr(head_module, "_GPU_COLUMNS", 2 * self.tile_columns)
        monkeypatch.setattr(head_module, "_GPU_LEAST_COLUMNS", self.tile_columns)
        monkeypatch.setattr(kept, "_FIRST_COLUMNS", self.first_columns)
        return VocabParallelConfig(fp32_head=self.fp32_head)


def reference(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d_hidden, d_weight) by torch's own log_softmax in float64."""
    hidden, weight, targets, rows = case.inputs()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_p = (hidden[rows] @ weight[: case.columns - case.padding].T / 0.8).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    logprob = log_p.gather(1, targets[rows, None])[:, 0]
    loss, _ = case.loss(TokenStatistics(logprob, entropy), slice(0, case.chosen))
    d_hidden, d_weight = torch.autograd.grad(case.upstream * loss, (hidden, weight))
    return loss.detach(), d_hidden, d_weight


def found(case: Case, config: VocabParallelConfig, *, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, targets, rows = case.inputs()
    hidden.requires_grad_(), weight.requires_grad_()
    buffer = torch.full(weight.shape, 2.0) if case.into_buffer else None
    options: dict[str, Any] = {
        "rows": rows,
        "temperature": 0.8,
        "vocab_size": case.columns - case.padding,
        "chunk_tokens": case.chunk_tokens,
        "config": config,
        "weight_gradient": buffer,
    }
    if fused:
        loss, sums = fused_loss.lm_head_loss(hidden, weight, targets, case.loss, **options)
        assert sums["rows"] == case.chosen
    else:
        statistics = lm_head.lm_head_statistics(hidden, weight, targets, **options)
        loss, _ = case.loss(statistics, slice(0, case.chosen))
    (case.upstream * loss).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert torch.equal(hidden.detach(), case.inputs()[0]) and torch.equal(weight.detach(), case.inputs()[1])
    if buffer is not None:
        assert not weight.grad.any()
    return loss.detach(), hidden.grad, weight.grad if buffer is None else buffer - 2.0


def close_in_norm(result: Tensor, expected: Tensor, relative: float, absolute: float) -> None:
    assert result.shape == expected.shape
    error = float((result.double() - expected).norm())
    assert error <= relative * float(expected.norm()) + absolute * expected.numel() ** 0.5, error


def check(case: Case, config: VocabParallelConfig) -> None:
    # Half precision rounds the gradient of the logits, and what is handed back: twice 2^-9 (2^-12 for float16), at random.
    in_norm = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}[case.dtype]
    # Numbers of float16 end at 2^-24, and a gradient of logits is one of many summands.
    absolute = 2.0**-23 if case.dtype == torch.float16 else 1e-12
    expected_loss, *expected = reference(case)
    for fused in (True, False):
        loss, *gradients = found(case, config, fused=fused)
        tolerance = 1e-11 if case.dtype == torch.float64 else 2e-5
        torch.testing.assert_close(loss.double(), expected_loss, rtol=tolerance, atol=tolerance)
        for result, right in zip(gradients, expected, strict=True):
            close_in_norm(result, right, in_norm, absolute)


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 30),
    columns=st.integers(6, 150),
    padding=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    fp32_head=st.booleans(),
    late=st.booleans(),
    tile_columns=st.sampled_from([8, 16, 64]),
    first_columns=st.sampled_from([1, 4, 8]),
    chunk_tokens=st.sampled_from([None, 1, 5]),
    of_entropy=st.booleans(),
    upstream=st.sampled_from([1.0, 0.25, -3.3, 0.0]),
    into_buffer=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_float64(share: float, **words: Any) -> None:
    half = words["dtype"] in (torch.bfloat16, torch.float16)
    words["into_buffer"] &= half
    case = Case(chosen=round(share * words["tokens"]), **words)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check(case, case.as_on_a_gpu(monkeypatch))
