"""Runs on tasks and files: they train with their verifier in workers, a file's order resumes, what does not fit is refused.

A verifier that fails is no model that is wrong: where it fails on all a run ends, and where on some it says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import PROJECT, QUICKSTART, TINY, metrics_of, run, trace_rows, without_times

ARITHMETIC = PROJECT / "examples" / "arithmetic.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on arithmetic chains; leaves a model folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("runs") / "chains"
    code, output = run("train", str(ARITHMETIC), *TINY, "rewards.workers=1", f"run.folder={folder}")
    assert code == 0, output[-3000:]
    assert "data arithmetic: 4,096 prompts of 4,096 rows, 8 held out" in output
    assert len(metrics_of(folder, "train")) == 4
    return folder


@pytest.mark.slow
def test_a_file_of_prompts_resumes_by_the_number_drawn(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 7", "result": str(n + 7)} for n in range(1, 31)] * 2
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    words = (
        *("train", str(QUICKSTART), *TINY, "sft.steps=0", "model.hf_config=null", f"model.path={folder / 'model'}"),
        *(f"data.source={file}", "data.columns.prompt=question", "data.columns.answer=result", "data.duplicates=drop"),
        *(
            "data.template={{ question }} =",
            "rewards.kind=math",
            "rewards.workers=1",
            "rollout.max_response_tokens=20",
        ),
        "run.checkpoint_every=2",
    )
    code, output = run(*words, f"run.folder={tmp_path / 'whole'}")
    assert code == 0, output[-3000:]
    assert "30 prompts of 60 rows, 30 duplicates dropped, 8 held out" in output
    for steps in (2, 4):
        code, output = run(*words, f"run.folder={tmp_path / 'parts'}", f"train.steps={steps}")
        assert code == 0, output[-3000:]
    whole, parts = (without_times(metrics_of(tmp_path / name, "train")) for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rewards.kind=math",), "rewards.kind=math does not fit data.source=reach"),
        (("data.source=arithmetic",), "rewards.kind=reach does not fit data.source=arithmetic"),
        (("data.source=nowhere.jsonl", "rewards.kind=math"), "data.source=nowhere.jsonl needs a tokenizer"),
        (("data.preset=gsm8k",), "data.preset=gsm8k with data.source=reach"),
        (("data.preset=gsm9k",), "data.preset=gsm9k is not one of dapo_math_17k, math"),
        (("rewards.kind=code",), "rewards.kind=code runs what the model wrote"),
        (("rewards.kind=absent:verify",), "module absent cannot be imported"),
        (
            ("rewards.kind=tests.support.misbehaving:stopped",),
            "rewards.kind=tests.support.misbehaving:stopped takes (action)",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(words: tuple[str, ...], message: str) -> None:
    code, output = run("train", str(QUICKSTART), *TINY, *words)
    assert code in (1, 2)
    assert message in output and "Traceback" not in output


FAILING = (
    *("sft.steps=0", "train.steps=2", "evaluation.greedy=false", "rewards.workers=1", "rollout.max_response_tokens=12"),
    *("objective.overlong.max_response=12", "objective.overlong.cache=2"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [(), ("rollout.max_staleness=1", "rollout.tail=stop", "objective.correction=tis")],
    ids=["rounds", "stream"],
)
def test_a_verifier_that_fails_on_some_is_counted(tmp_path: Path, engine: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    words = ("train", str(QUICKSTART), *TINY, *FAILING, *engine, "run.trace_trajectories=16")
    code, output = run(*words, "rewards.kind=tests.support.misbehaving:judges_most", f"run.folder={folder}")
    assert code == 0, output[-3000:]
    for record in [*metrics_of(folder, "train"), *metrics_of(folder, "evaluation")]:
        counts = [record[f"rewards/{kind}"] for kind in ("error", "timed_out", "died")]
        responses = 4 * record.get("rollout/groups_sampled", 4)
        assert counts[1:] == [0, 0] and record["rewards/failed"] == pytest.approx(counts[0] / max(1, responses))
    assert "the verifier failed on" in output and "misbehaving.py:" in output and "which count as wrong" in output
    traced = trace_rows(folder / "traces" / "step-000001.parquet")
    raised = [trace for trace in traced if trace["reason"].startswith("verifier raised LookupError: on this response")]
    assert {trace["reason"] for trace in traced} - {trace["reason"] for trace in raised} <= {"an odd number"}
    assert raised
    if not engine:  # a stream may train on groups that it counted with an earlier step
        assert len(raised) == metrics_of(folder, "train")[0]["rewards/error"]
    assert all(trace["reward"] == 0.0 for trace in raised)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raises", "returns_nan"])
def test_a_verifier_that_fails_on_all_ends_the_run(tmp_path: Path, kind: str) -> None:
    code, output = run(
        *("train", str(QUICKSTART), *TINY, *FAILING),
        f"rewards.kind=tests.support.misbehaving:{kind}",
        f"run.folder={tmp_path / 'run'}",
    )
    assert code == 1, output[-3000:]
    said = {"raises": "verifier raised LookupError: on every response", "returns_nan": "verifier returned nan"}[kind]
    assert f"the verifier failed on all 16 responses of the evaluation after step 0: {said}" in output
    assert "misbehaving.py:" in output and "Traceback" not in output
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_warm_start_on_solutions_of_ones_own(folder: Path, tmp_path: Path) -> None:
    """And where a file has none, nothing is left of the attempt."""
    file = tmp_path / "solved.jsonl"
    rows = [{"prompt": f"{n} + 7 =", "answer": str(n + 7), "how": f"{n + 7}"} for n in range(1, 31)]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = (
        *("train", str(QUICKSTART), *TINY, "model.hf_config=null", f"model.path={folder / 'model'}"),
        *(f"data.source={file}", "rewards.kind=math", "rollout.max_response_tokens=20", "train.steps=1"),
    )
    code, output = run(*words, "data.columns.solution=how", f"run.folder={tmp_path / 'run'}")
    assert code == 0, output[-3000:]
    losses = [record["loss"] for record in metrics_of(tmp_path / "run", "sft")]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    code, output = run(*words, f"run.folder={tmp_path / 'none'}")
    assert code == 2 and "has no demonstrations" in output and "data.columns.solution" in output
    assert not (tmp_path / "none").exists()
