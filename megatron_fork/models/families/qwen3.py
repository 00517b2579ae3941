"""Qwen3 (arXiv 2505.09388): no biases, RMSNorm on query and key heads. Dense, or with experts instead of every MLP."""

from __future__ import annotations

from megatron_fork.models.families.family import (
    BLOCK,
    DENSE_MLP,
    EXPERT_MLP,
    FULL_ATTENTION,
    NO_BIAS,
    QUERY_KEY_NORM,
    ROUTER,
    SILU,
    Family,
)

_REQUIRED = {**SILU, **NO_BIAS, **FULL_ATTENTION}
_EXPERTS_IN_EVERY_LAYER = {
    "decoder_sparse_step": (1, "use a model with experts in every layer"),
    "mlp_only_layers": ([], "use a model with experts in every layer"),
}

QWEN3 = Family(BLOCK + QUERY_KEY_NORM + DENSE_MLP, settings={"qk_layernorm": True}, required=_REQUIRED)
QWEN3_MOE = Family(
    BLOCK + QUERY_KEY_NORM + ROUTER,
    EXPERT_MLP,
    settings={"qk_layernorm": True},
    required={**_REQUIRED, **_EXPERTS_IN_EVERY_LAYER},
)
