"""RMSNorm, which keeps its input and one number a row."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.elementwise import Elementwise
from megatron_fork.models.layers.kernels import elementwise_for


class RMSNorm(torch.nn.Module):
    """An RMS norm for sequence parallelism, which Megatron's own wrapper refuses.

    Under sequence parallelism each tensor rank normalises its part of the tokens, so weight gradients are partial sums;
    Megatron reduces those of parameters marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.kernels = elementwise_for(config.elementwise_kernels if isinstance(config, LayerConfig) else "torch")
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, rows: Tensor) -> Tensor:
        """Rows `[..., hidden size]` over the root of their mean square, times the weight."""
        normed: Tensor = _RmsNorm.apply(rows, self.weight, self.eps, self.kernels)
        return normed


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, epsilon: float, kernels: Elementwise) -> Tensor:
        result, inverse_rms = kernels.rms_norm(rows, weight, epsilon)
        ctx.save_for_backward(rows, weight, inverse_rms)
        ctx.kernels, ctx.again = kernels, partial(_again, kernels)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.rms_norm_backward(grad, *ctx.saved_tensors), None, None


def _again(kernels: Elementwise, saved: tuple[Tensor, Tensor, Tensor], results: tuple[Tensor]) -> None:
    kernels.rms_norm_again(*saved, results[0])
