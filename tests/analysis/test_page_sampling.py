"""A page holds all responses that fit, or some of every set, kind, step, right and wrong, and says of how many."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.page_data import page_data
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import write_page
from megatron_fork.analysis.page.responses import Facts
from megatron_fork.analysis.page.sampling import Budget, chosen, spread_order
from megatron_fork.traces import write_traces

facts = st.builds(
    Facts,
    set=st.sampled_from(["a", "b"]),
    prompt_id=st.just("p"),
    prompt=st.just("p"),
    answer=st.just(""),
    kind=st.sampled_from(["trained", "evaluation"]),
    length=st.integers(0, 100),
    finish_reason=st.just("stop"),
    step=st.none() | st.integers(0, 3),
    reward=st.sampled_from([None, 0.0, 1.0]),
)


def stratum(each: Facts) -> tuple:
    return each.set, each.kind, each.step, each.verdict


@given(st.lists(facts, max_size=80), st.integers(1, 40), st.integers(0, 3000))
@settings(deadline=None)
def test_the_budget_is_kept_and_strata_have_equal_parts(found: list[Facts], most: int, tokens: int) -> None:
    budget = Budget(responses=most, tokens=tokens, per_response=50)
    places = chosen(found, budget)
    assert places == sorted(set(places)) and len(places) <= most
    taken = sum(min(found[place].length, 50) for place in places)
    assert taken <= tokens or len(places) == 1
    if len(found) <= most and sum(min(each.length, 50) for each in found) <= tokens:
        assert places == list(range(len(found)))
    shown = Counter(stratum(found[place]) for place in places)
    there = Counter(map(stratum, found))
    # A stratum has one less than another only where the turns ended in between, or because there are no more of it.
    fullest = max(shown.values(), default=0)
    assert all(shown[key] >= min(count, fullest - 1) for key, count in there.items())
    assert not found or places


@given(st.integers(0, 200))
def test_every_beginning_is_spread(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    assert count < 2 or order[:2] == [0, count - 1]
    if count > 4:
        assert abs(order[2] - count / 2) <= 1


def test_the_page_says_what_it_holds_of_how_many(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", traced_responses(60, 30, steps=3), ORIGIN)
    budget = Budget(responses=12, tokens=10_000, per_response=20)
    page = write_page([tmp_path / "t.parquet"], tmp_path / "page.html", budget=budget).read_text(encoding="utf-8")
    assert "The page holds 12 of 60 responses with 1,800 tokens" in page
    assert "Of a response 20 tokens are shown; 120 more are left out." in page
    assert "1,800 tokens of 60 responses" in page, "all are counted"
    shown = page_data(page).responses
    assert Counter((each.facts["step"], each.facts["verdict"]) for each in shown) == Counter(
        {(step, verdict): 2 for step in range(3) for verdict in range(2)}
    )
    assert all(len(each.tokens) == 20 and each.facts["length"] == 30 for each in shown)


def test_nothing_is_said_where_all_is_there(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", traced_responses(6, 30), ORIGIN)
    page = write_page([tmp_path / "t.parquet"], tmp_path / "page.html").read_text(encoding="utf-8")
    words = page.partition("<script")[0]
    assert "The page holds" not in words and "left out" not in words


@pytest.mark.parametrize("count", [0, 1])
def test_few_responses(count: int) -> None:
    found = [Facts("s", "p", "p", "", "given", 10**6, "stop")] * count
    assert chosen(found, Budget()) == list(range(count))
