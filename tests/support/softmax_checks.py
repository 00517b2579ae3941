"""What must hold of log-prob, entropy and LM head on any shard, as checks that raise AssertionError.

The reference is torch's own log_softmax of the whole vocabulary in float64, with autograd's gradients. Every rank makes the
same problem from the same seed and compares its own shard, so that the checks run under any group.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_fork.vocab_parallel import TokenStatistics, lm_head_loss, lm_head_statistics, token_statistics

HALF = (torch.bfloat16, torch.float16)
# Relative rounding of the dtype in which a gradient is handed back.
ROUNDING = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
# Of sums over some hundred float32 (float64) columns whose logits are of the order of ten.
VALUES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


class Problem(NamedTuple):
    """A whole vocabulary; `shard` takes a rank's columns."""

    vocab_size: int
    columns: int
    temperature: float
    targets: Tensor
    logits: Tensor
    hidden: Tensor
    weight: Tensor
    rows: Tensor
    upstream: Tensor  # [2, tokens], of log-prob and entropy

    def shard(self, rank: int) -> slice:
        return slice(rank * self.columns, (rank + 1) * self.columns)


def make(seed: int, ranks: int, dtype: torch.dtype, *, tokens: int | None = None) -> Problem:
    """A random problem: any number of tokens and columns, padding within, at or beyond a rank's edge, odd logits."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = integer(1, 40) if tokens is None else tokens
    columns = integer(2, 90)
    vocab_size = max(2, ranks * columns - integer(0, columns + 3))
    logits = normal(tokens, ranks * columns) * (0.1, 1.0, 5.0)[integer(0, 2)]
    hidden, weight = normal(tokens, 16), normal(ranks * columns, 16) / 4
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator)
    kind = integer(0, 3)
    if kind == 1:
        # Columns that do not exist, among them sometimes a rank's all; never the target's.
        absent = torch.rand(tokens, ranks * columns, generator=generator) < 0.3
        absent[0, columns * (ranks - 1) :] = True
        absent.scatter_(1, targets[:, None], False)
        logits.masked_fill_(absent, -math.inf)
    elif kind == 2:
        logits += 1e3 if dtype != torch.float64 else 1e4  # far from 0, within float16
    rows = torch.randint(0, tokens, (integer(0, tokens),), generator=generator)
    if dtype in HALF:
        # Rows that occur twice are added up by autograd, in the dtype of the hidden states: nothing that the head decides.
        rows = torch.randperm(tokens, generator=generator)[: rows.numel()]
    return Problem(
        vocab_size,
        columns,
        (1.0, 0.7, 1.9)[integer(0, 2)],
        targets,
        logits.to(dtype),
        hidden.to(dtype),
        weight.to(dtype),
        rows,
        normal(2, tokens),
    )


def softmax(logits: Tensor, targets: Tensor, problem: Problem) -> TokenStatistics:
    """In float64 over the whole vocabulary, by torch's own log_softmax."""
    log_p = (logits[..., : problem.vocab_size] / problem.temperature).log_softmax(-1)
    finite = log_p > -math.inf
    entropy = -torch.where(finite, log_p.exp() * torch.where(finite, log_p, 0.0), 0.0).sum(-1)
    return TokenStatistics(log_p.gather(-1, targets[..., None])[..., 0], entropy)


def row_loss(statistics: TokenStatistics, upstream: Tensor) -> Tensor:
    """A loss whose coefficients depend on the statistics, and on both of them."""
    upstream = upstream.to(statistics.logprob.dtype)
    return (statistics.logprob.sigmoid() * upstream[0] + statistics.entropy.square() * upstream[1]).sum()


def close(found: Tensor, expected: Tensor, relative: float, absolute: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=absolute)


def close_in_norm(found: Tensor, expected: Tensor, relative: float) -> None:
    """Of gradients that are sums of many terms: one element may be a difference of large ones."""
    error = float((found.double() - expected.double()).norm())
    assert error <= relative * float(expected.double().norm()) + 1e-12, error


def check_statistics(problem: Problem, group: dist.ProcessGroup | None) -> None:
    """`token_statistics`: values, gradients for every mix of upstream ones, float32 results, an untouched input."""
    rank = dist.get_rank(group) if group else 0
    dtype = problem.logits.dtype
    logits = problem.logits[:, problem.shard(rank)].clone().requires_grad_()
    before = logits.detach().clone()
    options = {"group": group, "temperature": problem.temperature, "vocab_size": problem.vocab_size}
    found = token_statistics(logits, problem.targets, **options)
    assert found.logprob.dtype == found.entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    leaf = problem.logits.double().clone().requires_grad_()
    expected = softmax(leaf, problem.targets, problem)
    # Logits of 1e3 in float32 are known to 2^-14, but their differences exactly.
    tolerance = VALUES[dtype] * (20 if problem.logits.double().abs().nan_to_num(posinf=0).max() > 500 else 1)
    close(found.logprob, expected.logprob, tolerance, tolerance)
    close(found.entropy, expected.entropy, tolerance, tolerance)
    # Backward has log Z itself: at 1,430 (1e3 over the lowest temperature) known to 2^-13, times ln p + H of up to ten.
    of_gradient = tolerance * (5 if tolerance > VALUES[dtype] else 1)
    mixes = [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)]
    for of_logprob, of_entropy in mixes:
        (of_all,) = torch.autograd.grad(
            _mixed(expected, problem.upstream, of_logprob, of_entropy), leaf, retain_graph=True
        )
        (of_shard,) = torch.autograd.grad(
            _mixed(found, problem.upstream, of_logprob, of_entropy), logits, retain_graph=True
        )
        assert of_shard.dtype == dtype
        close(of_shard, of_all[:, problem.shard(rank)], max(ROUNDING[dtype], of_gradient), of_gradient + 2.0**-23)
    assert torch.equal(logits, before), "the input was modified"


def _mixed(statistics: TokenStatistics, upstream: Tensor, of_logprob: float, of_entropy: float) -> Tensor:
    upstream = upstream.to(statistics.logprob.dtype)
    parts = []
    if of_logprob:
        parts.append((statistics.logprob * upstream[0]).sum() * of_logprob)
    if of_entropy:
        parts.append((statistics.entropy * upstream[1]).sum() * of_entropy)
    return torch.stack(parts).sum()


def check_head(problem: Problem, group: dist.ProcessGroup | None, chunk_tokens: int | None = 7) -> None:
    """`lm_head_statistics` and `lm_head_loss` at some rows (in any order, repeated): values, d_hidden, d_weight."""
    rank = dist.get_rank(group) if group else 0
    dtype = problem.hidden.dtype
    rows, targets = problem.rows, problem.targets
    hidden_leaf, weight_leaf = (
        problem.hidden.double().clone().requires_grad_(),
        problem.weight.double().clone().requires_grad_(),
    )
    expected = softmax(hidden_leaf[rows] @ weight_leaf.T, targets[rows], problem)
    upstream = problem.upstream[:, rows]
    expected_loss = row_loss(expected, upstream)
    d_hidden, d_weight = torch.autograd.grad(expected_loss, (hidden_leaf, weight_leaf))
    tolerance = VALUES[dtype]
    in_norm = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 0.003)
    problems = []
    for fused in (False, True):
        hidden = problem.hidden.clone().requires_grad_()
        weight = problem.weight[problem.shard(rank)].clone().requires_grad_()
        options = {
            "rows": rows,
            "group": group,
            "temperature": problem.temperature,
            "vocab_size": problem.vocab_size,
            "chunk_tokens": chunk_tokens,
        }
        if fused:
            loss, sums = lm_head_loss(
                hidden,
                weight,
                targets,
                lambda part, place: (row_loss(part, upstream[:, place]), {"entropy": part.entropy.detach().sum()}),
                **options,
            )
            values = [(sums["entropy"], expected.entropy.sum())]
        else:
            found = lm_head_statistics(hidden, weight, targets, **options)
            loss = row_loss(found, upstream)
            values = list(zip(found, expected, strict=True))
        (2.0 * loss).backward()
        problems.append((loss, values, hidden.grad, weight.grad, _of_every_rank(hidden.grad, group)))
    # Only now, since a rank that stops at an assertion leaves the others' collectives waiting.
    for loss, values, of_hidden, of_weight, everyone in problems:
        for value, wanted in values:
            close(value, wanted, tolerance, tolerance * (1 if value.dim() else max(1, rows.numel())))
        close(loss, expected_loss, 10 * tolerance, 10 * tolerance * max(1, rows.numel()))
        assert of_hidden.dtype == of_weight.dtype == dtype
        close_in_norm(of_hidden, 2 * d_hidden, in_norm)
        close_in_norm(of_weight, 2 * d_weight[problem.shard(rank)], in_norm)
        assert all(torch.equal(other, of_hidden) for other in everyone), "ranks disagree on d_hidden"


def _of_every_rank(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    if group is None:
        return [tensor]
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, tensor, group=group)
    return everyone
