"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): biases on query, key and value."""

from __future__ import annotations

from megatron_fork.models.families.family import BLOCK, DENSE_MLP, FULL_ATTENTION, SILU, Family, query_key_value

QWEN2 = Family(
    (*BLOCK, query_key_value("bias"), *DENSE_MLP),
    settings={"add_qkv_bias": True},
    required={**SILU, **FULL_ATTENTION},
)
