"""The functions that local layers run on, by their name in `LayerConfig`."""

from __future__ import annotations

from megatron_fork.models.config import ElementwiseKernels
from megatron_fork.models.layers import elementwise
from megatron_fork.models.layers.elementwise import Elementwise


def elementwise_for(name: ElementwiseKernels) -> Elementwise:
    """The module of this name; Triton must be installed for its own."""
    if name == "torch":
        return elementwise
    # Imported here: Triton is optional, and takes a second to import.
    import megatron_fork.models.layers.triton_kernels as compiled

    return compiled
