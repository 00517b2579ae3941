"""The peers, called as their own trainers call them; each imports its package when it is first asked.

Logits that a peer takes as given come from a plain product with Megatron's tensor-parallel copy, whose backward sums the
gradient of the hidden states over ranks, and are float32 as Megatron's last stage hands them out.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from head.contenders import Gradients, HeadContender, Statistics
from head.problem import Problem


def _logits(problem: Problem, hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
    from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

    return (copy_to_tensor_model_parallel_region(hidden_td) @ weight_vd.T).float()


def separate_entropy(logits_tv: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Entropy by a textbook pass of its own over the logits: megatron-core has none, its users write this one."""
    maximum_t = logits_tv.amax(1)
    if group is not None:
        dist.all_reduce(maximum_t, dist.ReduceOp.MAX, group)
    weight_tv = (logits_tv - maximum_t[:, None]).exp_()
    sum_t = weight_tv.sum(1)
    weighted_t = weight_tv.mul_(logits_tv).sum(1)
    for partial_t in (sum_t, weighted_t):
        if group is not None:
            dist.all_reduce(partial_t, group=group)
    return maximum_t + sum_t.log() - weighted_t / sum_t


class Megatron(HeadContender):
    """megatron-core's vocabulary-parallel cross-entropy, and an entropy pass before it, as it overwrites the logits."""

    key, label = "megatron", "Megatron cross-entropy + entropy pass"

    def statistics(self, problem: Problem) -> Statistics:
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits_tv = _logits(problem, problem.hidden_td, problem.weight_vd)
        entropy_t = separate_entropy(logits_tv, problem.group)
        return -vocab_parallel_cross_entropy(logits_tv, problem.targets_t), entropy_t

    def update(self, problem: Problem) -> Gradients:
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            logits_tv = _logits(problem, hidden_td, weight_vd)
            return -(problem.coefficient_t * vocab_parallel_cross_entropy(logits_tv, problem.targets_t)).sum()

        return problem.gradients(loss)


@functools.cache
def verl_module(name: str) -> Any:
    """Import `verl.NAME` without running `verl/__init__` and `verl/utils/__init__`, which start with Ray and tokenizers.

    The two packages stand in `sys.modules` as bare folders; every module in them is verl's own.
    """
    for package in ("verl", "verl.utils"):
        if package not in sys.modules:
            found = importlib.util.find_spec(package)
            if found is None or found.submodule_search_locations is None:
                raise ModuleNotFoundError(f"No module named '{package}'")
            module = types.ModuleType(package)
            module.__path__ = list(found.submodule_search_locations)
            sys.modules[package] = module
    return importlib.import_module(f"verl.{name}")


class Verl(HeadContender):
    """verl's unfused functions. It clones the logits before the entropy, as the cross-entropy after it needs them whole."""

    key, label = "verl", "verl, unfused"

    def statistics(self, problem: Problem) -> Statistics:
        verl = verl_module("utils.megatron.tensor_parallel")
        logits_tv = _logits(problem, problem.hidden_td, problem.weight_vd)
        copy_tv = logits_tv.clone()
        entropy_t = verl.vocab_parallel_entropy(logits_tv)
        return verl.vocab_parallel_log_probs_from_logits(copy_tv, problem.targets_t), entropy_t

    def update(self, problem: Problem) -> Gradients:
        verl = verl_module("utils.megatron.tensor_parallel")

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            logits_tv = _logits(problem, hidden_td, weight_vd)
            logprob_t = verl.vocab_parallel_log_probs_from_logits(logits_tv, problem.targets_t)
            return (problem.coefficient_t * logprob_t).sum()

        return problem.gradients(loss)


class _FusedPeer(HeadContender):
    """A peer's function from hidden states and weight to log-prob and entropy; `handed_rows` says what it is called on."""

    def __init__(self, *, handed_rows: bool = False) -> None:
        self.handed_rows = handed_rows
        if handed_rows:
            self.key, self.label = f"{self.key}-rows", f"{self.label}, handed the rows"

    def head(self, problem: Problem, hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, entropy: bool) -> Any:
        """The log-prob first, the entropy second if asked."""
        raise NotImplementedError

    def statistics(self, problem: Problem) -> Statistics:
        logprob_t, entropy_t, *_ = self.head(problem, problem.hidden_td, problem.weight_vd, problem.targets_t, True)
        return logprob_t, entropy_t

    def update(self, problem: Problem) -> Gradients:
        _, targets_r, coefficient_r = problem.only_rows()

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            if self.handed_rows:
                logprob_r = self.head(problem, hidden_td[problem.rows_r], weight_vd, targets_r, False)[0]
                return (coefficient_r * logprob_r).sum()
            logprob_t = self.head(problem, hidden_td, weight_vd, problem.targets_t, False)[0]
            return (problem.coefficient_t * logprob_t).sum()

        return problem.gradients(loss)


class VerlFused(_FusedPeer):
    """verl's Triton kernel. It leaves the sum of the hidden states' gradient over ranks to the layer below."""

    key, label = "verl-fused", "verl, fused"

    def head(self, problem: Problem, hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, entropy: bool) -> Any:
        from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

        kernel = verl_module("utils.kernel.linear_cross_entropy")
        hidden_td = copy_to_tensor_model_parallel_region(hidden_td)
        return kernel.linear_cross_entropy(hidden_td, weight_vd, targets_t, 1.0, "none", problem.group)


class Trl(HeadContender):
    """TRL's functions of given logits, in the model's dtype. On a GPU its kernel skips the rows that do not count."""

    key, label = "trl", "TRL, unfused"

    def statistics(self, problem: Problem) -> Statistics:
        needs_one_rank(problem.group, "TRL")
        utilities = importlib.import_module("trl.trainer.utils")
        logits_tv = problem.hidden_td @ problem.weight_vd.T
        return utilities.selective_log_softmax_and_entropy(logits_tv, problem.targets_t)

    def update(self, problem: Problem) -> Gradients:
        needs_one_rank(problem.group, "TRL")
        utilities = importlib.import_module("trl.trainer.utils")

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            logits_tv = hidden_td @ weight_vd.T
            counts_t = problem.coefficient_t != 0
            logprob_t = utilities.selective_log_softmax(logits_tv, problem.targets_t, row_mask=counts_t)
            return (problem.coefficient_t * logprob_t).sum()

        return problem.gradients(loss)


class TrlFused(_FusedPeer):
    """What TRL's GRPO trainer runs. It hands over the rows that count on a GPU, all of them elsewhere."""

    key, label = "trl-fused", "TRL, fused"
    _columns = 32_768  # as TRL calls it

    def head(self, problem: Problem, hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, entropy: bool) -> Any:
        needs_one_rank(problem.group, "TRL")
        function = importlib.import_module("trl.kernels").ChunkedLogProbFunction
        outputs = ("entropy",) if entropy else ()
        return function.apply(hidden_td, weight_vd, None, targets_t, 1.0, self._columns, None, 1.0, outputs)


class Liger(_FusedPeer):
    """Liger's fused linear layer and scaled cross-entropy with entropy, or its tensor-parallel form."""

    key, label = "liger", "Liger, fused"
    _ignored = -100

    def head(self, problem: Problem, hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, entropy: bool) -> Any:
        operators = importlib.import_module("liger_kernel.ops")
        words = (1.0, self._ignored, 1, entropy)
        if problem.group is None:
            found = operators.LigerFusedLinearScaledCrossEntropyFunction.apply(hidden_td, weight_vd, targets_t, *words)
        else:
            function = operators.LigerFusedLinearScaledCrossEntropyTPFunction
            found = function.apply(hidden_td, weight_vd, targets_t, problem.group, *words)
        return (-found[0], found[1]) if entropy else (-found,)


class LigerNative(_FusedPeer):
    """Liger's native kernel (`liger-cute-kernels`, Hopper and Blackwell): product and softmax in one, for bfloat16.

    It is made for tensor parallelism over NVSHMEM, whose memory is reserved once in a process, before the first call.
    """

    key, label = "liger-native", "Liger, native kernel"
    # Tokens, width and vocabulary of the largest case; the results are compared at a smaller one before.
    _largest, _columns = (32_768, 5120), 151_936
    _ignored = -100

    def head(self, problem: Problem, hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, entropy: bool) -> Any:
        if not hidden_td.is_cuda:
            raise NotImplementedError("Liger's native kernel needs a GPU")
        native = importlib.import_module("liger_kernel.ops.cute.fused_linear_scaled_cross_entropy_tp")
        if not native.is_available():
            raise NotImplementedError("liger-cute-kernels does not load")
        group = problem.group or dist.group.WORLD
        _reserve(self._largest, self._columns // dist.get_world_size(group))
        first = dist.get_rank(group) * len(weight_vd)
        function = native.LigerFusedLinearScaledCrossEntropyNativeTPFunction
        found = function.apply(hidden_td, weight_vd, targets_t, first, 1.0, self._ignored, 1, entropy, group)
        return (-found[0], found[1]) if entropy else (-found,)


@functools.cache
def _reserve(tokens_and_width: tuple[int, int], columns: int) -> None:
    configuration = importlib.import_module("liger_kernel.ops.configure")
    capacity = configuration.FusedLinearCrossEntropyConfig(*tokens_and_width, columns)
    if not configuration.configure(device=torch.device("cuda", torch.cuda.current_device()), flsce=capacity):
        raise NotImplementedError("Liger's native kernel does not know this GPU")


def needs_one_rank(group: dist.ProcessGroup | None, name: str) -> None:
    """Refuse for a peer that would silently take one rank's columns for the whole vocabulary."""
    if group is not None:
        raise NotImplementedError(f"{name} has no tensor parallelism")


def peers() -> list[HeadContender]:
    """Every peer, in the order of the table."""
    return [
        Megatron(),
        Verl(),
        VerlFused(),
        VerlFused(handed_rows=True),
        Trl(),
        TrlFused(),
        TrlFused(handed_rows=True),
        Liger(),
        Liger(handed_rows=True),
        LigerNative(),
        LigerNative(handed_rows=True),
    ]
