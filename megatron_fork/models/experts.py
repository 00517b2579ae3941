"""Mixtures of experts: the router's settings, and whether experts divide over the ranks."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.errors import LayoutError, ModelError

EXPERT_FIELDS = {
    "num_experts": "num_moe_experts",
    "num_experts_per_tok": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
}


def router_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Megatron's settings for Hugging Face's router: softmax over all experts, the k largest, optionally normalised.

    The softmax over the k chosen logits is the normalised form of the softmax over all, so `norm_topk_prob` is Megatron's
    top-k before softmax. The router always runs in float32: a choice of experts that differs between the statistics pass
    and the update would change log-probs.
    """
    if config.norm_topk_prob and config.num_experts_per_tok == 1:
        raise ModelError(
            "model config norm_topk_prob=true is not supported with num_experts_per_tok=1",
            hint="a single normalised weight is always 1, and its router cannot learn",
        )
    if config.num_experts_per_tok > config.num_experts:
        raise ModelError(
            f"model config num_experts_per_tok={config.num_experts_per_tok} is more than "
            f"num_experts={config.num_experts}",
            hint="a token is sent to distinct experts",
        )
    return {
        "moe_router_pre_softmax": not config.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_grouped_gemm": False,
    }


def check_experts_divide(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> None:
    """Raise `LayoutError` if experts or their widths do not divide over the ranks."""
    if config.num_experts % parallel.expert:
        raise LayoutError(
            f"parallel.expert={parallel.expert} does not divide the model's num_experts={config.num_experts}",
            hint="choose an expert-parallel size that divides the experts",
        )
    if config.moe_intermediate_size % parallel.expert_tensor:
        raise LayoutError(
            f"parallel.expert_tensor={parallel.expert_tensor} does not divide the model's moe_intermediate_size="
            f"{config.moe_intermediate_size}",
            hint="choose an expert tensor-parallel size that divides the experts' width",
        )
    if parallel.expert == 1 and parallel.expert_tensor != parallel.tensor:
        # Without expert parallelism Megatron treats experts as dense weights and sums their gradients over those ranks.
        raise LayoutError(
            f"parallel.expert_tensor={parallel.expert_tensor} with parallel.expert=1 and tensor={parallel.tensor}",
            hint=f"set parallel.expert_tensor={parallel.tensor}, or parallel.expert to 2 or more",
        )
    if parallel.tensor > 1 and not parallel.sequence:
        raise LayoutError(
            f"parallel.tensor={parallel.tensor} with parallel.sequence=false for a mixture of experts",
            hint="set parallel.sequence=true: without it Megatron does not train experts",
        )


def check_no_experts(parallel: distributed.ParallelConfig) -> None:
    """Raise `LayoutError` if the layout of a dense model has expert parallelism."""
    for name in ("expert", "expert_tensor"):
        if vars(parallel)[name] > 1:
            raise LayoutError(
                f"parallel.{name}={vars(parallel)[name]}, but the model has no experts",
                hint=f"set parallel.{name}=1",
            )
