"""The way that the LM head goes on a GPU gives the results of a float64 softmax, whatever the tiles, chunks and streams.

It is the same code, told that it is on a GPU: half-precision operands, sums in float32, the gradient in the logits' memory, two
buffers, and work beside the products that is done as late as it may be. Only cuBLAS and the streams themselves are missing.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support import softmax_checks
from support.late import LateLane
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, fused_loss, kept, lm_head
from megatron_fork.vocab_parallel import head as head_module
from megatron_fork.vocab_parallel.overlap import SameLane
from megatron_fork.vocab_parallel.tile import TorchKernels

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
    # Half precision rounds the gradient of the logits, and what is handed back, each by up to 2^-9 of an element (2^-12 in
    # float16); where the sum over the vocabulary cancels, the first is more of what is left.
    in_norm = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[case.dtype]
    # Where a target is all but certain its gradient is what 1 - p leaves of float32 (and float16's smallest number is 2^-24).
    absolute = (1e-11 if case.dtype == torch.float64 else 2e-6) * max(1.0, abs(case.upstream))
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


@pytest.mark.parametrize("chunk_tokens", [None, 2])
def test_gradcheck_and_a_second_backward(chunk_tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check runs backward again and again on one graph: from the second time on the logits are computed anew."""
    case = Case(tokens=5, chosen=3, columns=24, dtype=torch.float64, chunk_tokens=chunk_tokens, tile_columns=8)
    words: dict[str, Any] = {"vocab_size": 21, "chunk_tokens": chunk_tokens, "config": case.as_on_a_gpu(monkeypatch)}
    hidden, weight, targets, rows = case.inputs()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_loss.lm_head_loss(hidden, weight, targets, case.loss, rows=rows, **words)[0]

    inputs = (hidden[:, :4].clone().requires_grad_(), weight[:, :4].clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, nondet_tol=1e-12)


def overwritten_too_early(sums: head_module.Sums, *words: Any) -> Callable[[], Any]:
    ADD(sums, *words)
    return lambda: None


ADD = head_module.Sums.add


@pytest.mark.parametrize(
    "bug", ["two buffers are not waited for", "sums of a chunk overwrite those of the last", "none"]
)
def test_seeded_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(chunk_tokens=5)
    config = case.as_on_a_gpu(monkeypatch)
    if bug.startswith("two"):
        monkeypatch.setattr(head_module.Sums, "add", overwritten_too_early)
    elif bug.startswith("sums"):
        monkeypatch.setattr(
            head_module.Head, "add_product", lambda self, total, left, right: self.multiply(left, right, total)
        )
    if bug == "none":
        check(case, config)
        return
    with pytest.raises(AssertionError):
        check(case, config)


@given(start=st.integers(0, 5000), width=st.integers(1, 70_000))
def test_a_piece_of_the_gradient_lies_over_logits_that_are_done(start: int, width: int) -> None:
    pieces = list(kept._doubling(slice(start, start + width)))
    assert [piece.stop for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]]
    assert (pieces[0].start, pieces[-1].stop) == (start, start + width)
    for piece in pieces:
        # The first goes by memory of its own.
        assert piece.stop <= 2 * piece.start or (piece.start == 0 and piece.stop <= kept._FIRST_COLUMNS)


@pytest.mark.parametrize("fused", [True, False])
def test_one_wait_for_the_device_in_a_call(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(chunk_tokens=5)
    config = case.as_on_a_gpu(monkeypatch)
    waits, sweeps = 0, 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal waits
            waits += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*args, **(kwargs or {}))

    sweep = TorchKernels.sweep

    def counted(*words: Any) -> Tensor:
        nonlocal sweeps
        sweeps += 1
        return sweep(*words)

    monkeypatch.setattr(TorchKernels, "sweep", counted)
    with Count():
        found(case, config, fused=fused)
    # The kernels in torch wait once a sweep, on a CPU only; the test itself looks at the number of rows.
    assert waits - sweeps - int(fused) == 1


@pytest.mark.parametrize("chunk_tokens", [None, 5])
def test_bad_input_is_told_in_backward(chunk_tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once everything has been queued; without gradients, in the call."""
    case = Case()
    words: dict[str, Any] = {"chunk_tokens": chunk_tokens, "config": case.as_on_a_gpu(monkeypatch), "vocab_size": 87}
    hidden, weight, targets, rows = case.inputs()
    hidden[int(rows[3])] = torch.nan
    hidden.requires_grad_()
    loss, _ = fused_loss.lm_head_loss(hidden, weight, targets, case.loss, rows=rows, **words)
    with pytest.raises(StatisticsError, match=rf"token {int(rows[3])} hold NaN"):
        loss.backward()
    targets[int(rows[1])] = 88
    with torch.no_grad(), pytest.raises(StatisticsError, match=rf"target 88 of token {int(rows[1])} is outside"):
        fused_loss.lm_head_loss(hidden, weight, targets, case.loss, rows=rows, **words)


def test_the_gradient_of_the_logits_is_not_rounded_with_an_fp32_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are the same either way, as logits never are rounded; what the option buys is the gradient's last bits."""
    errors, losses = {}, {}
    for wide in (False, True):
        case = Case(tokens=64, chosen=64, columns=300, tile_columns=64, into_buffer=True, fp32_head=wide)
        config = case.as_on_a_gpu(monkeypatch)
        _, _, expected = reference(case)
        losses[wide], _, d_weight = found(case, config, fused=True)
        errors[wide] = float((d_weight - expected).norm() / expected.norm())
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-5, atol=0.0)
    assert errors[True] < 1e-6 < 1e-3 < errors[False] < 4e-3, errors


def peak_bytes(work: Callable[[], None]) -> int:
    """The most that `work` holds at a time of what it allocates."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    return max(held)


@pytest.mark.parametrize("tokens", [600, 1200, 2400])
def test_peak_does_not_grow_with_the_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside inputs, results and a few numbers a row, what lives is bounded by `chunk_mib`, with rows in plenty."""
    case = Case(tokens=tokens, chosen=tokens, columns=4096, tile_columns=512, first_columns=64)
    config = dataclasses.replace(case.as_on_a_gpu(monkeypatch), chunk_mib=4)
    hidden, weight, targets, _ = case.inputs()
    hidden.requires_grad_(), weight.requires_grad_()

    def work() -> None:
        fused_loss.lm_head_loss(hidden, weight, targets, case.loss, config=config)[0].backward()

    # Both gradients in float32 and in half precision; statistics, coefficients and what the loss makes of them.
    results = (tokens + case.columns) * WIDTH * (4 + 2) + tokens * 16 * 8
    assert peak_bytes(work) - results < 6 * 2**20


def on_this_world(seeds: range) -> None:
    """The checks of the head on vocabulary shards, in precisions whose rounding they know."""
    for seed in seeds:
        for dtype in (torch.float64, torch.float32):
            case = Case(dtype=dtype, tile_columns=8, late=seed % 2 == 0)
            with pytest.MonkeyPatch.context() as monkeypatch:
                case.as_on_a_gpu(monkeypatch)
                problem = softmax_checks.make(seed, dist.get_world_size(), dtype)
                softmax_checks.check_head(problem, dist.group.WORLD, (None, 1, 7)[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_on_ranks(ranks: int) -> None:
    run_on_ranks(on_this_world, ranks, range(6))
