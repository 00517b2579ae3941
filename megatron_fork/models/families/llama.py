"""Llama 3 (arXiv 2407.21783): only what all families have; rotary positions may be scaled."""

from __future__ import annotations

from megatron_fork.models.families.family import BLOCK, DENSE_MLP, NO_BIAS, SILU, Family

LLAMA = Family(BLOCK + DENSE_MLP, required={**SILU, **NO_BIAS, "mlp_bias": (False, "use a model without biases")})
