"""Norms, SwiGLU and rotated heads and their gradients are those of their definitions; again they are the same bits.

Without a GPU the Triton kernels run in Triton's interpreter.
"""

import os
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gpu import DEVICE
from torch import Tensor

from megatron_fork.models.layers import elementwise
from megatron_fork.models.layers.elementwise import HeadNorms

pytestmark = pytest.mark.gpu

EPSILON = 1e-5
# Of the largest value; Triton's interpreter cuts a float32 off to bfloat16.
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def triton_kernels() -> Any:
    if DEVICE == "cpu":
        # Triton decides when it is imported whether its functions are interpreted, and megatron-core imports it if it can.
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip(
                "no GPU, and Triton is already imported without its interpreter: set TRITON_INTERPRET=1 for the whole run, "
                "or run this file alone"
            )
        os.environ.setdefault("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed")
    from megatron_fork.models.layers import triton_kernels

    return triton_kernels


@pytest.fixture(scope="module", params=["torch", "triton"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return elementwise if request.param == "torch" else triton_kernels()


def dtypes_of(kernels: Any) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16] + [torch.float64] * (kernels is elementwise)


def drawn(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes]


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    scale = wanted.abs().max().clamp_min(1e-6) if wanted.numel() else torch.ones(())
    torch.testing.assert_close(found.double() / scale, wanted / scale, rtol=0.0, atol=CLOSE[dtype])


def gradients(result: Tensor | tuple[Tensor, ...], upstream: Any, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result, inputs, upstream)


def normed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


@settings(max_examples=5, deadline=None)
@given(tokens=st.integers(0, 5) | st.just(34), width=st.integers(8, 70), seed=st.integers(0, 99))
def test_rms_norm(kernels: Any, tokens: int, width: int, seed: int) -> None:
    for dtype in dtypes_of(kernels):
        rows, weight, grad = drawn(seed, dtype, (tokens, 1, width), (width,), (tokens, 1, width))
        leaves = [tensor.double().clone().requires_grad_() for tensor in (rows, weight)]
        wanted = normed(*leaves)
        found, inverse = kernels.rms_norm(rows, weight, EPSILON)
        check(found, wanted.detach(), dtype)
        for ours, theirs in zip(
            kernels.rms_norm_backward(grad, rows, weight, inverse),
            gradients(wanted, grad.double(), leaves),
            strict=True,
        ):
            check(ours, theirs, dtype)
        again = torch.empty_like(found)
        kernels.rms_norm_again(rows, weight, inverse, again)
        assert torch.equal(again, found)


@settings(max_examples=5, deadline=None)
@given(tokens=st.integers(0, 5), width=st.integers(1, 70) | st.just(1030), seed=st.integers(0, 99))
def test_swiglu(kernels: Any, tokens: int, width: int, seed: int) -> None:
    for dtype in dtypes_of(kernels):
        gate_up, grad = drawn(seed, dtype, (tokens, 1, 2 * width), (tokens, 1, width))
        leaf = gate_up.double().clone().requires_grad_()
        wanted = torch.nn.functional.silu(leaf[..., :width]) * leaf[..., width:]
        found = kernels.swiglu(gate_up)
        check(found, wanted.detach(), dtype)
        check(kernels.swiglu_backward(grad, gate_up), gradients(wanted, grad.double(), [leaf])[0], dtype)
        again = torch.empty_like(found)
        kernels.swiglu_again(gate_up, again)
        assert torch.equal(again, found)


def rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """By a matrix for each pair of numbers."""
    first, second = heads.unflatten(-1, (2, -1)).unbind(-2)
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


@settings(max_examples=5, deadline=None)
@given(
    tokens=st.integers(0, 5) | st.just(34),
    groups=st.integers(1, 3),
    queries=st.integers(1, 4),
    half=st.integers(4, 12),
    has_norms=st.booleans(),
    seed=st.integers(0, 99),
)
def test_heads(kernels: Any, tokens: int, groups: int, queries: int, half: int, has_norms: bool, seed: int) -> None:
    for dtype in dtypes_of(kernels):
        heads, angle, d_query, d_key, d_value, query_weight, key_weight = drawn(
            seed,
            dtype,
            (tokens, groups, queries + 2, 2 * half),
            (tokens, half),
            (tokens, groups * queries, 2 * half),
            (tokens, groups, 2 * half),
            (tokens, groups, 2 * half),
            (2 * half,),
            (2 * half,),
        )
        cosine, sine = angle.cos(), angle.sin()
        leaves = [tensor.double().clone().requires_grad_() for tensor in (heads, query_weight, key_weight)]
        query, key, value = leaves[0][:, :, :-2], leaves[0][:, :, -2:-1], leaves[0][:, :, -1]
        if has_norms:
            query, key = normed(query, leaves[1]), normed(key, leaves[2])
        wanted = (
            rotated(query, cosine.double(), sine.double()).flatten(1, 2),
            rotated(key, cosine.double(), sine.double()).flatten(1, 2),
        )
        norms = HeadNorms(query_weight, key_weight, EPSILON) if has_norms else None
        *found, inverse = kernels.rotate_heads(heads, cosine, sine, norms)
        for ours, theirs in zip(found, wanted, strict=True):
            check(ours, theirs.detach(), dtype)
        upstream = d_query, d_key, d_value
        ours = kernels.rotate_heads_backward(upstream, heads, cosine, sine, norms, inverse)
        theirs = gradients((*wanted, value), [grad.double() for grad in upstream], leaves if has_norms else leaves[:1])
        for mine, reference in zip([each for each in ours if each is not None], theirs, strict=True):
            check(mine, reference, dtype)
        again = [torch.empty_like(each) for each in found]
        kernels.rotate_heads_again(heads, cosine, sine, norms, inverse, *again)
        assert all(torch.equal(*pair) for pair in zip(again, found, strict=True))


def test_gradients_that_come_in_other_layouts(kernels: Any) -> None:
    """A transposed or expanded gradient gives what a contiguous one does."""
    rows, weight, heads, angle = drawn(5, torch.float32, (6, 8), (8,), (6, 2, 3, 8), (6, 4))
    _, inverse = kernels.rms_norm(rows, weight, EPSILON)
    grad = torch.randn(8, 6, device=DEVICE).T
    for ours, theirs in zip(
        kernels.rms_norm_backward(grad, rows, weight, inverse),
        kernels.rms_norm_backward(grad.contiguous(), rows, weight, inverse),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expanded = torch.ones((), device=DEVICE).expand(6, 4)
    wanted = kernels.swiglu_backward(expanded.contiguous(), rows)
    assert torch.equal(kernels.swiglu_backward(expanded, rows), wanted)
    loose = [torch.randn(2, 6, 8, device=DEVICE).transpose(0, 1) for _ in range(3)]
    tight = [each.contiguous() for each in loose]
    given_, held = (
        kernels.rotate_heads_backward(tuple(each), heads, angle.cos(), angle.sin(), None, None)[0]
        for each in (loose, tight)
    )
    assert torch.equal(given_, held)
