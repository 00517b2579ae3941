"""Every answer column gives answers that a verifier judges right, or a refusal by row and value: never Python's own text."""

from __future__ import annotations

import csv
import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prompt_files import TOKENIZER, everything, write

from megatron_fork.data import DataConfig, load_prompts
from megatron_fork.data.answers import NO_ANSWER, AnswerReader, NoAnswer, boxed_answers, reader
from megatron_fork.data.columns import Columns
from megatron_fork.errors import DataError
from megatron_fork.rewards import Reference, RewardPool, RewardsConfig, read_reference, score


def reads(**settings: Any) -> AnswerReader:
    return reader("answer", **{"form": "whole", "lists": "alternatives", "boxes": "refuse", **settings})


NONE = [
    *(None, "", " ", "\n\t", math.nan, math.inf, Decimal("NaN"), [], [None], ["34", None], ["34", " "], {}),
    *(
        "NaN",
        "nan",
        "None",
        "null",
        "N/A",
        "proof",
        "Proof.",
        "see  solution",
        "notfound",
        "(proof)",
        "$None$",
        '["proof"]',
    ),
]


@pytest.mark.parametrize("value", [value for value in NONE if value != {}], ids=repr)
def test_what_is_no_answer_is_none(value: Any) -> None:
    with pytest.raises(NoAnswer) as caught:
        reads().read(value, "a.jsonl line 3")
    message, hint = caught.value.args
    assert message.startswith("a.jsonl line 3 has no answer in answer: ") and repr(value)[:20] in message
    assert "data.unanswered=drop" in hint


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("34", ("34",)),
        (" 34\n", (" 34\n",)),
        (34, ("34",)),
        (0, ("0",)),
        (34.0, ("34.0",)),
        (1e-05, ("0.00001",)),
        (1e22, ("10000000000000000000000",)),
        (Decimal("1E+3"), ("1000",)),
        (True, ("true",)),
        (["34"], ("34",)),
        (["34", "34", 35], ("34", "35")),
        ('["34"]', ("34",)),
        ('["34", "35"]', ("34", "35")),
        (' ["34", 35.0] ', ("34", "35.0")),
        ("['34', 'a\"b']", ("34", 'a"b')),
        ("[1, 2]", ("[1, 2]",)),
        ("[0,1)", ("[0,1)",)),
        ("{1, 2}", ("{1, 2}",)),
        (r"\text{None}", (r"\text{None}",)),
        ("none of them", ("none of them",)),
        ('{"tests": []}', ('{"tests": []}',)),
    ],
)
def test_answers_are_text(value: Any, texts: tuple[str, ...]) -> None:
    assert reads().read(value, "here") == texts


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"target": ["a"]}, "an object"),
        ({}, "an object"),
        ([["34"]], "a list in a list"),
        ([{"a": 1}], "an object"),
        (b"34", "bytes"),
        (datetime.datetime(2026, 1, 2), "a time"),
        ("['34' '35']", "looks like a list"),
        ('["34", ', "looks like a list"),
        ({"tests": [{"input": b"1"}]}, "that JSON cannot hold"),
        ({"tests": [{"input": math.nan}]}, "that JSON cannot hold"),
    ],
)
def test_what_cannot_be_an_answer_is_refused_by_row_column_and_value(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl line 3 has .*answer.*: ") as caught:
        reads().read(value, "a.jsonl line 3")
    shown = value.strip() if isinstance(value, str) else value[0] if isinstance(value, list) else value
    assert said in caught.value.message and caught.value.message.endswith(repr(shown))
    assert caught.value.hint


SCALARS = st.text(max_size=8) | st.integers() | st.booleans() | st.floats() | st.none()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=6
)


@given(value=VALUES, lists=st.sampled_from(["alternatives", "parts", "json"]))
def test_no_value_becomes_what_python_prints(value: Any, lists: Any) -> None:
    try:
        texts = reads(lists=lists).read(value, "here")
    except (NoAnswer, DataError):
        return
    assert texts and all(text.strip() for text in texts)
    if isinstance(value, list | dict):
        if lists == "json":
            json.loads(texts[0])
        elif isinstance(value, list):
            assert not any(isinstance(entry, list | dict) for entry in value)
    assert not isinstance(value, float) or "e" not in texts[0]


def test_parts_and_json() -> None:
    assert reads(lists="parts").read(["2", "$-3$"], "here") == ("2, $-3$",)
    assert reads(lists="parts").read('["2", "-3"]', "here") == ("2, -3",)
    assert reads(lists="json").read(["2", "é"], "here") == ('["2", "é"]',)
    assert reads(lists="json").read({"target": ["a"], "other": None}, "here") == ('{"target": ["a"]}',)
    assert reads(lists="json").read('["34"]', "here") == ('["34"]',)
    with pytest.raises(NoAnswer):
        reads(lists="json").read([], "here")


def test_words_for_none_can_be_chosen() -> None:
    assert reads(no_answer=[]).read("None", "here") == ("None",)
    with pytest.raises(NoAnswer):
        reads(no_answer=["Left to the reader"]).read("left to the reader.", "here")


@pytest.mark.parametrize(
    ("solution", "boxes"),
    [
        (r"So \boxed{2}.", ["2"]),
        (r"So $\boxed 2$.", ["2"]),
        (r"So $x = \boxed  \frac12$ holds.", [r"\frac12"]),
        (r"\[\boxed 2\] and so on", ["2"]),
        (r"The answer is \boxed 2. Then we rest.", ["2"]),
        (r"\fbox{2}", ["2"]),
        (r"\fbox 2", ["2"]),
        (r"\boxed {\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"$x=\boxed{1}$ and $y=\boxed{2}$", ["1", "2"]),
        (r"\boxed{1}, that is \boxed{ 1 }", ["1"]),
        (r"\boxed{2 and \boxed{3}", ["3"]),
        (r"\boxed{x = \boxed{3}}", [r"x = \boxed{3}"]),
        (r"\boxedeq{2}, \boxed", []),
        ("nothing", []),
    ],
)
def test_boxes(solution: str, boxes: list[str]) -> None:
    assert boxed_answers(solution) == boxes


@given(answers=st.lists(st.sampled_from(["2", r"\frac{1}{2}", r"\{3\}", "x+1", r"\sqrt{2}"]), min_size=1, unique=True))
def test_every_box_is_found_in_every_form(answers: list[str]) -> None:
    for form in (r"$\boxed{%s}$", r"$\fbox{%s}$", r"$\boxed %s$", r"\(\fbox %s\)"):
        assert boxed_answers(" and ".join(form % answer for answer in answers)) == answers


def test_several_boxes_are_not_lost_unsaid() -> None:
    solution = r"$x=\boxed{1}$ and $y=\boxed{2}$"
    with pytest.raises(DataError, match=r"here has in answer 2 different boxes: '1, 2'") as caught:
        reads(form="boxed").read(solution, "here")
    assert "data.boxes=last" in caught.value.hint
    assert reads(form="boxed", boxes="last").read(solution, "here") == ("2",)
    assert reads(form="boxed", boxes="all").read(solution, "here") == ("1, 2",)
    for empty in (r"so \boxed{}", "no box", r"\boxed{proof}"):
        with pytest.raises(NoAnswer):
            reads(form="boxed").read(empty, "here")


MIXED = [
    *("34", None, "", math.nan, "proof", ["34"], ["34", "35"], 34.0, 7, True, "NaN"),
]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_rows_without_an_answer_are_refused_or_dropped(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"Question {n}?", "answer": value} for n, value in enumerate(MIXED)]
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=rf"a\.{suffix} (line|entry) 2 has no answer in answer: None"):
        load_prompts(DataConfig(source=str(path), held_out=1), TOKENIZER)
    source = load_prompts(DataConfig(source=str(path), held_out=1, unanswered="drop", rows=11), TOKENIZER)
    assert [read_reference(prompt.answer).answers for prompt in everything(source)] == [
        *(("34",), ("34",), ("34", "35"), ("34.0",), ("7",), ("true",)),
    ]
    assert "5 without an answer dropped, 1 with several answers, any of which is right" in str(source.counts)


@pytest.mark.parametrize(
    "column",
    [["34", None, "35"], [34.0, math.nan, 35.0], [34, None, 35], [["34"], [], ["35"]], ["34", " ", "35"]],
    ids=repr,
)
def test_columnar_files(tmp_path: Path, column: list[Any]) -> None:
    table = pyarrow.table({"prompt": ["a?", "b?", "c?"], "answer": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 2 has no answer in answer: "):
        load_prompts(DataConfig(source=str(tmp_path / "a.parquet"), held_out=1), TOKENIZER)
    config = DataConfig(source=str(tmp_path / "a.parquet"), held_out=1, unanswered="drop")
    prompts = everything(load_prompts(config, TOKENIZER))
    assert [score(rf"\boxed{{{n}}}", prompt.answer).value for n, prompt in zip((34, 35), prompts, strict=True)] == [
        1,
        1,
    ]


def test_csv(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "answer"), ("a?", "34"), ("b?", ""), ("c?", "nan"), ("d?", "['7']")])
    config = DataConfig(source=str(tmp_path / "a.csv"), held_out=1, unanswered="drop")
    assert [prompt.answer for prompt in everything(load_prompts(config, TOKENIZER))] == ["34", "7"]


@pytest.mark.parametrize(
    ("value", "right", "wrong"),
    [
        (34.0, "34", "34.5"),
        (34, "34.0", "35"),
        (1e-05, "0.00001", "1"),
        (True, r"\text{True}", r"\text{False}"),
        ('["34"]', "34", "35"),
        (["34", r"\frac{1}{2}"], "0.5", "34.5"),
    ],
)
def test_the_verifier_judges_right(tmp_path: Path, value: Any, right: str, wrong: str) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a?", "answer": value}, {"prompt": "b?", "answer": "1"})
    answer = everything(load_prompts(DataConfig(source=path, held_out=1), TOKENIZER))[0].answer
    assert [score(rf"\boxed{{{said}}}", answer).value for said in (right, wrong)] == [1.0, 0.0]


def test_tests_of_a_program_may_be_an_object(tmp_path: Path) -> None:
    answer = {"tests": [{"input": "1 2", "output": "3"}]}
    table = pyarrow.Table.from_pylist(
        [{"prompt": "a?", "answer": answer}, {"prompt": "b?", "answer": {**answer, "seconds": 2.0}}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    prompts = everything(load_prompts(DataConfig(source=str(tmp_path / "a.parquet"), held_out=1), TOKENIZER))
    assert json.loads(prompts[0].answer) == answer and json.loads(prompts[1].answer)["seconds"] == 2.0
    program = "```python\nprint(sum(map(int, input().split())))\n```"
    config = RewardsConfig(kind="code", allow_code=True, timeout_seconds=20.0)
    with RewardPool(config) as pool:
        if not any("seccomp" in line for line in (pool.warm(), pool.confinement)[1]):
            pytest.skip("no seccomp here")
        assert [result.value for result in pool.score_many([(program, p.answer) for p in prompts])] == [1.0, 1.0]


def test_a_verifier_gets_what_it_takes_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a?", "answer": ["1", "2"], "data_source": "mine", "extra_info": {"index": 7, "x": None}},
        {"prompt": "b?", "answer": "3"},
    ]
    path = write(tmp_path / "a.jsonl", *rows)
    prompts = everything(load_prompts(DataConfig(source=path, held_out=1), TOKENIZER, with_rows=True))
    assert [read_reference(prompt.answer) for prompt in prompts] == [
        Reference(("1", "2"), "mine", {"index": 7, "x": None}),
        Reference(("3",), path, None),
    ]
    assert everything(load_prompts(DataConfig(source=path, held_out=1), TOKENIZER))[1].answer == "3"


@pytest.mark.parametrize("task", ["reach", "arithmetic"])
def test_generated_tasks_demonstrate_also_for_such_a_verifier(task: str) -> None:
    plain, carrying = (load_prompts(DataConfig(source=task), None, with_rows=carries) for carries in (False, True))
    assert read_reference(carrying.training[0].answer) == Reference((plain.training[0].answer,), task)
    drawn = (source.demonstrations(5, step=0, seed=1) for source in (plain, carrying))
    first, second = ([each.response for each in demonstrations] for demonstrations in drawn)
    assert first == second


def test_the_answer_column_may_lie_deep(tmp_path: Path) -> None:
    row = {"prompt": "a?", "reward_model": {"ground_truth": '["34"]', "style": "rule"}}
    path = write(tmp_path / "a.jsonl", row, {**row, "prompt": "b?"})
    deep = Columns(answer="reward_model.ground_truth")
    assert load_prompts(DataConfig(source=path, held_out=1, columns=deep), TOKENIZER).training[0].answer == "34"
    with pytest.raises(DataError, match=r"line 1 has in reward_model an object") as caught:
        load_prompts(DataConfig(source=path, held_out=1, columns=Columns(answer="reward_model")), TOKENIZER)
    assert "reward_model.ground_truth" in caught.value.hint


def test_no_word_for_none_is_there_twice() -> None:
    assert len(set(NO_ANSWER)) == len(NO_ANSWER)
