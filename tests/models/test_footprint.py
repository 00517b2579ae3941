"""Parameters are counted as published, and the fullest rank's as Megatron builds them, without allocating any."""

from typing import Any

import pytest
from support.ranks import run_on_ranks
from support.tiny_qwen3 import FAMILIES, family_config
from transformers import Qwen3Config, Qwen3MoeConfig

from megatron_fork.distributed import ParallelConfig
from megatron_fork.models import count_parameters, fullest_rank

PUBLISHED = {
    "Qwen3-0.6B": (596_049_920, {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16}, 3072, True),
    "Qwen3-8B": (
        8_190_735_360,
        {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32},
        12288,
        False,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    parameters, shape, inner, tied = PUBLISHED[name]
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=151_936,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        **shape,
    )
    assert count_parameters(config) == parameters == fullest_rank(config, ParallelConfig()).total
    # Sharding over all tensor ranks leaves an eighth, and the norms whole.
    assert parameters / 8 < fullest_rank(config, ParallelConfig(tensor=8)).total < parameters / 8 * 1.001


def test_published_size_of_a_mixture() -> None:
    config = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        vocab_size=151_936,
        hidden_size=2048,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    assert count_parameters(config) == 30_532_122_624
    rank = fullest_rank(config, ParallelConfig(expert=8))
    assert rank.experts == 48 * 128 * 3 * 2048 * 768 // 8


def _built(family: str, tied: bool, parallel: dict[str, Any]) -> int:
    from megatron_fork.distributed import parallel_layout
    from megatron_fork.models import build_chunks

    with parallel_layout(ParallelConfig(**parallel)) as layout:
        chunks = build_chunks(family_config(family, tie_word_embeddings=tied), layout.config)
        return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())


def _all_built(cases: list[tuple[str, bool, dict[str, Any]]]) -> list[int]:
    return [_built(*case) for case in cases]


@pytest.mark.slow
def test_as_megatron_builds_them() -> None:
    layouts: list[dict[str, Any]] = [{}, {"tensor": 2}, {"pipeline": 2}, {"context": 2}]
    cases = [
        (family, tied, parallel)
        for family in FAMILIES
        for tied in (True, False)
        for parallel in layouts
        if family != "qwen3_moe" or "tensor" not in parallel
    ]
    cases += [("qwen3_moe", False, {"expert": 2}), ("qwen3_moe", True, {"tensor": 2, "sequence": True, "expert": 2})]
    for case, *built in zip(cases, *run_on_ranks(_all_built, 2, cases), strict=True):
        family, tied, parallel = case
        config = family_config(family, tie_word_embeddings=tied)
        assert max(built) == fullest_rank(config, ParallelConfig(**parallel)).total, case
