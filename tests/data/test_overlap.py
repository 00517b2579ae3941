"""What `megatron-fork data dedupe` and `decontaminate` leave out, leave in and count."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from megatron_fork.cli import guard
from megatron_fork.cli.commands import app
from megatron_fork.data.overlap import RowFile, decontaminate, deduplicate, named_file
from megatron_fork.errors import ConfigError, DataError

LONG = "Find the number of ordered pairs of positive integers whose product is three hundred and sixty and whose sum is even"


def write(path: Path, *rows: tuple[str, str]) -> RowFile:
    path.write_text("\n".join(json.dumps({"prompt": p, "answer": a, "kept": [1, None]}) for p, a in rows))
    return RowFile(path)


def questions(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_duplicates_and_conflicts(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        ("What is $1 + 1$?", "2"),
        ("Name a prime.", "2"),
        ("what is  1+1", "2"),
        ("Name a prime!", "3"),
        ("Largest digit?", "9"),
    )
    counts = deduplicate(source, tmp_path / "out.jsonl")
    assert questions(tmp_path / "out.jsonl") == ["What is $1 + 1$?", "Largest digit?"]
    assert (counts.rows, counts.kept, counts.duplicates, counts.conflicting) == (5, 2, 1, 2)
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["kept"] == [1, None]
    deduplicate(source, tmp_path / "out.jsonl", conflicts="first")
    assert questions(tmp_path / "out.jsonl") == ["What is $1 + 1$?", "Name a prime.", "Largest digit?"]


def test_contamination(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "evaluation.jsonl", (LONG + ".", "12"), ("What is 17 squared?", "289"))
    source = write(
        tmp_path / "a.jsonl",
        ("Warm up. " + LONG.upper() + ", and explain", "12"),
        (" ".join(LONG.split()[:12]), "1"),
        ("what is 17  squared", "289"),
        ("What is 17 squared? And what is 18 squared?", "289, 324"),
        ("Something else entirely", "0"),
    )
    counts = decontaminate(source, tmp_path / "out.jsonl", [evaluation], removed=tmp_path / "removed.jsonl")
    assert len(questions(tmp_path / "out.jsonl")) == 3
    assert (counts.rows, counts.kept, counts.removed, counts.evaluation_questions) == (5, 3, 2, 2)
    removed = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert [(each["row"].split()[-1], each["found_in"].split()[-1]) for each in removed] == [("1", "1"), ("3", "2")]
    assert decontaminate(source, tmp_path / "out.jsonl", [evaluation], ngram=8).removed == 3


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "answer": "a"}\n{')
    with pytest.raises(DataError, match="line 2"):
        decontaminate(RowFile(tmp_path / "a.jsonl"), tmp_path / "out.jsonl", [write(tmp_path / "e.jsonl", ("q", "1"))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "e.jsonl"]


def test_presets_name_columns(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "How many?", "answer": "#### 3"}')
    assert [question for _, question, _, _ in named_file(f"gsm8k_test:{tmp_path}", None, None).questions()] == [
        "How many?"
    ]
    with pytest.raises(ConfigError, match="nothing is not a preset"):
        named_file("nothing:somewhere", None, None)


def test_on_the_command_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", (LONG, "12"), ("p", "1"), ("p", "1"))
    write(tmp_path / "e.jsonl", (LONG, "12"))
    a, out = str(tmp_path / "a.jsonl"), str(tmp_path / "out.jsonl")
    done = CliRunner().invoke(app, ["data", "dedupe", a, out])
    assert done.exit_code == 0 and "rows 3, kept 2, duplicates 1, conflicting 0" in done.stdout
    done = CliRunner().invoke(app, ["data", "decontaminate", a, out, "--against", str(tmp_path / "e.jsonl")])
    assert done.exit_code == 0 and "rows 3, kept 2, removed 1, evaluation questions 1" in done.stdout
    assert questions(tmp_path / "out.jsonl") == ["p", "p"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dedupe", "nowhere.jsonl", "out.jsonl"], "nowhere.jsonl is not a file or folder"),
        (["dedupe", "A", "out.parquet"], "out.parquet would be written as JSON lines"),
        (["dedupe", "A", "out.jsonl", "--prompt", "question"], "has no column question; it has prompt, answer, kept"),
        (["decontaminate", "A", "out.jsonl", "--against", "A", "--ngram", "1"], "--ngram 1 would match single words"),
        (["dedupe", "A", "nowhere/out.jsonl"], "nowhere/out.jsonl cannot be written"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    from support.commands import run

    a = write(tmp_path / "a.jsonl", ("p", "1")).path
    code, output = run("data", *(str(a) if word == "A" else word for word in words))
    assert code in (1, 2)
    assert message in output and "Traceback" not in output
    assert len(output.strip().splitlines()) <= 3


def test_answers_of_every_type_are_compared_and_kept(tmp_path: Path) -> None:
    """These commands clean files: what a run refuses they still read, and a list is no other answer than itself."""
    answers = [None, None, ["1", "2"], ["1", "2"], {"tests": []}, 7, "7", '["1", "2"]', "8"]
    questions_of = ["a", "a", "b", "b", "c", "d", "d", "b", "d"]
    rows = [{"prompt": q, "answer": a} for q, a in zip(questions_of, answers, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = deduplicate(RowFile(tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [rows[0], rows[2], rows[4]]
    assert (counts.kept, counts.duplicates, counts.conflicting) == (3, 3, 3)


def test_nothing_is_written_as_python_prints_it(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4)
    for name, extra in (("dates", when), ("bytes", b"raw")):
        table = pyarrow.table({"prompt": ["a"], "answer": ["1"], "extra": [extra]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    deduplicate(RowFile(tmp_path / "dates.parquet"), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["extra"] == str(when)
    with pytest.raises(DataError, match="that JSON cannot hold: a bytes"):
        deduplicate(RowFile(tmp_path / "bytes.parquet"), tmp_path / "out.jsonl")


def test_the_named_columns_are_those_of_the_evaluation_set_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation rows need no answer, and a set with other columns is named by its own option."""
    words = " ".join(f"word{number}" for number in range(20))

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"q": words, "a": "1"}) + "\n" + json.dumps({"q": "else", "a": "2"})
    )
    (tmp_path / "same.jsonl").write_text(json.dumps({"q": words}) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps({"problem": words}) + "\n")

    def decontaminated(*options: str) -> tuple[int, str]:
        source, out = tmp_path / "train.jsonl", tmp_path / "out.jsonl"
        result = CliRunner().invoke(app, ["data", "decontaminate", str(source), str(out), "--prompt", "q", *options])
        return result.exit_code, result.output

    for options in (
        ["--against", str(tmp_path / "same.jsonl")],
        ["--against", str(tmp_path / "other.jsonl"), "--against-prompt", "problem"],
    ):
        code, output = decontaminated(*options)
        assert code == 0 and "rows 2, kept 1, removed 1" in output, output
    code, output = decontaminated("--against", str(tmp_path / "same.jsonl"), "--answer", "a")
    assert code == 1 and "same.jsonl line 1 has no column a" in output
