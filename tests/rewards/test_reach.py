"""A reach response is rewarded exactly for where its operations lead, whatever it claims about numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.rewards import MAX_OPERATIONS, OPERATIONS, score

HONEST = (
    "need +24 take op+10 get 17 . need +14 take op+10 get 27 . need +4 take op+3 get 30 . need +1 take op+1 get 31 ."
)


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        (f"{HONEST} need +0 done", "7 31", 1.0),
        ("op+10 op+10 op+3 op+1 done", "7 31", 1.0),
        ("done", "5 5", 1.0),
        ("take op-10 take op-3 take op-1 done", "4 -10", 1.0),
        ("op+1 " * 6 + "done", "0 6", 1.0),
        ("op+1 " * 7 + "done", "0 7", 0.0),
        (f"{HONEST} need +0", "7 31", 0.0),
        (f"{HONEST} need +0 done .", "7 31", 0.0),
        (f"{HONEST} need +0 undone", "7 31", 0.0),
        ("take op+24 get 31 . need +0 done", "7 31", 0.0),
        ("op+10 op+10 op+3 op+1 op+0 done", "7 31", 0.0),
        ("op+10 op+10 op+3 op+1 op done", "7 31", 0.0),
        ("", "5 5", 0.0),
        ("done", "5", 0.0),
        ("done", "five five", 0.0),
    ],
)
def test_examples(response: str, answer: str, value: float) -> None:
    assert score(response, answer, kind="reach").value == value


def test_claimed_numbers_are_not_trusted() -> None:
    assert score("need +24 take op+1 get 31 . need +0 done", "7 31", kind="reach").value == 0.0
    assert (
        score("need +99 take op+10 get -4 . need +7 take op+1 get 1000 . need +5 done", "7 18", kind="reach").value
        == 1.0
    )


@given(
    start=st.integers(-99, 99),
    steps=st.lists(st.sampled_from(OPERATIONS), max_size=MAX_OPERATIONS + 2),
    error=st.sampled_from([0, 0, 1, -3]),
    claims=st.lists(st.integers(-99, 99), min_size=MAX_OPERATIONS + 2, max_size=MAX_OPERATIONS + 2),
)
def test_agrees_with_arithmetic(start: int, steps: list[int], error: int, claims: list[int]) -> None:
    lines = [f"need {claim:+d} take op{step:+d} get {claim}" for step, claim in zip(steps, claims, strict=False)]
    answer = f"{start} {start + sum(steps) + error}"
    expected = 1.0 if error == 0 and len(steps) <= 6 else 0.0
    assert score(" . ".join([*lines, "need +0 done"]), answer, kind="reach").value == expected
