"""The second benchmark: the logits are given; log-prob and entropy of every token, and the gradient of the logits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from head.contenders import Contender
from head.peers import needs_one_rank, separate_entropy, verl_module
from head.problem import DTYPES, LOGIT_DEVIATION, Shape


@dataclass(frozen=True)
class LogitsProblem:
    """Inputs on this rank: its columns of the logits, and a loss that is linear in the log-prob."""

    logits_tv: Tensor
    targets_t: Tensor
    coefficient_t: Tensor
    group: dist.ProcessGroup | None

    def first(self, tokens: int) -> LogitsProblem:
        """The same work on fewer tokens."""
        return replace(
            self,
            logits_tv=self.logits_tv[:tokens],
            targets_t=self.targets_t[:tokens],
            coefficient_t=self.coefficient_t[:tokens],
        )


def _columns(shape: Shape, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(1 + rank)
    logits_tv = torch.randn(shape.tokens, shape.vocabulary // shape.tensor, generator=generator)
    return logits_tv.mul_(LOGIT_DEVIATION).to(shape.device, DTYPES[shape.dtype])


def build(shape: Shape, rank: int) -> LogitsProblem:
    """The inputs of `rank`."""
    generator = torch.Generator().manual_seed(0)
    targets_t = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator)
    coefficient_t = torch.randn(shape.tokens, generator=generator)
    group = dist.group.WORLD if shape.tensor > 1 else None
    return LogitsProblem(_columns(shape, rank), targets_t.to(shape.device), coefficient_t.to(shape.device), group)


def reference(shape: Shape, rank: int) -> dict[str, Tensor]:
    """What every contender should find: plain torch in float64, unsharded."""
    problem = build(shape, rank)
    logits_tv = torch.cat([_columns(shape, other) for other in range(shape.tensor)], 1).double().requires_grad_()
    log_p_tv = logits_tv.log_softmax(1)
    logprob_t = log_p_tv.gather(1, problem.targets_t[:, None])[:, 0]
    gradient_tv = torch.autograd.grad((problem.coefficient_t * logprob_t).sum(), logits_tv, retain_graph=True)[0]
    return {
        "logprob": logprob_t.detach(),
        "entropy": -(log_p_tv.exp() * log_p_tv).sum(1).detach(),
        "logits gradient": gradient_tv.chunk(shape.tensor, 1)[rank],
    }


class LogitsContender(Contender):
    """From logits: `statistics` gives log-prob, differentiable, and entropy."""

    def statistics(self, problem: LogitsProblem, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def phases(self, problem: LogitsProblem) -> dict[str, Callable[[], Any]]:
        # Some peers overwrite what they are given: everybody has logits of its own, made before the clock starts.
        logits_tv = problem.logits_tv.clone().requires_grad_()

        def forward_and_backward() -> tuple[Tensor, ...]:
            logprob_t, entropy_t = self.statistics(problem, logits_tv)
            loss = (problem.coefficient_t * logprob_t).sum()
            return logprob_t.detach(), entropy_t.detach(), *torch.autograd.grad(loss, logits_tv)

        return {"forward and backward": forward_and_backward}

    def results(self, problem: LogitsProblem) -> dict[str, Tensor]:
        found = self.phases(problem)["forward and backward"]()
        return dict(zip(("logprob", "entropy", "logits gradient"), found, strict=True))


class Copy(LogitsContender):
    """The least there is to do: read the logits once, write their gradient once."""

    key, label = "floor", "floor: one copy of the logits"

    def phases(self, problem: LogitsProblem) -> dict[str, Callable[[], Any]]:
        return {"forward and backward": problem.logits_tv.clone}

    def results(self, problem: LogitsProblem) -> dict[str, Tensor]:
        return {}


class Ours(LogitsContender):
    key, label = "ours", "megatron-fork"

    def statistics(self, problem: LogitsProblem, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        from megatron_fork.vocab_parallel import token_statistics

        statistics = token_statistics(logits_tv, problem.targets_t, group=problem.group)
        return statistics.logprob, statistics.entropy


class Megatron(LogitsContender):
    """The cross-entropy turns float32 logits into their gradient in place, so that it needs no memory of its own."""

    key, label = "megatron", "Megatron cross-entropy + entropy pass"

    def statistics(self, problem: LogitsProblem, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits_tv = logits_tv.float()
        entropy_t = separate_entropy(logits_tv.detach(), problem.group)
        return -vocab_parallel_cross_entropy(logits_tv, problem.targets_t), entropy_t


class Verl(LogitsContender):
    key, label = "verl", "verl, unfused"

    def statistics(self, problem: LogitsProblem, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        verl = verl_module("utils.megatron.tensor_parallel")
        logits_tv = logits_tv.float()
        copy_tv = logits_tv.clone()
        with torch.no_grad():
            entropy_t = verl.vocab_parallel_entropy(logits_tv)
        return verl.vocab_parallel_log_probs_from_logits(copy_tv, problem.targets_t), entropy_t


class Trl(LogitsContender):
    key, label = "trl", "TRL, unfused"

    def statistics(self, problem: LogitsProblem, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        needs_one_rank(problem.group, "TRL")
        utilities = importlib.import_module("trl.trainer.utils")
        return utilities.selective_log_softmax_and_entropy(logits_tv, problem.targets_t, entropy_requires_grad=False)


def contenders() -> list[Contender]:
    """All of them, in the order of the table."""
    return [Copy(), Ours(), Megatron(), Verl(), Trl()]
