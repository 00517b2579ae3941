"""Sets beside training are evaluated when each is due, also with nothing held out, and a resumed run records the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, metrics_of, run, trace_rows, without_times
from support.judging import EVEN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_fork.config import load_config
from megatron_fork.errors import MegatronForkError
from megatron_fork.run import check
from megatron_fork.traces import open_traces

Write = Callable[..., Path]


def words_of(prompts: Write, folder: Path) -> list[str]:
    sets = {"often": prompts("often.jsonl", 3), "seldom": prompts("seldom.jsonl", 2, first=4)}
    words = [word for name, file in sets.items() for word in (f"evaluation.sets.{name}.source={file}",)]
    return [
        *("train", str(QUICKSTART), *TINY, *EVEN, *words, "evaluation.sets.often.every=1"),
        *("evaluation.sets.seldom.every=2", "evaluation.sets.seldom.samples=4", f"run.folder={folder}"),
        *("sft.steps=1", "train.steps=3", "run.checkpoint_every=0", "run.checkpoint_async=false", "data.held_out=0"),
    ]


def test_each_set_has_its_curve(prompts: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [
        *words_of(prompts, folder),
        "data.held_out=0",
        "run.tensorboard=true",
        "run.wandb=sets",
        "run.trace_every=1",
    ]
    code, output = run(*words)
    assert code == 0, output
    lines = {record["step"]: record for record in metrics_of(folder, "evaluation")}
    assert sorted(lines) == [0, 1, 2, 3]
    for step, record in lines.items():
        assert ("seldom/avg@4" in record) == (step != 1) and "often/avg@2" in record and "pass_rate" not in record
        assert 0 <= record["often/avg@2"] <= record["often/pass@2"] <= 1 and record["often/avg@2_se"] >= 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sets"]["seldom"]["after"]["avg@4"] == lines[3]["seldom/avg@4"]
    assert summary["sets"]["often"]["before"]["avg@2"] == lines[0]["often/avg@2"]
    assert "pass_rate_before" not in summary and "often/avg@2" in output
    assert "Evaluation sets" in (folder / "report.html").read_text()
    part = next(open_traces(folder / "traces" / "evaluation-000003.parquet").parts(["set", "prompt_id", "kind"]))
    assert set(part.values("set")) == {"often", "seldom"} and set(part.values("kind")) == {"evaluation"}
    (events,) = (folder / "tensorboard" / "evaluation").iterdir()
    assert b"seldom/avg@4" in events.read_bytes()
    (offline,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"evaluation/seldom/avg@4" in offline.read_bytes()


def test_a_resumed_run_records_the_same(prompts: Write, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(*words_of(prompts, whole))[0] == 0
    code, output = run(*words_of(prompts, resumed), "train.steps=2")
    assert code == 0, output
    code, output = run(*words_of(prompts, resumed))
    assert code == 0 and "resuming" in output, output
    assert without_times(metrics_of(resumed, "evaluation")) == without_times(metrics_of(whole, "evaluation"))
    code, output = run(*words_of(prompts, resumed), "evaluation.sets.often.every=3")
    assert code == 1 and "evaluation.sets" in output, output


BAD = {
    "nothing": (("data.held_out=0",), "data.held_out=0 without evaluation.sets: nothing would be evaluated"),
    "no file": (("evaluation.sets.a.source=nowhere.jsonl", EVEN[0]), "a: data.source=nowhere.jsonl is not a file"),
    "verifier": (("evaluation.sets.a.source=x",), "rewards.kind=reach does not fit the source of a=x"),
    "no source": (("evaluation.sets.a.samples=3",), "evaluation.sets.a has no source"),
    "field": (("evaluation.sets.a.source=x", "evaluation.sets.a.sample=3"), "evaluation.sets.a.sample is not a field"),
    "value": (("evaluation.sets.a.source=x", "evaluation.sets.a.every=-1"), "evaluation.sets.a.every=-1 is negative"),
    "column": (("evaluation.sets.a.source=x", "evaluation.sets.a.columns=3"), "evaluation.sets.a.columns=3 is not"),
    "name": (('evaluation.sets={"a b": {"source": "x"}}',), "evaluation.sets.'a b' is no name of a set"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_named(case: str) -> None:
    words, message = BAD[case]
    with pytest.raises(MegatronForkError) as refused:
        check(load_config(QUICKSTART, [*TINY, *words]), ranks=1)
    assert message in refused.value.message and refused.value.hint


def test_each_set_has_its_own_verifier_and_majorities(prompts: Write, tmp_path: Path) -> None:
    """A set whose responses state answers has maj@k, under a key of its own; TensorBoard and wandb have each key once."""
    folder = tmp_path / "run"
    sets = {"even": (), "math": ("evaluation.sets.math.rewards.kind=math", "evaluation.sets.math.rewards.workers=1")}
    words = [f"evaluation.sets.{name}.source={prompts(f'{name}.jsonl', 2)}" for name in sets]
    words += [word for more in sets.values() for word in more]
    code, output = run(
        *("train", str(QUICKSTART), *TINY, *EVEN, *words, "evaluation.samples=3", f"run.folder={folder}"),
        *("sft.steps=1", "train.steps=1", "data.held_out=0", "run.tensorboard=true", "run.wandb=sets"),
    )
    assert code == 0, output
    for record in metrics_of(folder, "evaluation"):
        assert {
            "even/avg@3",
            "even/pass@3",
            "math/avg@3",
            "math/pass@3",
            "math/maj@3",
            "math/maj@3_se",
        } <= record.keys()
        assert "even/maj@3" not in record and 0 <= record["math/maj@3"] <= record["math/pass@3"]
    rows = trace_rows(folder / "traces" / "evaluation-000001.parquet")
    assert all(row["reward"] == (len(row["response"]) % 2 == 0) for row in rows if row["set"] == "even")
    assert {row["reward"] for row in rows if row["set"] == "math"} == {0.0}
    board = EventAccumulator(str(folder / "tensorboard" / "evaluation"))
    board.Reload()
    assert [each.step for each in board.Scalars("math/maj@3")] == [0, 1]
    (offline,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    written = offline.read_bytes()
    for key in (b"evaluation/math/maj@3", b"evaluation/even/pass@3"):
        assert key in written and key.removeprefix(b"evaluation/").replace(b"/", b"_") not in written
