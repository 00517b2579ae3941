"""A run of which no step has anything to learn from says so, shows why, and counts it in what it leaves behind."""

import json
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, finish, metrics_of, run, start, trace_rows
from support.page_data import page_data

WORDS = (*TINY, "sft.steps=0", "train.steps=3", "rollout.dynamic_sampling=true", "rollout.max_rounds=2")


@pytest.mark.parametrize(
    ("verdict", "alike"), [("false", "every response was wrong"), ("true", "every response was right")]
)
def test_steps_without_signal_are_said_shown_and_counted(tmp_path: Path, verdict: str, alike: str) -> None:
    (tmp_path / "judges_alike.py").write_text(
        f"def judge(response, answer):\n    return {verdict.capitalize()}, 'seen: ' + response[:9]\n"
    )
    folder = tmp_path / "run"
    words = (str(QUICKSTART), *WORDS, "rewards.kind=judges_alike:judge", f"run.folder={folder}")
    code, output = finish(start("train", *words, cwd=tmp_path))
    assert code == 0, output
    for step in (1, 2, 3):
        assert f"step {step}: 0 of 8 groups had signal: {alike}; no update" in output
    assert "warning: 3 of 3 steps had no group with signal, and there was no update" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps_without_signal"], summary["updates"], summary["groups_with_signal"]) == (3, 0, 0)
    assert summary["groups_sampled"] == 24 and summary["final_evaluation"]["step"] == 3
    assert set(summary["seconds"]) == {
        *("warm_start", "rollout", "statistics", "update", "synchronise", "evaluation", "other")
    }
    for name in ("step-000001", "step-000002", "step-000003", "evaluation-000000", "evaluation-000003"):
        kept = trace_rows(folder / "traces" / f"{name}.parquet")
        assert 0 < len(kept) <= 8
        assert all(each["reward"] == (verdict == "true") and each["reason"].startswith("seen: ") for each in kept)
    page = (folder / "report.html").read_text()
    assert "In 3 of 3 steps no group of responses had signal" in page
    shown = page_data(page).responses
    assert {each.facts["step"] for each in shown} == {0, 1, 2, 3}
    assert all(each.facts["reason"].startswith("seen: ") for each in shown)


def test_a_step_with_updates_of_regularizers_alone_is_said(tmp_path: Path) -> None:
    """Without dynamic sampling groups without signal are trained on; the entropy bonus makes updates of them."""
    folder = tmp_path / "run"
    code, output = run("train", str(QUICKSTART), *TINY, "sft.steps=0", "train.steps=1", f"run.folder={folder}")
    assert code == 0, output
    assert "step 1: 0 of 4 groups had signal: every response was wrong; its 2 updates had no advantages" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps_without_signal"], summary["updates"]) == (1, 2)
    assert metrics_of(folder, "train")[0]["rollout/groups_with_signal"] == 0
    assert trace_rows(folder / "traces" / "step-000001.parquet")[0]["entropy"]


def test_a_run_with_signal_warns_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "judges_length.py").write_text("def judge(response, answer):\n    return len(response) % 2\n")
    folder = tmp_path / "run"
    whole = ("train.prompts_per_mini_batch=4", "run.trace_trajectories=null")
    words = (
        str(QUICKSTART),
        *WORDS,
        "train.steps=1",
        "rewards.kind=judges_length:judge",
        f"run.folder={folder}",
        *whole,
    )
    code, output = finish(start("train", *words, cwd=tmp_path))
    assert code == 0 and "warning" not in output and "groups had signal" not in output, output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps_without_signal"] == 0 and summary["updates"] > 0 and summary["tokens_per_second"] > 0
    assert not list((folder / "traces").glob("*2.*"))
    rows = trace_rows(folder / "traces" / "step-000001.parquet")
    (metrics,) = metrics_of(folder, "train")
    entropies = [value for row in rows for value in row["entropy"]]
    assert len(rows) == 16 and metrics["selection/candidates"] == len(entropies)
    assert sum(entropies) / len(entropies) == pytest.approx(metrics["entropy/mean"], abs=1e-6)
    assert sum(map(sum, (row["selected"] for row in rows))) == metrics["selection/selected"]
