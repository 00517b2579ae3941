"""RMSNorm for the local spec: torch's, and it tells Megatron when its gradient needs the sequence-parallel reduction."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """Megatron's own wrapper refuses sequence parallelism; this norm marks its weight instead.

    Under sequence parallelism each tensor rank normalises its share of the tokens, so weight gradients are partial sums;
    Megatron reduces those of parameters marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
