"""What a layer computes between its matrix products, forward and backward, in plain torch; `triton_kernels` has the same.

Shapes, with t tokens, w a width, g key heads, r queries to each of them, d a head's width, h = d / 2:

    rows         [..., w]           input of a norm; `inverse_rms` [...] float32, 1 over the root of the mean square
    gate_up      [..., 2 w]         both projections of a gated MLP, the gate first
    heads_tgsd   [t, g, r + 2, d]   the projection of each key head's queries, key and value
    cosine_th    [t, h]             of a token's rotations, in the dtype of the heads; `sine_th` likewise

Sums are in float32 (float64 for float64). Functions with `into` write results of a given memory.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class HeadNorms(NamedTuple):
    """Weights `[d]` of the norms of queries and keys."""

    query: Tensor
    key: Tensor
    epsilon: float


class Elementwise(Protocol):
    """The functions of this module; see there."""

    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]: ...
    def rms_norm_again(self, rows: Tensor, weight: Tensor, inverse_rms: Tensor, into: Tensor) -> None: ...
    def rms_norm_backward(
        self, grad: Tensor, rows: Tensor, weight: Tensor, inverse_rms: Tensor
    ) -> tuple[Tensor, Tensor]: ...
    def swiglu(self, gate_up: Tensor) -> Tensor: ...
    def swiglu_again(self, gate_up: Tensor, into: Tensor) -> None: ...
    def swiglu_backward(self, grad: Tensor, gate_up: Tensor) -> Tensor: ...
    def rotate_heads(
        self, heads_tgsd: Tensor, cosine_th: Tensor, sine_th: Tensor, norms: HeadNorms | None
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...
    def rotate_heads_again(
        self,
        heads_tgsd: Tensor,
        cosine_th: Tensor,
        sine_th: Tensor,
        norms: HeadNorms | None,
        inverse_rms: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> None: ...
    def rotate_heads_backward(
        self,
        grads: tuple[Tensor, Tensor, Tensor],
        heads_tgsd: Tensor,
        cosine_th: Tensor,
        sine_th: Tensor,
        norms: HeadNorms | None,
        inverse_rms: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...


def wide(tensor: Tensor) -> Tensor:
    """In the dtype that sums are in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The normalised rows in their dtype, and `inverse_rms`."""
    inverse = _inverse_rms(wide(rows), epsilon)
    result = (wide(rows) * inverse).mul_(weight).to(rows.dtype)
    return result, inverse[..., 0]


def rms_norm_again(rows: Tensor, weight: Tensor, inverse_rms: Tensor, into: Tensor) -> None:
    """The result of `rms_norm`, into memory of its shape."""
    if rows.dtype == inverse_rms.dtype:
        torch.mul(rows, inverse_rms[..., None], out=into).mul_(weight)
    else:
        into.copy_((wide(rows) * inverse_rms[..., None]).mul_(weight))


def rms_norm_backward(grad: Tensor, rows: Tensor, weight: Tensor, inverse_rms: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of rows and weight, in their dtypes."""
    # Both sums are of grad x rows, and so are products of one matrix with a vector.
    grad = wide(grad)
    product = grad * rows
    product_nw, inverse_n = product.flatten(0, -2), inverse_rms.flatten()
    d_weight = torch.mv(product_nw.T, inverse_n)
    along_n = torch.mv(product_nw, weight.to(product.dtype))
    d_normed = torch.mul(grad, weight, out=product)
    d_rows = _through_norm(d_normed, rows, along_n.view_as(inverse_rms), inverse_rms)
    return d_rows.to(rows.dtype), d_weight.to(weight.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) x up, `[..., w]`."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu_again(gate_up: Tensor, into: Tensor) -> None:
    """The result of `swiglu`, into memory of its shape."""
    gate, up = gate_up.chunk(2, -1)
    torch.mul(F.silu(gate), up, out=into)


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of `gate_up`."""
    gate, up = gate_up.chunk(2, -1)
    result = torch.empty_like(gate_up)
    d_gate, d_up = result.chunk(2, -1)
    if wide(gate).dtype == gate.dtype:
        # Without a tensor beside the result: on a CPU its pages cost more than the arithmetic.
        torch.ops.aten.silu.out(gate, out=d_up)
        d_up.mul_(grad)
        torch.mul(grad, up, out=d_gate)
        torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
    else:
        gate, grad = wide(gate), wide(grad)
        d_up.copy_(F.silu(gate).mul_(grad))
        d_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    return result


def rotate_heads(
    heads_tgsd: Tensor, cosine_th: Tensor, sine_th: Tensor, norms: HeadNorms | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries `[t, g r, d]` and keys `[t, g, d]`, normalised if there are norms, and rotated; `inverse_rms` `[t, g, r + 1]`."""
    tokens, groups, slots, width = heads_tgsd.shape
    query = heads_tgsd.new_empty(tokens, groups * (slots - 2), width)
    key = heads_tgsd.new_empty(tokens, groups, width)
    inverse = None if norms is None else _inverse_rms(wide(heads_tgsd[:, :, :-1]), norms.epsilon)[..., 0]
    rotate_heads_again(heads_tgsd, cosine_th, sine_th, norms, inverse, query, key)
    return query, key, inverse


def rotate_heads_again(
    heads_tgsd: Tensor,
    cosine_th: Tensor,
    sine_th: Tensor,
    norms: HeadNorms | None,
    inverse_rms: Tensor | None,
    query: Tensor,
    key: Tensor,
) -> None:
    """Queries and keys of `rotate_heads`, into memory of their shapes."""
    turned = heads_tgsd[:, :, :-1]
    if norms is not None and inverse_rms is not None:
        normed = (wide(turned) * inverse_rms[..., None]).mul_(_stacked(norms, turned.shape[2]))
        turned = normed.to(heads_tgsd.dtype)
    groups = heads_tgsd.shape[1]
    _rotate(turned[:, :, :-1], cosine_th, sine_th, query.unflatten(1, (groups, -1)))
    _rotate(turned[:, :, -1:], cosine_th, sine_th, key[:, :, None])


def rotate_heads_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    heads_tgsd: Tensor,
    cosine_th: Tensor,
    sine_th: Tensor,
    norms: HeadNorms | None,
    inverse_rms: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of `heads_tgsd` and of both norms' weights, from those of queries, keys and values `[t, g, d]`."""
    d_query, d_key, d_value = grads
    groups, result = heads_tgsd.shape[1], torch.empty_like(heads_tgsd)
    result[:, :, -1] = d_value
    # The rotation's inverse is a rotation by the negative angle.
    _rotate(d_query.unflatten(1, (groups, -1)), cosine_th, -sine_th, result[:, :, :-2])
    _rotate(d_key[:, :, None], cosine_th, -sine_th, result[:, :, -2:-1])
    if norms is None or inverse_rms is None:
        return result, None, None
    turned, d_turned, weight_sd = heads_tgsd[:, :, :-1], result[:, :, :-1], _stacked(norms, heads_tgsd.shape[2] - 1)
    wide_grad = wide(d_turned)
    product = wide_grad * turned
    along = (product * weight_sd).sum(-1)
    d_weight = product.mul_(inverse_rms[..., None]).sum((0, 1))
    d_normed = torch.mul(wide_grad, weight_sd, out=product)
    d_turned.copy_(_through_norm(d_normed, turned, along, inverse_rms))
    return result, d_weight[:-1].sum(0).to(norms.query.dtype), d_weight[-1].to(norms.key.dtype)


def _inverse_rms(rows: Tensor, epsilon: float) -> Tensor:
    return rows.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()


def _through_norm(d_normed: Tensor, rows: Tensor, along: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of rows, in the memory of `d_normed`; `along` is the sum of d_normed x rows over a row."""
    shrink = (along * inverse**3).div_(-rows.shape[-1])
    return d_normed.mul_(inverse[..., None]).addcmul_(rows, shrink[..., None])


def _stacked(norms: HeadNorms, slots: int) -> Tensor:
    """`[slots, d]`: the weight of every query of a key head, then that of the key."""
    return torch.cat([norms.query.expand(slots - 1, -1), norms.key[None]])


def _rotate(heads: Tensor, cosine_th: Tensor, sine_th: Tensor, into: Tensor) -> None:
    """Rotate the pairs (x_i, x_(i + h)) of every head `[t, g, n, d]` by the token's angles."""
    first, second = heads.chunk(2, -1)
    into_first, into_second = into.chunk(2, -1)
    cosine, sine = cosine_th[:, None, None], sine_th[:, None, None]
    torch.mul(first, cosine, out=into_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=into_second).addcmul_(first, sine)
