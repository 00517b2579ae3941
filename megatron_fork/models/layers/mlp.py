"""The gated MLP of dense layers, which keeps its two projections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.elementwise import Elementwise
from megatron_fork.models.layers.kernels import elementwise_for
from megatron_fork.models.layers.rebuilding import forget, forget_results


class GatedMlp(MLP):
    """Megatron's MLP with SwiGLU and without biases; see `layers` for what it keeps."""

    config: LayerConfig

    def __init__(self, config: LayerConfig, submodules: MLPSubmodules | None = None, **place: Any) -> None:
        submodules = submodules or MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(config, submodules, **{"ffn_hidden_size": config.ffn_hidden_size, **place})
        self.kernels = elementwise_for(config.elementwise_kernels)

    def forward(self, hidden_states: Tensor, per_token_scale: None = None, **_: Any) -> tuple[Tensor, None]:
        """`[tokens (/tp), batch, n]` like its input, which is a norm's result; the second part would be a bias."""
        assert per_token_scale is None, "experts have Megatron's own MLP"
        gate_up, _ = self.linear_fc1(hidden_states)
        product: Tensor = _SwiGlu.apply(gate_up, self.kernels)
        output, _ = self.linear_fc2(product)
        if not self.config.keeps_products_inputs:
            multiplies_again = self.config.multiplies_again
            forget_results([hidden_states], until=output if multiplies_again else gate_up)
            if multiplies_again:
                forget([gate_up], until=output, again=partial(self._multiply_again, hidden_states))
            forget_results([product], until=output)
        return output, None

    def _multiply_again(self, hidden_states: Tensor, results: Sequence[Tensor]) -> None:
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=self.tp_group)
        torch.matmul(hidden_states, self.linear_fc1.weight.t(), out=results[0])


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, kernels: Elementwise) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.kernels, ctx.again = kernels, partial(_again, kernels)
        return kernels.swiglu(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.kernels.swiglu_backward(grad, *ctx.saved_tensors), None


def _again(kernels: Elementwise, saved: tuple[Tensor], results: tuple[Tensor]) -> None:
    kernels.swiglu_again(*saved, results[0])
