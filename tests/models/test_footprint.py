"""Parameters are counted as published, and the fullest rank's as Megatron builds them, without allocating any."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import run_on_ranks
from support.tiny_qwen3 import FAMILIES, family_config
from transformers import Qwen3Config, Qwen3MoeConfig

from megatron_fork.distributed import ParallelConfig
from megatron_fork.models import ParameterCounts, count_parameters, fullest_rank, hugging_face_outline

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


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    fields=st.fixed_dictionaries(
        {
            "tie_word_embeddings": st.booleans(),
            "num_hidden_layers": st.integers(1, 3),
            "vocab_size": st.integers(1, 100),
            "hidden_size": st.sampled_from([32, 48, 64]),
            "intermediate_size": st.integers(1, 99),
            "num_attention_heads": st.sampled_from([4, 8]),
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
        }
    ),
    head=st.sampled_from([None, 2, 24]),
    experts=st.integers(2, 5),
)
@settings(max_examples=25, deadline=None)
def test_the_counts_are_those_of_the_model_of_transformers(
    family: str, fields: dict[str, Any], head: int | None, experts: int
) -> None:
    """Counted from the family's table of tensors, without the model's class; by the way in which ranks share them."""
    if head is not None and family != "qwen2":
        fields["head_dim"] = head
    if family == "qwen3_moe":
        fields |= {"num_experts": experts, "moe_intermediate_size": fields["intermediate_size"] + 1}
    config = family_config(family, **fields)
    found = {"experts": 0, "replicated": 0, "sharded": 0, "final norm": 0}
    total = 0
    for name, parameter in hugging_face_outline(config).named_parameters():
        total += parameter.numel()
        whole = "norm" in name or name.endswith("mlp.gate.weight")
        if ".layers." in name:
            found["experts" if ".experts." in name else "replicated" if whole else "sharded"] += parameter.numel()
        elif whole:
            found["final norm"] += parameter.numel()
    counts = ParameterCounts.of(config)
    assert counts.total == count_parameters(config) == total
    assert list(found.values()) == [counts.experts, counts.replicated, counts.sharded, counts.final_norm]


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
