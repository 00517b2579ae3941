"""What is wrong with a run that goes on is told once when it appears and once when it has gone."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUICKSTART, TINY, run

from megatron_fork.config import AlertsConfig
from megatron_fork.run.alerts import Alert, Alerts, active_causes
from megatron_fork.run.folder import RunFolder

CONFIG = AlertsConfig(entropy_below=0.1, steps_without_signal=3, stalled_seconds=0)
FINE = {"loss": 0.5, "gradient_norm": 1.0, "entropy/mean": 0.5, "update/skipped": 0.0, "rollout/groups_with_signal": 4}
WRONG: dict[str, list[dict[str, Any]]] = {
    "not_finite": [{"update/skipped": 1.0}, {"critic/skipped": 2.0}, {"loss": math.nan}, {"gradient_norm": math.nan}],
    "entropy": [{"entropy/mean": 0.05}, {"entropy/mean": 0.0}],
}


@given(st.lists(st.sets(st.sampled_from(["not_finite", "entropy", "no_signal"]))), st.data())
def test_each_cause_is_told_once_until_it_has_gone(steps: list[set[str]], data: st.DataObject) -> None:
    told: list[Alert] = []
    alerts = Alerts(CONFIG, told.append)
    without, before = 0, dict.fromkeys(("not_finite", "entropy", "no_signal", "stalled"), False)
    for number, causes in enumerate(steps, 1):
        metrics: dict[str, float] = dict(FINE)
        for cause in sorted(causes & WRONG.keys()):
            metrics |= data.draw(st.sampled_from(WRONG[cause]))
        without = without + 1 if "no_signal" in causes else 0
        metrics["rollout/groups_with_signal"] = 0 if "no_signal" in causes else 4
        now = {cause: cause in causes for cause in before} | {"no_signal": without >= 3}
        told.clear()
        assert alerts.look(number, metrics) == {f"alerts/{cause}": float(there) for cause, there in now.items()}
        assert {(each.cause, each.is_raised) for each in told} == {
            (cause, now[cause]) for cause in now if now[cause] != before[cause]
        }
        assert all(each.step == number for each in told)
        before = now


@pytest.mark.parametrize("off", [AlertsConfig(0.0, 0, 0.0)])
def test_thresholds_of_0_tell_nothing(off: AlertsConfig) -> None:
    told: list[Alert] = []
    alerts = Alerts(off, told.append)
    for step in range(20):
        alerts.look(step, {**FINE, "entropy/mean": 0.0, "rollout/groups_with_signal": 0})
    assert not told


def test_a_run_that_records_nothing_is_stalled(tmp_path: Path) -> None:
    said: list[str] = []
    config = AlertsConfig(entropy_below=0.0, steps_without_signal=0, stalled_seconds=0.2)
    folder = RunFolder(tmp_path, writes=True, alerts=config, say=said.append)
    folder.metrics("train", 1, FINE)
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    folder.metrics("evaluation", 1, {"pass_rate": 0.5})
    there = list(said)  # a busy machine may be quiet again for as long
    folder.close()
    assert there[0].startswith("ALERT: stalled, step 1: nothing was recorded for ") and "stalled_seconds=0.2" in said[0]
    assert there[-1].startswith("alert cleared: stalled")
    assert all(
        line.startswith(("ALERT: stalled", "alert cleared: stalled")[place % 2]) for place, line in enumerate(said)
    )


def test_alerts_are_in_the_folder_and_a_resumed_run_knows_them(tmp_path: Path) -> None:
    said: list[str] = []

    def opened() -> RunFolder:
        return RunFolder(tmp_path, writes=True, alerts=CONFIG, say=said.append)

    folder = opened()
    for step, entropy in enumerate((0.5, 0.05, 0.05, 0.5), 1):
        folder.metrics("train", step, {**FINE, "entropy/mean": entropy})
    folder.close()
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [(each["step"], each["cause"], each["state"]) for each in lines] == [
        (2, "entropy", "raised"),
        (4, "entropy", "cleared"),
    ]
    assert lines[0]["message"] == "entropy/mean=0.05 nats is below run.alerts.entropy_below=0.1"
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["alerts/entropy"] for each in metrics] == [0, 1, 1, 0]

    said.clear()
    folder = opened()
    folder.forget(after=2)
    folder.metrics("train", 3, {**FINE, "entropy/mean": 0.05})
    assert not said  # told before the run was resumed
    folder.metrics("train", 4, FINE)
    folder.close()
    assert len(said) == 1 and said[0].startswith("alert cleared: entropy, step 4")
    assert active_causes(tmp_path / "alerts.jsonl") == set()


@pytest.mark.parametrize(
    ("limit", "wait"), [(1e-6, 0.05), (0.2, 0.05), (2.0, 0.1), (600.0, 30.0), (1e9, 60.0), (1e300, 60.0)]
)
def test_any_limit_is_looked_at_often_enough_and_not_too_often(limit: float, wait: float) -> None:
    """A tiny limit takes no core, and a huge one is no longer than a thread can wait; the end is not waited for."""
    waited: list[float] = []
    alerts = Alerts(AlertsConfig(0.0, 0, 0.0), lambda alert: None)
    alerts._config = AlertsConfig(0.0, 0, limit)
    alerts._closed.wait = lambda seconds: waited.append(seconds) or True  # type: ignore[method-assign, func-returns-value]
    alerts._watch_time()
    assert waited == [pytest.approx(wait)]


@pytest.mark.slow
def test_a_warm_start_that_broken_updates_end_has_its_alert(tmp_path: Path) -> None:
    words = ("sft.steps=4", "sft.optimizer.learning_rate=1e30", "sft.optimizer.warmup_updates=0")
    code, output = run("train", str(QUICKSTART), *TINY, *words, "train.max_skipped_updates=0", f"run.folder={tmp_path}")
    assert code != 0 and output.count("error: ") == 1 and "train.max_skipped_updates=0" in output, output
    (line,) = map(json.loads, (tmp_path / "alerts.jsonl").read_text().splitlines())
    assert (line["step"], line["cause"], line["state"]) == (0, "not_finite", "raised")
    assert line["message"].startswith("warm start: ") and "ALERT: not_finite" in output
