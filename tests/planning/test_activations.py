"""What the planner says that layers keep for backward is what autograd saves, byte by byte but for a few per cent."""

from typing import Any

import pytest
from support.ranks import run_on_ranks
from support.saved_bytes import Case, all_saved, saved_bytes

from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.models import ComputeConfig, ModelConfig, ParameterCounts, config_from_recipe
from megatron_fork.planning import Load, Machine, Row, kept_of_row, memory_by_stage, model_shape
from megatron_fork.policy import PolicyConfig

SMALL: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "vocab_size": 256,
}
WIDE = {**SMALL, "hidden_size": 512, "head_dim": 64, "intermediate_size": 1536, "num_hidden_layers": 2}
LLAMA = {**SMALL, "model_type": "llama"}
EXPERTS = {**SMALL, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
EXPERTS["norm_topk_prob"] = True


def computed(case: Case) -> float:
    config = RunConfig(
        policy=PolicyConfig(precision="bf16" if case.dtype == "bfloat16" else "fp32"),
        parallel=ParallelConfig(**case.parallel),
        compute=ComputeConfig(**case.compute),
    )
    hf_config = config_from_recipe(case.model)
    return kept_of_row(config, hf_config, Machine(on_gpu=False), Row(case.lengths, config.parallel.context))


ONE_RANK = [
    Case(model, lengths, compute=compute, dtype=dtype)
    for model in (SMALL, LLAMA, EXPERTS)
    for lengths in ((512,), (256, 240, 90))
    for compute in (
        {},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"recompute": "full", "recompute_layers": 2},
    )
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize("case", ONE_RANK, ids=str)
def test_one_rank(case: Case) -> None:
    assert computed(case) == pytest.approx(saved_bytes(case), rel=0.005)


@pytest.mark.parametrize("lengths", [(512,), (256, 256), (300, 60, 290), (256, 250, 240, 30)], ids=str)
def test_rows_of_several_sequences(lengths: tuple[int, ...]) -> None:
    case = Case(WIDE, lengths)
    assert computed(case) == pytest.approx(saved_bytes(case), rel=0.005)


@pytest.mark.slow
def test_on_ranks() -> None:
    layouts: list[dict[str, Any]] = [{"tensor": 2}, {"tensor": 2, "sequence": True}, {"context": 2}]
    cases = [
        Case(SMALL, lengths, parallel, compute, dtype)
        for lengths in ((512,), (256, 128))
        for parallel in layouts
        for compute in ({}, {"recompute": "full"})
        for dtype in ("float32", "bfloat16")
    ]
    for case, *saved in zip(cases, *run_on_ranks(all_saved, 2, cases), strict=True):
        assert computed(case) == pytest.approx(max(saved), rel=0.005), case


# One H200, local layers, bfloat16, one sequence with a fifth of its tokens trained: GiB beyond what was held at rest.
MEASURED = [
    ("Qwen3-8B", "full", 8703, 6.3),
    ("Qwen3-8B", "full", 30207, 15.4),
    ("Qwen3-0.6B", "none", 8703, 16.2),
    ("Qwen3-0.6B", "none", 30207, 51.5),
]


@pytest.mark.parametrize(("model", "recompute", "tokens", "gibibytes"), MEASURED)
def test_as_measured_on_a_gpu(model: str, recompute: str, tokens: int, gibibytes: float) -> None:
    """The whole peak of an update over what was held: activations, LM head and backward's own."""
    config = RunConfig(
        model=ModelConfig(path=model),
        policy=PolicyConfig(precision="bf16"),
        compute=ComputeConfig(recompute=recompute),  # type: ignore[arg-type]
    )
    counts = ParameterCounts.of(model_shape(config))
    load = Load(Row((tokens,)), Row((tokens,)), selected=0.2)
    (stage,) = memory_by_stage(config, counts, Machine(), load, ranks=1, micro_batches=1)
    computed = max(stage.phases["backward"], stage.phases["LM head"]) / 2**30
    assert computed == pytest.approx(gibibytes, rel=0.15)
