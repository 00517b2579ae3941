"""Prompts come in an endless order that does not depend on how it is cut; JSON lines are read whole or refused by line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.data import DataConfig, PromptCounts, PromptSource, load_prompts, reach
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.experience import Prompt

TOKENIZER = reach.build_tokenizer()
SOURCE = PromptSource(
    training=[Prompt(index, str(index), (index,), "") for index in range(13)],
    held_out=[],
    tokenizer=TOKENIZER,
    longest_prompt=1,
    counts=PromptCounts(),
)


def indices(count: int, start: int, seed: int = 5) -> list[int]:
    return [prompt.index for prompt in SOURCE.draw(count, start=start, seed=seed)]


@given(cuts=st.lists(st.integers(0, 20), min_size=1, max_size=8), start=st.integers(0, 60))
def test_small_draws_make_up_the_large_one(cuts: list[int], start: int) -> None:
    pieces, place = [], start
    for count in cuts:
        pieces += indices(count, place)
        place += count
    assert pieces == indices(sum(cuts), start) == indices(place, 0)[start:]


def test_each_epoch_is_another_order_of_all_prompts() -> None:
    epochs = [tuple(indices(13, 13 * epoch)) for epoch in range(20)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(13))
    assert len(set(epochs)) == 20
    assert indices(13, 0, seed=6) != indices(13, 0)


def write(path: Path, *lines: str) -> DataConfig:
    path.write_text("\n".join(lines), encoding="utf-8")
    return DataConfig(source=str(path), held_out=1)


def record(prompt: object = "from 3 to 4 :", answer: object = "3 4") -> str:
    return json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False)


def test_json_lines_are_read(tmp_path: Path) -> None:
    texts = [f"from {number} to 9 :" for number in range(3, 8)]
    config = write(tmp_path / "a.jsonl", *(record(text, f"{index}") for index, text in enumerate(texts)), "", "  ")
    source = load_prompts(config, TOKENIZER)
    prompts = sorted([*source.training, *source.held_out], key=lambda prompt: prompt.index)
    assert [(prompt.text, prompt.answer) for prompt in prompts] == [(text, f"{i}") for i, text in enumerate(texts)]
    assert all(list(prompt.tokens) == TOKENIZER(prompt.text)["input_ids"] for prompt in prompts)
    assert (len(source.training), len(source.held_out), source.demonstrator) == (4, 1, None)
    with pytest.raises(ConfigError, match=r"data\.source has no demonstrations"):
        source.demonstrations(1, step=0, seed=0)


def test_numbers_may_be_answers(tmp_path: Path) -> None:
    config = write(tmp_path / "a.jsonl", record(answer=7), record("from 3 to 5 :", answer=7))
    assert load_prompts(config, TOKENIZER).training[0].answer == "7"


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, character: str) -> None:
    text = f"from 3{character}to 4 :"
    source = load_prompts(write(tmp_path / "a.jsonl", record(text), record("from 4 to 4 :")), TOKENIZER)
    assert text in {prompt.text for prompt in [*source.training, *source.held_out]}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"prompt": "from"}',
        '{"answer": "3"}',
        "[]",
        "null",
        '"text"',
        record(None),
        record(3),
        record(""),
        record([]),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    config = write(tmp_path / "a.jsonl", record(), "", line, record())
    with pytest.raises(DataError, match=r"a\.jsonl line 3 has ") as caught:
        load_prompts(config, TOKENIZER)
    assert caught.value.hint


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl is not a file"):
        load_prompts(DataConfig(source=str(tmp_path / "nowhere.jsonl")), TOKENIZER)
    with pytest.raises(DataError, match="needs a tokenizer"):
        load_prompts(write(tmp_path / "a.jsonl", record()), None)
    with pytest.raises(DataError, match=r"has 1 prompts, data.held_out=1 leaves none"):
        load_prompts(write(tmp_path / "a.jsonl", record()), TOKENIZER)
    config = write(tmp_path / "a.jsonl", record(), record("from 3 to 4 : 5"))
    config.max_prompt_tokens = 5
    with pytest.raises(DataError, match=r"a\.jsonl line 2 has 6 tokens, more than data.max_prompt_tokens=5"):
        load_prompts(config, TOKENIZER)
    with pytest.raises(ConfigError, match=r"data\.held_out=-1"):
        DataConfig(held_out=-1)
