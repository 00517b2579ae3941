"""Results that are not kept for backward but computed again, from what is kept anyway.

The inputs of a layer's matrix products (a norm's result, queries and keys after their norm and rotation, the product of gate
and up projection) are half of what a layer keeps. Each follows, at the cost of moving its bytes, from a tensor that its own
backward keeps as well. `forget` frees their memory at the end of forward, and fills it when the gradient of a later result
arrives, which is before any backward that reads them. The values are the same bits: the same function computes them from the
same tensors.

What another module saved is filled in place, so that Megatron's products and attention kernels need not know. Filling does not
count as a change of the tensor for autograd, which would refuse to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Rebuilding(Protocol):
    """The node of an autograd function whose results can be computed again."""

    again: Callable[[tuple[Tensor, ...], Sequence[Tensor]], None]
    """From the tensors that the function saved, into its results; holds no tensor itself, so that none outlives the graph."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...


def forget(results: Sequence[Tensor], *, until: Tensor, again: Callable[[Sequence[Tensor]], None]) -> None:
    """Free the memory of `results` now, and call `again` with tensors of their shapes once `until` has its gradient.

    Nothing may read the results in between, and backward must pass `until` before it reads them. Without gradients, nothing is
    freed: nothing keeps the results then. Each result is the only tensor of its storage.
    """
    if not until.requires_grad:
        return
    # `data` shares memory but not the version counter by which autograd sees changes.
    held = [result.data for result in results]
    sizes = [each.untyped_storage().nbytes() for each in held]
    for each in held:
        each.untyped_storage().resize_(0)

    def fill(_: Tensor) -> None:
        if held[0].untyped_storage().nbytes():
            return  # a second backward through the same graph
        for each, size in zip(held, sizes, strict=True):
            each.untyped_storage().resize_(size)
        with torch.no_grad():
            again(held)

    until.register_hook(fill)


def forget_results(results: Sequence[Tensor], *, until: Tensor) -> None:
    """`forget` for all results of one function that is `Rebuilding`; those of any other are kept."""
    node = results[0].grad_fn
    if isinstance(node, Rebuilding):
        forget(results, until=until, again=lambda held: node.again(node.saved_tensors, held))
