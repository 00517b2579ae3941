"""A trace file gives back what was written, exactly; what is damaged, or not what its columns say, is an error by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trace_files import as_row

from megatron_fork.errors import TraceError
from megatron_fork.traces import COLUMNS, KINDS, Origin, TracedResponse, TraceWriter, open_traces, write_traces

ORIGIN = Origin(model="m", tokenizer="f00d", vocab_size=97, temperature=0.7, written_by="test")
# Two strings that are not UTF-8, as a program may write them that checks nothing.
NO_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"a"]).buffers())
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
texts = st.text(max_size=12)


@st.composite
def responses(draw: st.DrawFn) -> TracedResponse:
    count = draw(st.integers(0, 5))

    def column(of: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.lists(of, min_size=count, max_size=count))

    return TracedResponse(
        set=draw(texts),
        prompt_id=draw(texts),
        prompt=draw(texts),
        prompt_tokens=draw(st.lists(st.integers(0, 96), max_size=4)),
        answer=draw(texts),
        sample=draw(st.integers(0, 9)),
        response=draw(texts),
        tokens=draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count)),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        kind=draw(st.sampled_from(KINDS)),  # type: ignore[arg-type]
        token_texts=column(st.binary(max_size=3).map(lambda part: part.decode(errors="surrogateescape"))),
        entropy=column(st.floats(0, 12, width=32)),
        logprob=column(st.floats(-100, 0, width=32)),
        selected=column(st.booleans()),
        weight_version=column(st.integers(0, 10**6)),
        reward=draw(st.none() | finite),
        reason=draw(texts),
        failure=draw(st.none() | st.sampled_from(["error", "timed_out", "died"])),
        step=draw(st.none() | st.integers(0, 10**6)),
        number=draw(st.none() | st.integers(0, 10**6)),
        advantage=draw(st.none() | finite),
    )


def some(count: int = 3) -> list[TracedResponse]:
    return [
        TracedResponse(
            set="s",
            prompt_id=f"p{number // 2}",
            prompt="1 + 1 =",
            prompt_tokens=[1, 2],
            answer="2",
            sample=number % 2,
            response="two",
            tokens=[3, 4, 5],
            finish_reason="stop",
            kind="evaluation",
            entropy=[0.0, 0.5, 1.5],
            logprob=[-0.125, -0.25, -0.5],
            reward=1.0,
        )
        for number in range(count)
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for part in open_traces(path).parts() for row in part.table.to_pylist()]


@given(rows=st.lists(responses(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[TracedResponse]) -> None:
    """But for lone surrogates in texts, which UTF-8 does not have."""
    path = tmp_path_factory.mktemp("traces") / "t.parquet"
    write_traces(path, rows, ORIGIN)
    assert open_traces(path).origin == ORIGIN
    assert rows_of(path) == [as_row(row) for row in rows]


def test_columns_are_flat_and_have_their_lengths(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", some(), ORIGIN)
    (part,) = open_traces(tmp_path / "t.parquet").parts(["entropy"])
    assert part.lengths.tolist() == [3, 3, 3]
    assert part.flat("entropy").tolist() == [0.0, 0.5, 1.5] * 3
    assert part.table.column_names == ["tokens", "entropy"]


def test_row_groups_are_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_fork.traces.writing._TOKENS_PER_ROW_GROUP", 6)
    write_traces(tmp_path / "t.parquet", some(5), ORIGIN)
    assert [len(part) for part in open_traces(tmp_path / "t.parquet").parts()] == [2, 2, 1]


def test_other_programs_may_write_it_again(tmp_path: Path) -> None:
    """Without metadata, with wider numbers and with dictionaries, as pandas and `datasets` do."""
    write_traces(tmp_path / "t.parquet", some(), ORIGIN)
    table = pa.parquet.read_table(tmp_path / "t.parquet").replace_schema_metadata(None)
    table = table.drop_columns(["token_texts", "selected", "advantage"])
    wide = table.set_column(
        table.schema.get_field_index("tokens"), "tokens", table["tokens"].cast(pa.large_list(pa.int64()))
    )
    pa.parquet.write_table(wide, tmp_path / "again.parquet")
    assert open_traces(tmp_path / "again.parquet").origin == Origin()
    assert rows_of(tmp_path / "again.parquet") == [as_row(row) for row in some()]


def changed(tmp_path: Path, name: str, values: Any) -> Path:
    write_traces(tmp_path / "t.parquet", some(2), ORIGIN)
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    index = table.schema.get_field_index(name)
    table = table.drop_columns([name]) if values is None else table.set_column(index, name, values)
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        ("tokens", None, "has no column tokens"),
        ("reward", pa.array(["1", "0"]), "column reward holds string"),
        ("tokens", pa.array([[1, 2, 3], [1.5]]), "column tokens holds list"),
        ("entropy", pa.array([[0.1, 0.2], [0.1, 0.2, 0.3]]), "response 0: entropy has 2 entries for 3 tokens"),
        ("entropy", pa.array([[0.1, 0.2, -3.0], None]), "entropy holds -3.0"),
        ("entropy", pa.array([[0.1, 0.2, float("nan")], None]), "entropy holds nan"),
        ("logprob", pa.array([[-0.1, -0.2, float("nan")], None]), "response 0: logprob holds nan"),
        ("logprob", pa.array([None, [-0.1, 0.5, 0.0]]), "response 1: logprob holds 0.5"),
        ("entropy", pa.array([[0.1, None, 0.2], None]), "response 0: entropy has an empty entry"),
        ("tokens", pa.array([[1, 2, -3], [1, 2, 3]]), "tokens holds -3"),
        ("reward", pa.array([1.0, float("inf")]), "reward holds inf"),
        ("kind", pa.array(["evaluation", "other"]), "kind='other' is none of"),
        ("prompt", pa.array(["a", None]), "response 1 has no prompt"),
        ("tokens", pa.array([[2**40, 2, 3], [1, 2, 3]]), "column tokens: Integer value 1099511627776"),
        ("tokens", pa.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), "column tokens holds list"),
        ("step", pa.array([1.5, None]), "column step: Float value 1.5"),
        ("entropy", pa.array([[True] * 3, None]), "column entropy holds list<.*bool"),
        ("prompt", NO_UTF8, "column prompt: .*UTF8"),
    ],
)
def test_what_a_column_cannot_hold_is_named(tmp_path: Path, name: str, values: Any, line: str) -> None:
    path = changed(tmp_path, name, values)
    with pytest.raises(TraceError, match=line) as error:
        rows_of(path)
    assert str(path) in error.value.message


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", some(2), ORIGIN)
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    for name in table.column_names:
        pa.parquet.write_table(table.append_column(name, table[name]), tmp_path / "twice.parquet")
        with pytest.raises(TraceError, match=f"has the column {name} more than once"):
            open_traces(tmp_path / "twice.parquet")


def test_messages_number_the_responses_of_the_file_and_not_of_a_part(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", some(5), ORIGIN)
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    rewards = pa.array([0.0, 1.0, 0.0, float("nan"), 1.0])
    table = table.set_column(table.schema.get_field_index("reward"), "reward", rewards)
    pa.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    with pytest.raises(TraceError, match="response 3: reward holds nan"):
        rows_of(tmp_path / "t.parquet")
    assert [part.first for part in open_traces(tmp_path / "t.parquet").parts(["tokens"])] == [0, 2, 4]


WRITTEN_BY_OTHERS = {
    "text views": ("prompt", lambda column: column.cast(pa.string_view())),
    "whole numbers as floats, since some are missing": ("step", lambda column: column.cast(pa.float64())),
    "rewards as whole numbers": ("reward", lambda column: column.cast(pa.int64())),
    "rewards as decimals": ("reward", lambda column: column.cast(pa.decimal128(5, 2))),
    "rewards as flags": ("reward", lambda column: column.cast(pa.bool_())),
    "lists of one length": ("prompt_tokens", lambda column: column.cast(pa.list_(pa.int32(), 2))),
    "small floats": ("entropy", lambda column: pa.array(_halves(column), pa.list_(pa.float16()))),
    "bytes as text": ("token_texts", lambda column: column.cast(pa.list_(pa.string()))),
    "unsigned": ("tokens", lambda column: column.cast(pa.large_list(pa.uint16()))),
}


def _halves(column: Any) -> Any:
    return [row and np.asarray(row, np.float16) for row in column.to_pylist()]


@pytest.mark.parametrize("how", WRITTEN_BY_OTHERS)
def test_what_other_programs_write_for_the_same_values_is_the_same(tmp_path: Path, how: str) -> None:
    rows = [replace(each, reward=1.0, entropy=each.entropy and [0.5] * len(each.tokens)) for each in some(4)]
    rows[0] = replace(rows[0], step=3)
    name, other = WRITTEN_BY_OTHERS[how]
    write_traces(tmp_path / "t.parquet", rows, ORIGIN)
    before = rows_of(tmp_path / "t.parquet")
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    column = other(table[name])
    table = table.set_column(table.schema.get_field_index(name), name, column)
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    assert pa.parquet.read_schema(tmp_path / "t.parquet").field(name).type == column.type
    assert rows_of(tmp_path / "t.parquet") == before


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_temperature_that_is_none_is_named(tmp_path: Path, temperature: Any) -> None:
    write_traces(tmp_path / "t.parquet", some(2), replace(ORIGIN, temperature=temperature))
    with pytest.raises(TraceError, match="temperature="):
        open_traces(tmp_path / "t.parquet")


def test_the_same_file_is_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "t.parquet"
    write_traces(path, some(2), ORIGIN)
    (tmp_path / "link.parquet").symlink_to(path)
    for places in ([path, path], [tmp_path, path], [tmp_path, tmp_path / "traces"], [path, tmp_path / "link.parquet"]):
        with pytest.raises(TraceError, match=r"t\.parquet is among the traces twice"):
            open_traces(*places)


def test_files_of_several_temperatures_have_none(tmp_path: Path) -> None:
    for number, temperature in enumerate((0.7, 1.0)):
        write_traces(tmp_path / f"{number}.parquet", some(2), replace(ORIGIN, temperature=temperature))
    assert open_traces(tmp_path / "0.parquet").temperature == 0.7
    with pytest.raises(TraceError, match=r"1.parquet is of temperature 1, .*0.parquet of 0.7"):
        _ = open_traces(tmp_path).temperature


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="it is a folder"):
        TraceWriter(tmp_path, ORIGIN)


def test_any_cut_of_a_file_is_an_error_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, some(), ORIGIN)
    whole = path.read_bytes()
    for length in {0, 1, 4, 12, *range(13, len(whole), 97)}:
        path.write_bytes(whole[:length])
        with pytest.raises(TraceError, match="cannot be read as Parquet"):
            rows_of(path)


def test_any_flipped_byte_is_an_error_by_name_or_reads(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, some(), ORIGIN)
    whole = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 150).tolist():
        path.write_bytes(bytes(whole[:place]) + bytes([whole[place] ^ 0x55]) + bytes(whole[place + 1 :]))
        try:
            rows_of(path)
        except TraceError as error:
            assert str(path) in error.message


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, some(1), ORIGIN)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), TraceWriter(path, ORIGIN) as writer:
        writer.add(some(1)[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["t.parquet"]
    with pytest.raises(TraceError, match="entropy has 1 entries for 3 tokens"):
        write_traces(path, [replace(some(1)[0], entropy=[0.1])], ORIGIN)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["t.parquet"]


def test_files_of_two_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    write_traces(tmp_path / "a.parquet", some(), ORIGIN)
    write_traces(tmp_path / "b.parquet", some(), replace(ORIGIN, tokenizer="beef"))
    with pytest.raises(TraceError, match=r"b\.parquet has tokens of another tokenizer than .*a\.parquet"):
        open_traces(tmp_path)


def test_folders_of_runs_and_evaluations_have_them_inside(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    write_traces(tmp_path / "traces" / "step-1.parquet", some(), ORIGIN)
    assert open_traces(tmp_path).responses == 3
    for place, line in ((tmp_path / "none", "is not there"), (Path(__file__).parent, "no trace files")):
        with pytest.raises(TraceError, match=line):
            open_traces(place)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"version": 99}', b'{"version": 1, "model": 3}', b"[" * 100_000])
def test_metadata_of_another_kind_is_named(tmp_path: Path, text: bytes) -> None:
    write_traces(tmp_path / "t.parquet", some(), ORIGIN)
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    pa.parquet.write_table(table.replace_schema_metadata({b"megatron_fork.traces": text}), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="metadata"):
        open_traces(tmp_path / "t.parquet")


def test_every_column_is_a_field_of_a_response() -> None:
    assert {column.name for column in COLUMNS} == set(TracedResponse.__dataclass_fields__)
