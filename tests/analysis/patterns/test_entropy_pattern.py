"""Every number of an entropy pattern is what counting one token after another gives, in however many parts a file is read."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.trace_files import made_up, write_made_up

from megatron_fork.analysis import EntropyPattern, entropy_pattern, entropy_record, json_text, save_entropy
from megatron_fork.analysis.patterns.entropy import EDGES, PERCENTILES, log_counts
from megatron_fork.analysis.patterns.sums import RELATIVE_BINS
from megatron_fork.errors import RunFolderError, TraceError
from megatron_fork.traces import Origin, TracedResponse, open_traces, write_traces

ROWS = made_up(40)


@pytest.fixture(params=[1, 50, 1 << 20])
def pattern(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EntropyPattern:
    monkeypatch.setattr("megatron_fork.traces.writing._TOKENS_PER_ROW_GROUP", request.param)
    without = [replace(row, entropy=None) for row in ROWS[:3]]
    path = write_made_up(tmp_path / "t.parquet", [without[0], *ROWS, *without[1:]])
    return entropy_pattern(open_traces(path), minimum_count=3, rows=5)


def group_of(row: TracedResponse) -> str:
    return "unjudged" if row.reward is None else "right" if row.reward > 0 else "wrong"


def test_distributions(pattern: EntropyPattern) -> None:
    assert pattern.left_out == 3 and set(pattern.groups) == {"all", "right", "wrong", "unjudged"}
    for name, found in pattern.groups.items():
        rows = [row for row in ROWS if name in ("all", group_of(row))]
        values = np.float64(np.float32([value for row in rows for value in row.entropy or ()]))
        assert (found.responses, found.tokens) == (len(rows), len(values))
        assert found.mean == pytest.approx(sum(values) / len(values))
        assert found.low == sum(value < 0.01 for value in values) / len(values)
        assert list(found.percentiles) == list(PERCENTILES)
        assert [*found.percentiles.values()] == pytest.approx([np.percentile(values, p) for p in PERCENTILES])
        assert found.counts.sum() == len(values)


def test_bins_hold_what_their_edges_say() -> None:
    values = np.array([-1e-5, 0.0, 1e-7, 1e-6, 0.5, 3.0, 1e6])
    counts = log_counts(values)
    brute = np.zeros(len(EDGES), int)
    for value in values:
        brute[min(sum(edge <= value for edge in EDGES), len(EDGES) - 1)] += 1
    assert counts.tolist() == brute.tolist() and counts[0] == 3 and counts[-1] == 1


def test_tokens_are_ranked_by_their_mean(pattern: EntropyPattern) -> None:
    by_token: dict[int, list[float]] = {}
    for row in ROWS:
        for token, value in zip(row.tokens, row.entropy or (), strict=True):
            by_token.setdefault(token, []).append(value)
    means = {token: np.mean(values) for token, values in by_token.items() if len(values) >= 3}
    order = sorted(means, key=lambda token: -means[token])
    assert [each.token for each in pattern.highest] == order[:5]
    assert [each.token for each in pattern.lowest] == order[::-1][:5]
    assert (pattern.ranked, pattern.distinct) == (len(means), len(by_token))
    texts = {t: text for row in ROWS for t, text in zip(row.tokens, row.token_texts or (), strict=True)}
    for each in pattern.highest:
        assert each.count == len(by_token[each.token]) and each.mean == pytest.approx(means[each.token])
        assert each.text.replace("␣", " ").strip() == texts[each.token].strip()


def test_places_in_the_response(pattern: EntropyPattern) -> None:
    relative: list[list[float]] = [[] for _ in range(RELATIVE_BINS)]
    absolute: list[list[float]] = [[] for _ in range(8)]
    for row in ROWS:
        for place, value in enumerate(row.entropy or ()):
            relative[int(place * RELATIVE_BINS / len(row.tokens))].append(value)
            absolute[place.bit_length()].append(value)
    found = pattern.positions["all"]
    for sums, brute in ((found.relative, relative), (found.absolute, absolute)):
        assert sums.count[: len(brute)].tolist() == list(map(len, brute)) and sums.count.sum() == sum(map(len, brute))
        for mean, values in zip(sums.mean, brute, strict=False):
            assert (np.isnan(mean) and not values) or mean == pytest.approx(np.mean(values))
    halves = found.relative.merged(2)
    assert halves.count.tolist() == [len(relative[n]) + len(relative[n + 1]) for n in range(0, RELATIVE_BINS, 2)]


def test_no_token_is_at_both_ends(tmp_path: Path) -> None:
    path = write_made_up(tmp_path / "t.parquet")
    found = entropy_pattern(open_traces(path), minimum_count=1, rows=1000)
    assert not {each.token for each in found.highest} & {each.token for each in found.lowest}
    assert len(found.highest) + len(found.lowest) == found.ranked


def test_files_and_json(pattern: EntropyPattern, tmp_path: Path) -> None:
    written = save_entropy(tmp_path / "figures", pattern)
    assert {path.suffix for path in written} == {".json", ".svg", ".png"} and all(
        path.stat().st_size for path in written
    )
    again = {path: path.read_bytes() for path in written}
    save_entropy(tmp_path / "figures", pattern)
    assert {path: path.read_bytes() for path in written} == again
    record = json.loads((tmp_path / "figures" / "entropy.json").read_text())
    assert record == json.loads(json_text(entropy_record(pattern)))
    assert record["paper"] == {"share_below_0.01": 0.5064, "p80": 0.672}
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        save_entropy(tmp_path / "file", pattern)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "$\\frac{1}{2$", "\udc80", "漢字", "", "\u202e", "W" * 60]
)
def test_any_text_of_a_token_is_drawn(tmp_path: Path, text: str) -> None:
    row = replace(ROWS[0], tokens=[9, 9], token_texts=[text, text], entropy=[0.5, 0.25])
    found = entropy_pattern(open_traces(write_made_up(tmp_path / "t.parquet", [row])), minimum_count=1)
    save_entropy(tmp_path, found)
    assert b"<script" not in (tmp_path / "words_highest.svg").read_bytes()


def test_without_texts_tokens_have_their_ids(tmp_path: Path) -> None:
    rows = [replace(ROWS[0], token_texts=None), replace(ROWS[1], tokens=[130], entropy=[1.0], token_texts=["x"])]
    found = entropy_pattern(open_traces(write_made_up(tmp_path / "t.parquet", rows)), minimum_count=1, rows=99)
    texts = {each.token: each.text for each in [*found.highest, *found.lowest]}
    assert texts[130] == "x" and texts[ROWS[0].tokens[0]] == f"<{ROWS[0].tokens[0]}>"


def test_traces_without_entropies_are_named(tmp_path: Path) -> None:
    path = write_made_up(tmp_path / "t.parquet", made_up(with_entropy=False))
    with pytest.raises(TraceError, match="none of the 12 responses has entropies") as error:
        entropy_pattern(open_traces(path))
    assert "rescore" in error.value.hint


def test_empty_responses_count_as_responses(tmp_path: Path) -> None:
    empty = replace(ROWS[0], tokens=[], token_texts=[], entropy=[])
    found = entropy_pattern(open_traces(write_made_up(tmp_path / "t.parquet", [empty])))
    assert found.groups["all"].responses == 1 and found.groups["all"].tokens == 0
    assert json.loads(json_text(entropy_record(found)))["groups"]["all"]["mean"] is None


def test_memory_does_not_grow_with_the_number_of_a_token(tmp_path: Path) -> None:
    """A file may have any token up to 2^31: a sum for each of them would take 16 GiB."""
    large = [replace(row, tokens=[2**31 - 1 - token for token in row.tokens]) for row in ROWS]
    small = entropy_pattern(open_traces(write_made_up(tmp_path / "small.parquet", ROWS)), minimum_count=3)
    tracemalloc.start()
    found = entropy_pattern(open_traces(write_made_up(tmp_path / "large.parquet", large)), minimum_count=3)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 26
    assert {(2**31 - 1 - each.token, each.count, each.mean) for each in found.highest} == {
        (each.token, each.count, each.mean) for each in small.highest
    }
    assert (found.distinct, found.ranked) == (small.distinct, small.ranked)


def test_the_name_of_a_model_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", ROWS, Origin(model="a\x1b[2J\u202eb"))
    (name,) = entropy_pattern(open_traces(tmp_path / "t.parquet")).models
    assert name.isprintable()
