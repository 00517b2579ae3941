"""Floating-point operations of training on sequences, as frameworks count them for model FLOPs utilization (MFU)."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PretrainedConfig


def training_flops(config: PretrainedConfig, lengths: Iterable[int]) -> float:
    """Forward and backward over sequences of these lengths, all tokens trained.

    6 for each token and each parameter of a matrix that it meets (of experts the chosen ones; embedding and LM head both),
    and 12 x length^2 x heads x head size for the attention of each layer, without the half that a causal mask saves: verl's
    count, which leaves out norms and recomputation. An update on the selected rows alone does less than it says.
    """
    sequences = list(lengths)
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = config.hidden_size * head * 2 * (heads + config.num_key_value_heads)
    experts = getattr(config, "num_experts_per_tok", 0) if getattr(config, "num_experts", 0) else 0
    width = config.moe_intermediate_size * experts if experts else config.intermediate_size
    router = config.hidden_size * config.num_experts if experts else 0
    layer = attention + 3 * config.hidden_size * width + router
    matrices = config.num_hidden_layers * layer + 2 * config.vocab_size * config.hidden_size
    pairs = sum(length * length for length in sequences)
    return float(6 * matrices * sum(sequences) + 12 * pairs * heads * head * config.num_hidden_layers)
