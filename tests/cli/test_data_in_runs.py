"""Runs on tasks and files: they train with their verifier in workers, a file's order resumes, what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import PROJECT, QUICKSTART, TINY, metrics_of, run, without_times

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
            'data.template="{{ question }} ="',
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
        (("rewards.kind=math",), "rewards.kind=math with data.source=reach"),
        (("data.source=arithmetic",), "rewards.kind=reach with data.source=arithmetic"),
        (("data.source=nowhere.jsonl", "rewards.kind=math"), "data.source=nowhere.jsonl needs a tokenizer"),
        (("data.preset=gsm8k",), "data.preset=gsm8k with data.source=reach"),
        (("data.preset=gsm9k",), "data.preset=gsm9k is not a preset"),
        (("rewards.kind=code",), "rewards.kind=code runs what the model wrote"),
        (("rewards.kind=absent:verify",), "module absent cannot be imported"),
    ],
)
def test_what_does_not_fit_is_one_line(words: tuple[str, ...], message: str) -> None:
    code, output = run("train", str(QUICKSTART), *TINY, *words)
    assert code in (1, 2)
    assert message in output and "Traceback" not in output
