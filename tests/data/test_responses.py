"""Responses of any framework's files are read in the model's tokens; a file that may mean two things is refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from support.trace_files import TOKENIZER

from megatron_fork.data import GivenResponse, columns_named, read_responses
from megatron_fork.errors import DataError

PROMPT, FIRST, SECOND = "get 5 . need -6", "take op+1 get 11 .", "take op+10"
IDS = {text: TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in (PROMPT, FIRST, SECOND)}
USER, ASSISTANT = {"role": "user", "content": PROMPT}, {"role": "assistant", "content": FIRST}


def with_template() -> Any:
    import copy

    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} . {% endfor %}"
    return tokenizer


def read(tmp_path: Path, *rows: dict, tokenizer: Any = TOKENIZER, **columns: str) -> list[GivenResponse]:
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return list(read_responses(file, tokenizer, columns))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "response": FIRST, "reward": 1},
        {"question": PROMPT, "completion": FIRST, "score": 1.0},
        {"problem": PROMPT, "output": [FIRST], "is_correct": [True]},
        {"input": PROMPT, "output": FIRST, "score": 1},
        {"prompt": IDS[PROMPT], "response": IDS[FIRST], "reward": 1},
        {"prompt": PROMPT, "completion": [ASSISTANT], "reward": 1},
        {"prompt": PROMPT, "responses": [IDS[FIRST]], "rewards": [1]},
    ],
    ids=lambda row: " ".join(row),
)
def test_every_way_to_write_the_same(tmp_path: Path, row: dict) -> None:
    (found,) = read(tmp_path, row)
    assert (found.prompt_tokens, found.tokens, found.reward) == (IDS[PROMPT], IDS[FIRST], 1.0)
    assert found.text.split() == FIRST.split() and found.sample == 0


def test_several_responses_share_a_prompt(tmp_path: Path) -> None:
    found = read(tmp_path, {"prompt": PROMPT, "generations": [FIRST, SECOND], "reward": [1, None], "answer": 7})
    assert [each.sample for each in found] == [0, 1] and len({each.prompt_id for each in found}) == 1
    assert [each.tokens for each in found] == [IDS[FIRST], IDS[SECOND]]
    assert [each.reward for each in found] == [1.0, None] and found[0].answer == "7"


def test_chat_messages_take_the_template(tmp_path: Path) -> None:
    text = TOKENIZER(PROMPT + " . ", add_special_tokens=False)["input_ids"]
    for row in ({"messages": [USER, ASSISTANT]}, {"prompt": [USER], "response": FIRST}):
        (found,) = read(tmp_path, row, tokenizer=with_template())
        assert (found.prompt_tokens, found.tokens) == (text, IDS[FIRST])


def test_named_columns(tmp_path: Path) -> None:
    row = {"prompt": "other", "response": "other", "asked": PROMPT, "said": FIRST, "points": 0.5, "text": "x"}
    columns = columns_named("prompt=asked, response=said,reward=points")
    (found,) = read(tmp_path, row, **columns)
    assert (found.prompt_tokens, found.tokens, found.reward) == (IDS[PROMPT], IDS[FIRST], 0.5)


def test_parquet_and_arrays(tmp_path: Path) -> None:
    table = pa.table({"prompt": [PROMPT], "responses": [[FIRST, SECOND]], "rewards": [[1.0, 0.0]]})
    pa.parquet.write_table(table, tmp_path / "r.parquet")
    found = list(read_responses(tmp_path / "r.parquet", TOKENIZER))
    assert [each.tokens for each in found] == [IDS[FIRST], IDS[SECOND]]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": PROMPT, "question": PROMPT, "response": FIRST}, "the prompt may be in prompt or question"),
        ({"prompt": PROMPT, "response": FIRST, "output": FIRST}, "the response may be in response or output"),
        ({"text": PROMPT, "response": FIRST}, "has no prompt column that is known; it has text, response"),
        ({"prompt": PROMPT, "said": FIRST}, "has no response column that is known"),
        ({"prompt": [USER], "response": FIRST}, "holds chat messages, and the model has no chat template"),
        ({"messages": [ASSISTANT, USER]}, "has no response column"),
        ({"prompt": 3.5, "response": FIRST}, "has the prompt 3.5 in prompt"),
        ({"prompt": PROMPT, "response": {"a": 1}}, "has the response"),
        ({"prompt": PROMPT, "response": [9, 100_000]}, "response has token 100000, the tokenizer has 135"),
        ({"prompt": PROMPT, "responses": [FIRST, SECOND], "reward": [1]}, "has the reward"),
        ({"prompt": "", "response": FIRST}, "has an empty prompt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, row: dict, line: str) -> None:
    with pytest.raises(DataError, match=line) as error:
        read(tmp_path, row)
    assert "responses.jsonl" in error.value.message


def test_a_later_row_without_the_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2.* has no column response"):
        read(tmp_path, {"prompt": PROMPT, "response": FIRST}, {"prompt": PROMPT, "output": FIRST})


@pytest.mark.parametrize("text", ["question=x", "prompt", "prompt=", "=x", "prompt=a,prompt=b", "prompt=a,response=a"])
def test_columns_that_name_nothing(text: str) -> None:
    with pytest.raises(DataError, match="--columns="):
        columns_named(text)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for name, line in (("none.jsonl", "is not a file"), ("a.txt", "has the suffix")):
        with pytest.raises(DataError, match=line):
            list(read_responses(tmp_path / name, TOKENIZER))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"reward": float("nan")}, {"reward": 1.0}], "line 1 has the reward nan in reward"),
        ([{"reward": None}, {"reward": float("inf")}], "line 2 has the reward inf in reward"),
        ([{"reward": 10**400}], "line 1 has the reward 1000"),
        ([{"score": "good"}], "line 1 has the reward 'good' in score"),
        ([{"score": {"a": 1}}], "line 1 has the reward"),
        ([{"reward": 1, "score": 0}], "line 1: the reward may be in reward or score"),
        ([{"answer": "1", "ground_truth": "2"}], "line 1: the answer may be in answer or ground_truth"),
        ([{}, {"reward": 1}], "line 2 has the column reward, which the first row has not"),
        ([{}, {"answer": "1"}], "line 2 has the column answer, which the first row has not"),
        ([{"response": []}], "line 1 has an empty list in response"),
        ([{"response": [4, -5]}], "line 1: response has token -5"),
        ([{"response": [10**30]}], "line 1: response has token 1000"),
        ([{"prompt": [10**30]}], "line 1: prompt has token 1000"),
        ([{"response": "a\ud800"}], "line 1: response has half of a character"),
        ([{"prompt": "a\udfff"}], "line 1: prompt has half of a character"),
        ([{"prompt": [USER, {"role": "user", "content": "\ud800"}]}], "line 1: prompt has half of a character"),
        ([{"response": [ASSISTANT, USER, ASSISTANT]}], "response has messages of assistant, user, assistant"),
        ([{"response": [USER]}], "response has messages of user, not one of the assistant"),
    ],
    ids=str,
)
def test_no_value_is_lost_or_guessed(tmp_path: Path, rows: list[dict], line: str) -> None:
    """What decides is every row, not the first one alone."""
    with pytest.raises(DataError, match=line) as error:
        read(tmp_path, *({"prompt": PROMPT, "response": FIRST, **row} for row in rows), tokenizer=with_template())
    assert error.value.hint


def test_rewards_as_text_and_none_on_request(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        f"prompt,response,reward\n{PROMPT},{FIRST},1\n{PROMPT},{FIRST},False\n{PROMPT},{FIRST},\n"
    )
    assert [each.reward for each in read_responses(tmp_path / "r.csv", TOKENIZER)] == [1.0, 0.0, None]
    row = {"prompt": PROMPT, "response": FIRST, "score": "good", "answer": "1", "ground_truth": ["2"]}
    (found,) = read(tmp_path, row, **columns_named("reward=,answer=ground_truth"))
    assert found.reward is None and found.answer == '["2"]'


def test_samples_are_counted_over_the_rows(tmp_path: Path) -> None:
    """Most files have one response a row."""
    rows = [{"prompt": asked, "response": FIRST} for asked in (PROMPT, "from 1", PROMPT, PROMPT, "from 1")]
    assert [each.sample for each in read(tmp_path, *rows)] == [0, 0, 1, 2, 1]
    assert [each.place.rpartition(" ")[2] for each in read(tmp_path, *rows)] == ["1", "2", "3", "4", "5"]


def test_a_question_has_one_name_whatever_the_template(tmp_path: Path) -> None:
    (plain,) = read(tmp_path, {"prompt": PROMPT, "response": FIRST})
    (chat,) = read(tmp_path, {"messages": [USER, ASSISTANT]}, tokenizer=with_template())
    assert chat.prompt != plain.prompt and chat.prompt_id == plain.prompt_id


def test_a_folder_of_shards_is_one_file_after_another(tmp_path: Path) -> None:
    for number, response in enumerate((FIRST, SECOND)):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"prompt": PROMPT, "response": response}))
    found = list(read_responses(tmp_path, TOKENIZER))
    assert [(each.sample, each.tokens) for each in found] == [(0, IDS[FIRST]), (1, IDS[SECOND])]


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "from 1", "response": "a", "more": {"x": 1, "x": 2}}')
    with pytest.raises(DataError, match=r"r\.jsonl line 1 .*'x' is there twice"):
        list(read_responses(tmp_path / "r.jsonl", TOKENIZER))
    columns = [pa.array([PROMPT]), pa.array([FIRST]), pa.array([SECOND])]
    pa.parquet.write_table(pa.Table.from_arrays(columns, ["prompt", "response", "response"]), tmp_path / "r.parquet")
    with pytest.raises(DataError, match="several columns of one name"):
        list(read_responses(tmp_path / "r.parquet", TOKENIZER))


def test_a_value_that_python_has_no_type_for_is_told(tmp_path: Path) -> None:
    times = pa.array([2**62], pa.timestamp("ns"))
    pa.parquet.write_table(pa.table({"prompt": [PROMPT], "response": [FIRST], "when": times}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r\.parquet cannot be read after row 0"):
        list(read_responses(tmp_path / "r.parquet", TOKENIZER))
