"""A run under top-p, top-k or min-p trains under the softmax that its tokens were drawn from, also on tensor ranks."""

from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, metrics_of, run

from megatron_fork.traces import open_traces

CUTS = [["rollout.top_p=0.9"], ["rollout.top_k=5"], ["rollout.min_p=0.05", "rollout.temperature=0.8"]]
REPLAY = ["rollout.replay_sampling_mask=true", "train.steps=2"]


@pytest.mark.slow
@pytest.mark.parametrize("cuts", CUTS, ids=lambda words: words[0])
def test_the_mismatch_is_rounding(cuts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("train", str(QUICKSTART), *TINY, *REPLAY, *cuts, "run.trace_every=1", f"run.folder={folder}")
    assert code == 0, output
    for step in metrics_of(folder, "train"):
        assert step["mismatch/max"] < 1e-4
        assert step["entropy/kept_mean"] < step["entropy/mean"]
        assert 1.0 <= step["rollout/kept_tokens"] < 135
    rows = [row for part in open_traces(folder / "traces").parts() for row in part.table.to_pylist()]
    trained = [row for row in rows if row["kind"] == "trained"]
    assert trained and all(len(row["kept_tokens"]) == len(row["tokens"]) for row in trained)
    if "rollout.top_k=5" in cuts:
        assert {count for row in trained for count in row["kept_tokens"]} == {5}


@pytest.mark.slow
def test_tensor_ranks_take_the_same_first_step(tmp_path: Path) -> None:
    folders = {ranks: tmp_path / f"{ranks}" for ranks in (1, 2)}
    for ranks, folder in folders.items():
        words = [*TINY, *REPLAY, "rollout.top_p=0.9", f"parallel.tensor={ranks}", f"run.folder={folder}"]
        code, output = run("train", str(QUICKSTART), *words, ranks=ranks)
        assert code == 0, output
    ours, theirs = (metrics_of(folders[ranks], "train")[0] for ranks in (2, 1))
    for name in ("loss", "gradient_norm", "entropy/mean", "entropy/kept_mean", "rollout/kept_tokens"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
