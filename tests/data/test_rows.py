"""The same rows come out of every format, one by one; what cannot be read is named by file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_fork.data.rows import data_files, read_rows
from megatron_fork.errors import DataError

ROWS = [{"question": f'What is {n} + 1?\nSay, \u2028in "words"', "answer": str(n + 1)} for n in range(2500)]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = pyarrow.Table.from_pylist(rows)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=700)
        else:
            with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=600)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", ROWS)
    placed = list(read_rows(path))
    assert [row for _, row in placed] == ROWS
    assert all(str(path) in place for place, _ in placed)
    assert len({place for place, _ in placed}) == len(ROWS)


@pytest.mark.parametrize(
    ("suffix", "answer"),
    [(".csv", text) for text in ("007", "1.50", "NA", "null", "True", "1e3", "2024-01-02", " 7 ")]
    + [(suffix, text) for suffix in (".jsonl", ".json", ".parquet", ".arrow") for text in ("2024-01-02", "007", "NA")]
    + [(suffix, 10**30 + 7) for suffix in (".jsonl", ".json")],
)
def test_an_answer_is_what_the_file_says(tmp_path: Path, suffix: str, answer: str | int) -> None:
    """Nothing is taken for a number, a date or a gap that is a text there, and no number is rounded."""
    path = write(tmp_path / f"a{suffix}", [{"prompt": "x", "answer": answer}])
    (row,) = (row for _, row in read_rows(path))
    assert row == {"prompt": "x", "answer": answer} and type(row["answer"]) is type(answer)


def test_a_folder_as_hugging_face_repositories_are(tmp_path: Path) -> None:
    for name, rows in (("algebra", ROWS[:5]), ("geometry", ROWS[5:9])):
        write(tmp_path / name / "train-00000-of-00001.parquet", rows)
        write(tmp_path / name / "test-00000-of-00001.parquet", ROWS[20:23])
    write(tmp_path / ".cache" / "train.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("# train")
    assert [row for _, row in read_rows(tmp_path, "train", "*")] == ROWS[:9]
    assert [row for _, row in read_rows(tmp_path, "test", "*")] == ROWS[20:23] * 2
    assert [row for _, row in read_rows(tmp_path, "train", "geometry")] == ROWS[5:9]
    with pytest.raises(DataError, match=r"has several subsets; there are: algebra, geometry") as caught:
        list(read_rows(tmp_path, "train"))
    assert "data.subset" in caught.value.hint
    with pytest.raises(DataError, match=r"has several splits; there are: test, train") as caught:
        list(read_rows(tmp_path, subset="algebra"))
    assert "data.split" in caught.value.hint
    with pytest.raises(DataError, match=r"no split 'dev'"):
        list(read_rows(tmp_path, "dev", "*"))


def test_one_split_needs_no_name(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[5:9])
    write(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:5])
    assert [row for _, row in read_rows(tmp_path)] == ROWS[:9]


def test_a_folder_that_datasets_has_saved(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:700]), ("test", ROWS[700:800])):
        write(tmp_path / split / "data-00000-of-00001.arrow", rows)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [row for _, row in read_rows(tmp_path, "train")] == ROWS[:700]
    assert [row for _, row in read_rows(tmp_path / "test")] == ROWS[700:800]
    with pytest.raises(DataError, match="several splits"):
        data_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl line 3 has no readable JSON"),
        ("a.jsonl", b'{"a": 1}\n\xff\xfe\n', r"a\.jsonl line 2 has no readable JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl line 2 has a list instead of an object"),
        ("a.json", b'[{"a": 1}, 3]', r"a\.json entry 2 has a int instead of an object"),
        ("a.json", b'[{"a": 1},', r"a\.json is not readable JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv line 3 has more or fewer fields"),
        ("a.csv", b"a,b\n1\n", r"a\.csv line 2 has more or fewer fields"),
        ("a.csv", b"a,b\n1,\xff\n", r"a\.csv line \d has no readable CSV"),
        ("a.parquet", b"PAR1 no more", r"a\.parquet cannot be read after row 0"),
        ("a.arrow", b"nothing of Arrow", r"a\.arrow cannot be read after row 0"),
        ("a.jsonl", b"\n \n", r"a\.jsonl has no rows"),
        ("a.jsonl", b"", r"a\.jsonl has no rows"),
        ("a.csv", b"a,b\n", r"a\.csv has no rows"),
        ("a.txt", b"hello", r"a\.txt has the suffix '\.txt'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert caught.value.hint


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no data files"):
        list(read_rows(tmp_path))


def test_rows_are_not_read_ahead(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 3 + b"broken\n")
    rows = read_rows(path)
    assert [next(rows)[1] for _ in range(3)] == [{"a": 1}] * 3
    with pytest.raises(DataError, match="line 4"):
        next(rows)
