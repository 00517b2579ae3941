"""Linear layers of the embedded engine on a CPU: by oneDNN, in place of torch's own product.

torch multiplies float32 matrices on a CPU with MKL, which leaves AVX-512 unused on processors that are not Intel's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in float32 on a CPU, without gradients; it shares the parameters of the layer that it replaces."""

    @classmethod
    def instead_of(cls, layer: nn.Linear) -> OneDnnLinear:
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product


def use_fast_linear(model: nn.Module) -> None:
    """Replace the linear layers of a model that only draws, if this torch has oneDNN and the weights are such as it takes."""
    if not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
                setattr(parent, name, OneDnnLinear.instead_of(layer))
