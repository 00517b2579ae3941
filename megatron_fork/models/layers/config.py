"""Megatron's configuration of a model, with the kernels that local layers run on."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from megatron_fork.models.config import AttentionKernel, ElementwiseKernels


@dataclass
class LayerConfig(TransformerConfig):
    """Every module of a layer is given it, and finds its kernels here."""

    attention_kernel: AttentionKernel = "sdpa"
    elementwise_kernels: ElementwiseKernels = "torch"

    @property
    def keeps_products_inputs(self) -> bool:
        """Whether inputs of matrix products stay in memory.

        Where layers are recomputed, few layers' are alive at a time; and in torch, as on a CPU, an activation costs as much as
        a product of a small model, so that it is computed again only if it is asked for.
        """
        if self.recompute_granularity is None:
            return self.elementwise_kernels == "torch"
        return bool(self.recompute_granularity == "full")

    @property
    def multiplies_again(self) -> bool:
        """Whether the MLP's first product is computed again in backward."""
        return bool(self.recompute_granularity == "selective")
