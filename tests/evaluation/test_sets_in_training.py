"""Sets beside training are evaluated when each is due, also with nothing held out, and a resumed run records the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, metrics_of, run, without_times
from support.judging import EVEN

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
