"""What is forgotten takes no memory until backward, has the same bits there, and gives the same gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fork.models.layers.rebuilding import forget, forget_results


class Doubled(torch.autograd.Function):
    """Twice its input, computed again from it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(given)
        ctx.again = partial(double_again, counts)
        return given * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * 2, None


def double_again(counts: list[int], saved: tuple[Tensor, ...], results: Sequence[Tensor]) -> None:
    counts.append(1)
    torch.mul(saved[0], 2, out=results[0])


def in_memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given, weight = (torch.randn(shape, generator=generator) for shape in ((5, 4), (4, 3)))
    return given.requires_grad_(), weight.requires_grad_()


def wanted() -> tuple[Tensor, ...]:
    given, weight = leaves()
    return torch.autograd.grad(((given * 2) @ weight).sin().sum(), (given, weight))


def test_a_product_s_input() -> None:
    counts: list[int] = []
    given, weight = leaves()
    doubled = Doubled.apply(given, counts)
    product = doubled @ weight
    loss = product.sin().sum()
    forget_results([doubled], until=product)
    assert in_memory(doubled) == 0 and not counts
    for ours, theirs in zip(torch.autograd.grad(loss, (given, weight)), wanted(), strict=True):
        assert torch.equal(ours, theirs)
    assert counts == [1]


def test_a_second_backward_computes_nothing_again() -> None:
    counts: list[int] = []
    given, weight = leaves()
    doubled = Doubled.apply(given, counts)
    product = doubled @ weight
    loss = product.sin().sum()
    forget_results([doubled], until=product)
    for _ in range(2):
        for ours, theirs in zip(torch.autograd.grad(loss, (given, weight), retain_graph=True), wanted(), strict=True):
            assert torch.equal(ours, theirs)
    assert counts == [1]


def test_results_of_another_function_are_kept() -> None:
    given, weight = leaves()
    doubled = given * 2
    product = doubled @ weight
    forget_results([doubled], until=product)
    assert in_memory(doubled) == 80


@torch.no_grad()
def test_nothing_is_freed_without_gradients() -> None:
    given, weight = leaves()
    doubled = Doubled.apply(given, [])
    forget_results([doubled], until=doubled @ weight)
    assert torch.equal(doubled, given * 2)


def test_any_tensor_that_somebody_can_compute_again() -> None:
    given, weight = leaves()
    doubled = given * 2
    product = doubled @ weight
    loss = product.sin().sum()
    forget([doubled], until=product, again=lambda held: torch.mul(given, 2, out=held[0]))
    assert in_memory(doubled) == 0
    for ours, theirs in zip(torch.autograd.grad(loss, (given, weight)), wanted(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_error_in_between_is_told() -> None:
    """What computes again may fail, for want of memory say; backward then fails with the same error."""

    def fails(_: Sequence[Tensor]) -> None:
        raise torch.OutOfMemoryError("no room")

    given, weight = leaves()
    doubled = given * 2
    product = doubled @ weight
    loss = product.sum()
    forget([doubled], until=product, again=fails)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        loss.backward()
