"""A mixture of experts learns through the command line: balance loss, replayed routing, on one rank and on expert ranks."""

from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, metrics_of, run

EXPERTS = [
    *(f"model.hf_config.{field}" for field in ("model_type=qwen3_moe", "num_experts=4", "num_experts_per_tok=2")),
    *("model.hf_config.moe_intermediate_size=64", "model.hf_config.norm_topk_prob=true"),
    *("experts.balance=0.01", "experts.replay=true", "train.steps=2"),
]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    code, output = run("train", str(QUICKSTART), *TINY, *EXPERTS, f"run.folder={folder}")
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_replay_and_balance(one_rank: Path) -> None:
    for step in metrics_of(one_rank, "train"):
        assert step["experts/balance"] >= 0.01 * 0.99  # a perfect balance has 1 a layer
        assert step["mismatch/max"] < 1e-4


@pytest.mark.slow
def test_expert_ranks_take_the_same_first_step(one_rank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*TINY, *EXPERTS, "parallel.expert=2", f"run.folder={folder}"]
    code, output = run("train", str(QUICKSTART), *words, ranks=2)
    assert code == 0, output
    ours, theirs = (metrics_of(each, "train")[0] for each in (folder, one_rank))
    for name in ("loss", "gradient_norm", "experts/balance", "selection/threshold", "rollout/response_tokens"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
