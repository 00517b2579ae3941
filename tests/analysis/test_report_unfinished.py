"""A run gets a report at any moment of its life: what is not written yet is left out, not a crash."""

import json
import math
from pathlib import Path

import pytest
from support.synthetic_run import metrics_of_run, write_json_lines, write_run

from megatron_fork.analysis import write_report
from megatron_fork.analysis.metrics import read_metrics


def report_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_unfinished_run_says_so_and_shows_the_latest_evaluation(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path, finished=False))
    assert "unfinished, 40 RL steps so far" in page
    assert "at step 40, the latest evaluation" in page
    assert "62.0 ± 2.0 %" in page


def test_summary_without_a_final_score_is_unfinished(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"pass_rate_before": 0.2, "pass_rate_after": null, "seed": 0}')
    page = report_of(tmp_path)
    assert "unfinished" in page
    assert '<dd class="value">0</dd>' in page, "seed 0 is a seed"


def test_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    page = report_of(tmp_path)
    assert "No step has been written yet." in page
    assert "<svg" not in page
    assert "not evaluated yet" in page


@pytest.mark.parametrize("stage", ["sft", "train", "evaluation"])
def test_run_of_one_line(tmp_path: Path, stage: str) -> None:
    numbers = next(line for line in metrics_of_run(4) if line["stage"] == stage)
    write_json_lines(tmp_path / "metrics.jsonl", [numbers])
    assert "<svg" in report_of(tmp_path)


@pytest.mark.parametrize("start", ["loss", "rollout/", "entropy/", "selection/", "mismatch/", "time/"])
def test_metrics_may_be_missing_or_null(tmp_path: Path, start: str) -> None:
    lines = metrics_of_run(6)
    for position, line in enumerate(lines):
        for name in [name for name in line if name.startswith(start)]:
            if position % 2:
                line[name] = None
            else:
                line.pop(name)
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    assert "<svg" in report_of(tmp_path)


def test_values_that_are_not_finite_leave_gaps_and_are_counted(tmp_path: Path) -> None:
    lines = metrics_of_run(6)
    lines[-1].update({"loss": math.nan, "gradient_norm": math.inf, "entropy/mean": None})
    lines += [{"stage": "train", "step": step, "loss": math.nan, "mismatch/max": 0.0} for step in range(7, 10)]
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    page = report_of(tmp_path)
    assert "6 metrics are null, NaN or infinite" in page
    assert "3 values of 0 or below have no place on the log axis." in page


def test_mismatch_of_exactly_zero_is_said_in_words(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "metrics.jsonl", [{"stage": "train", "step": 1, "mismatch/max": 0}])
    assert "0 at every step" in report_of(tmp_path)


def test_half_written_last_line_of_a_running_job_is_ignored(tmp_path: Path) -> None:
    write_run(tmp_path, finished=False)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + '{"stage": "train", "step": 41, "lo\u00e9'.encode()[:-1])
    page = report_of(tmp_path)
    assert "The last line of metrics.jsonl is half-written" in page
    assert "40 RL steps so far" in page


def test_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"stage": "train", "step": 3, "loss": 1.0}))
    metrics = read_metrics(path)
    assert metrics.last_step("train") == 3
    assert not metrics.truncated


def test_resumed_run_counts_the_last_line_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_json_lines(path, [{"stage": "train", "step": step, "loss": loss} for step, loss in ((1, 1), (2, 2), (2, 5))])
    metrics = read_metrics(path)
    assert metrics.series("train", "loss").values.tolist() == [1, 5]
    assert metrics.superseded == 1
