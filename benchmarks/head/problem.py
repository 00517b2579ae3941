"""The work: log-prob and entropy of every token, then the gradients of a loss over the tokens that count.

Logits have a standard deviation of 3, so that the distributions are neither flat nor certain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

RESULTS = ("logprob", "entropy", "hidden gradient", "weight gradient")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOGIT_DEVIATION = 3.0


@dataclass(frozen=True)
class Shape:
    """One case of the benchmark; `tensor` ranks share the vocabulary. Width 0: the logits are given."""

    tokens: int
    width: int
    vocabulary: int
    dtype: str
    share: float = 1.0
    tensor: int = 1
    device: str = "cpu"

    def small(self) -> Shape:
        """The shape at which results are compared and kernels are warmed up."""
        return replace(self, tokens=96, width=min(self.width, 128), vocabulary=2_000 * self.tensor)

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.head}"

    @property
    def head(self) -> str:
        """All but the tokens, in words."""
        width = f"width {self.width:,}, " if self.width else "logits given, "
        ranks = "1 rank" if self.tensor == 1 else f"{self.tensor} tensor-parallel ranks"
        return f"{width}vocabulary {self.vocabulary:,}, {self.dtype}, {ranks}, {self.share:.0%} of the tokens count"


@dataclass(frozen=True)
class Problem:
    """Inputs on this rank. `coefficient_t` is zero but at `rows_r`; `weight_vd` is this rank's shard."""

    hidden_td: Tensor
    weight_vd: Tensor
    targets_t: Tensor
    coefficient_t: Tensor
    rows_r: Tensor
    group: dist.ProcessGroup | None

    @property
    def all_count(self) -> bool:
        return self.rows_r.numel() == self.targets_t.numel()

    def only_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, targets and coefficients of the tokens that count: for a peer that is handed the rows."""
        if self.all_count:
            return self.hidden_td, self.targets_t, self.coefficient_t
        return self.hidden_td[self.rows_r], self.targets_t[self.rows_r], self.coefficient_t[self.rows_r]

    def first(self, tokens: int) -> Problem:
        """The same work on fewer tokens."""
        return replace(
            self,
            hidden_td=self.hidden_td[:tokens],
            targets_t=self.targets_t[:tokens],
            coefficient_t=self.coefficient_t[:tokens],
            rows_r=self.rows_r[self.rows_r < tokens],
        )

    def gradients(self, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Gradients of the scalar `loss(hidden, weight)` for the whole hidden states and this rank's weight."""
        hidden_td, weight_vd = self.hidden_td.detach().requires_grad_(), self.weight_vd.detach().requires_grad_()
        hidden_gradient_td, weight_gradient_vd = torch.autograd.grad(loss(hidden_td, weight_vd), (hidden_td, weight_vd))
        return hidden_gradient_td, weight_gradient_vd


def weight_shard(shape: Shape, rank: int) -> Tensor:
    """Rank `rank`'s rows of the LM head, the same whoever asks."""
    # Drawn where they stay: a CPU takes seconds to draw the weights of one head.
    generator = torch.Generator(shape.device).manual_seed(1 + rank)
    size = (shape.vocabulary // shape.tensor, shape.width)
    shard_vd = torch.randn(size, generator=generator, device=shape.device)
    return shard_vd.mul_(LOGIT_DEVIATION / shape.width**0.5).to(shape.device, DTYPES[shape.dtype])


def build(shape: Shape, rank: int) -> Problem:
    """The inputs of `rank`; what is not sharded is equal on all ranks."""
    generator = torch.Generator().manual_seed(0)
    hidden_td = torch.randn(shape.tokens, shape.width, generator=generator)
    targets_t = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator)
    count = round(shape.share * shape.tokens)
    rows_r = torch.randperm(shape.tokens, generator=generator)[:count].sort().values
    coefficient_t = torch.zeros(shape.tokens)
    coefficient_t[rows_r] = torch.randn(count, generator=generator)
    return Problem(
        hidden_td.to(shape.device, DTYPES[shape.dtype]),
        weight_shard(shape, rank),
        targets_t.to(shape.device),
        coefficient_t.to(shape.device),
        rows_r.to(shape.device),
        dist.group.WORLD if shape.tensor > 1 else None,
    )


def reference(shape: Shape, rank: int) -> dict[str, Tensor]:
    """What every contender should find, the gradient of this rank's weight included: plain torch in float64, unsharded."""
    problem = build(shape, rank)
    hidden_td = problem.hidden_td.double().requires_grad_()
    weight_vd = torch.cat([weight_shard(shape, other) for other in range(shape.tensor)]).double().requires_grad_()
    log_p_tv = (hidden_td @ weight_vd.T).log_softmax(1)
    logprob_t = log_p_tv.gather(1, problem.targets_t[:, None])[:, 0]
    (problem.coefficient_t * logprob_t).sum().backward()
    assert hidden_td.grad is not None and weight_vd.grad is not None
    weight_gradient_vd = weight_vd.grad.chunk(shape.tensor)[rank]
    entropy_t = -(log_p_tv.exp() * log_p_tv).sum(1).detach()
    return dict(zip(RESULTS, (logprob_t.detach(), entropy_t, hidden_td.grad, weight_gradient_vd), strict=True))
