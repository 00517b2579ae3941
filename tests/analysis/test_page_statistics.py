"""Every token is counted once: histogram and positions exactly, percentiles to 0.2 %, whatever parts the responses come in."""

import math
from operator import attrgetter

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.page_data import page_data
from support.synthetic_run import metrics_of_run, trace_of_step, write_json_lines

from megatron_fork.analysis import write_report
from megatron_fork.analysis.page.plots import in_words
from megatron_fork.analysis.page.responses import Facts, Part
from megatron_fork.analysis.page.statistics import EDGES, LOWEST, POSITIONS, Statistics
from megatron_fork.analysis.page.token_table import token_table

entropies = st.lists(
    st.one_of(
        st.floats(0, 14.0, width=32), st.sampled_from([-1e-6, 0.0, LOWEST, 1e-9, 0.01, 1.0, 10.0, math.log(151_936)])
    ),
    min_size=1,
    max_size=40,
)
responses = st.lists(st.tuples(entropies, st.sampled_from([None, 0.0, 1.0, -1.0])), min_size=1, max_size=6)


def part_of(found: list[tuple[list[float], float | None]], tokens: list[int] | None = None) -> Part:
    lengths = [len(values) for values, _ in found]
    entropy = numpy.array([value for values, _ in found for value in values], dtype=numpy.float32)
    return Part(
        facts=[
            Facts("s", "p", "p", "a", "trained", length, "stop", reward=reward)
            for length, (_, reward) in zip(lengths, found, strict=True)
        ],
        starts=numpy.array([0, *numpy.cumsum(lengths)]),
        tokens=numpy.array(tokens if tokens is not None else [0] * len(entropy)),
        entropy=entropy,
        logprob=-entropy,
        selected=entropy > 1,
        has_entropy=numpy.array([True] * len(found)),
    )


def counted(*parts: Part) -> Statistics:
    statistics = Statistics()
    for part in parts:
        statistics.add(part, part.has_entropy)
    return statistics


@given(responses)
@settings(deadline=None)
def test_every_token_is_counted_once_in_its_bin(found: list) -> None:
    statistics = counted(part_of(found))
    values = numpy.concatenate([numpy.float32(values) for values, _ in found])
    histogram = statistics.histogram.sum(axis=(0, 1))
    assert histogram.sum() == statistics.tokens == len(values)
    assert histogram[0] == (values < EDGES[0]).sum()
    for number in range(1, len(EDGES)):
        assert histogram[number] == ((values >= EDGES[number - 1]) & (values < EDGES[number])).sum()
    assert statistics.histogram[:, 1].sum() == (values > 1).sum()
    right = sum(len(values) for values, reward in found if reward is not None and reward > 0)
    assert statistics.histogram[0].sum() == right
    assert math.isclose(statistics.below_decided(), float((values < numpy.float32(0.01)).mean()))


@given(responses, st.floats(0, 1))
@settings(deadline=None)
def test_percentiles_are_those_of_all_values(found: list, share: float) -> None:
    values = numpy.maximum(numpy.concatenate([numpy.float32(values) for values, _ in found]), 0)
    exact = float(numpy.quantile(values, share))
    assert math.isclose(counted(part_of(found)).percentile(share), exact, rel_tol=2e-3, abs_tol=1e-30)


@given(responses, st.integers(0, 6))
@settings(deadline=None)
def test_parts_make_no_difference(found: list, cut: int) -> None:
    whole = counted(part_of(found))
    pieces = counted(*(part_of(piece) for piece in (found[:cut], found[cut:]) if piece))
    counts_of = attrgetter("histogram", "position_counts", "token_counts", "token_selected", "_fine")
    assert all(map(numpy.array_equal, counts_of(whole), counts_of(pieces)))
    assert numpy.allclose(whole.position_sums, pieces.position_sums)
    assert numpy.allclose(whole.token_sums, pieces.token_sums)


@given(responses)
@settings(deadline=None)
def test_a_position_is_that_in_its_own_response(found: list) -> None:
    statistics = counted(part_of(found))
    for number, first in enumerate(POSITIONS[:8]):
        last = POSITIONS[number + 1]
        inside = [value for values, _ in found for value in values[first - 1 : last - 1]]
        assert statistics.position_counts[:, number].sum() == len(inside)
        assert math.isclose(
            statistics.position_sums[:, number].sum(), sum(max(v, 0) for v in inside), rel_tol=1e-5, abs_tol=1e-9
        )


def test_what_is_not_finite_is_counted_apart() -> None:
    statistics = counted(part_of([([1.0, math.nan, math.inf], 1.0)], tokens=[0, 0, 1]))
    assert (statistics.tokens, statistics.not_finite) == (1, 2)
    table = token_table(statistics, ["a", "b"])
    assert (table.distinct, table.ranked) == (1, 1)


def test_counts_means_and_shares_of_tokens() -> None:
    statistics = counted(part_of([([1.0, 2.0, 0.5], 1.0)] * 2, tokens=[0, 0, 1] * 2))
    first, second = token_table(statistics, ["a", "b"]).rows
    assert (first.token, first.count, first.mean_entropy, first.share_selected) == (0, 4, 1.5, 0.5)
    assert (second.token, second.count, second.mean_entropy, second.share_selected) == (1, 2, 0.5, 0.0)


def test_tokens_from_both_ends_and_the_most_frequent_are_kept_in_order() -> None:
    tokens = [number for number in range(30) for _ in range(50 if number == 15 else 2)]
    statistics = counted(part_of([([0.1 * token for token in tokens], 1.0)], tokens=tokens))
    rows = token_table(statistics, [str(number) for number in range(30)], each=3).rows
    assert [row.token for row in rows] == [29, 28, 27, 15, 2, 1, 0]


def test_rare_tokens_are_not_ranked_where_there_are_frequent_ones() -> None:
    tokens = [*list(range(32)) * 20, 32]
    statistics = counted(part_of([([0.1 * token for token in tokens], 1.0)], tokens=tokens))
    table = token_table(statistics, [str(number) for number in range(33)])
    assert (table.minimum_count, table.ranked, table.distinct) == (20, 32, 33)
    assert 32 not in {row.token for row in table.rows}


def test_no_tokens_give_an_empty_table() -> None:
    table = token_table(Statistics(), [])
    assert (table.rows, table.distinct) == ([], 0)


@given(responses)
@settings(deadline=None)
def test_the_words_say_what_the_numbers_are(found: list) -> None:
    words = in_words(counted(part_of(found)))
    values = [numpy.float32(value) for values, _ in found for value in values]
    share = 100 * sum(value < numpy.float32(0.01) for value in values) / len(values)
    assert f"{share:.1f} % are below 0.01 nats" in words
    assert f"{len(values):,} tokens of {len(found):,} responses" in words


def test_the_80th_percentile_is_stated(tmp_path) -> None:
    trace = trace_of_step(1, tokens=10)
    trace["entropy"] = [0.0, 0.0, 1e-5, 1e-3, 0.02, 0.05, 0.1, 0.2, 1.5, 2.0]
    write_json_lines(tmp_path / "metrics.jsonl", metrics_of_run(2))
    write_json_lines(tmp_path / "traces" / "step-000001.jsonl", [trace])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "40.0 % are below 0.01 nats, and the 80th percentile is 0.46 nats" in page
    assert "&lt; 0.0001" in page


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_entropies_of_zero_have_percentiles_of_zero(share: float) -> None:
    assert counted(part_of([([0.0, -1e-9], None)])).percentile(share) < 1e-30


def test_the_table_of_the_page_has_these_rows(tmp_path) -> None:
    write_json_lines(tmp_path / "metrics.jsonl", metrics_of_run(2))
    traces = [trace_of_step(1, seed=seed) for seed in range(4)]
    write_json_lines(tmp_path / "traces" / "step-000001.jsonl", traces)
    rows = page_data(write_report(tmp_path).read_text(encoding="utf-8")).table()
    occurrences = [
        (text, entropy, chosen)
        for trace in traces
        for text, entropy, chosen in zip(trace["tokens"], trace["entropy"], trace["selected"], strict=True)
    ]
    for text, count, mean, share in rows:
        of_text = [(entropy, chosen) for found, entropy, chosen in occurrences if found == text]
        assert count == len(of_text)
        assert math.isclose(mean, sum(entropy for entropy, _ in of_text) / count, rel_tol=1e-6)
        assert math.isclose(share, sum(chosen for _, chosen in of_text) / count)
