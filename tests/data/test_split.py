"""No question is both trained on and held out, however often the file asks it and however it is written."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prompt_files import TOKENIZER, write

from megatron_fork.data import DataConfig, load_prompts
from megatron_fork.data.config import GeneratorConfig
from megatron_fork.data.split import question_key, split_by_question
from megatron_fork.errors import DataError


@given(keys=st.lists(st.integers(0, 12), max_size=60), held_out=st.integers(1, 14), seed=st.integers(0, 5))
def test_parts_share_no_question(keys: list[int], held_out: int, seed: int) -> None:
    training, chosen = split_by_question(array("Q", keys), held_out, seed)
    asked = [keys[place] for place in chosen]
    assert len(set(asked)) == len(asked) == min(held_out, len(set(keys)))
    assert not set(asked) & {keys[place] for place in training}
    assert sorted(training) == [place for place, key in enumerate(keys) if key not in set(asked)]


@given(count=st.integers(2, 50), seed=st.integers(0, 5), data=st.data())
def test_different_questions_are_split_as_rows_are(count: int, seed: int, data: st.DataObject) -> None:
    """So that runs of sets without repeats keep their held-out prompts."""
    held_out = data.draw(st.integers(1, count - 1))
    places = array("L", range(count))
    random.Random(f"{seed}/held-out").shuffle(places)
    expected = places[held_out:], places[:held_out]
    assert split_by_question(array("Q", range(count)), held_out, seed) == expected


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_a_set_that_repeats_its_questions(tmp_path: Path, duplicates: str) -> None:
    """20 questions, each ten times, in other writing and with three answers."""
    forms = ("What is $%d + 1$?", "what is  %d+1", "What is %d + 1 ?")
    rows = [{"prompt": forms[n % 3] % (n % 20), "answer": str(n % 20 + n // 80)} for n in range(200)]
    config = DataConfig(source=write(tmp_path / "a.jsonl", *rows), held_out=10, duplicates=duplicates)
    source = load_prompts(config, TOKENIZER)
    asked = [question_key(prompt.text) for prompt in source.held_out]
    assert len(set(asked)) == len(asked) == 10
    trained = Counter(question_key(prompt.text) for prompt in source.training)
    assert len(trained) == 10 and not trained.keys() & set(asked)
    assert source.counts.of_held_out == source.counts.kept - len(source.training) - 10 > 0
    if duplicates == "keep":
        assert set(trained.values()) == {10} and source.counts.of_held_out == 90


def test_what_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"prompt": f"{n % 4}?", "answer": "1"} for n in range(40)])
    with pytest.raises(DataError, match=r"has 40 prompts with 4 different questions, data\.held_out=4 leaves none"):
        load_prompts(DataConfig(source=path, held_out=4), TOKENIZER)
    assert len(load_prompts(DataConfig(source=path, held_out=3), TOKENIZER).training) == 10


def test_generated_tasks_are_split_by_question_too() -> None:
    config = DataConfig(
        source="arithmetic", generator=GeneratorConfig(size=300, parameters={"terms": 2, "largest": 15}), held_out=50
    )
    source = load_prompts(config, None)
    assert not {prompt.text for prompt in source.held_out} & {prompt.text for prompt in source.training}
    assert (len(source.held_out), len(source.training)) == (50, 250)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is $1+1$?", "what is 1 + 1", True),
        ("Find x.", "Find  x", True),
        ("What is 3 - 4?", "What is 3 + 4?", False),
        ("What is 1.5?", "What is 15?", False),
        ("from 1 to 23", "from 12 to 3", False),
        ("sort: 1 23", "sort: 12 3", False),
        ("2(3+4)", "2*3+4", False),
        ("", " ", True),
    ],
)
def test_what_is_one_question(one: str, other: str, same: bool) -> None:
    assert (question_key(one) == question_key(other)) == same
