"""Hostile responses among good ones: none is rewarded, every good one is right. A small `benchmarks/rewards_attack.py`."""

from __future__ import annotations

import pytest
from support.hostile_answers import attack


@pytest.mark.slow
def test_hostile_responses_cost_only_themselves() -> None:
    found = attack(120, 24, workers=2, timeout_seconds=3.0)  # two of every sort
    assert found["hostile_rewarded"] == 0.0
    assert found["good_right"] == found["good_right_alone"] == 120
    assert found["counts"]["scored"] == 144
    assert found["workers_killed"] == 0  # what an answer may cost is bounded before it is computed


@pytest.mark.slow
def test_workers_that_they_kill_cost_no_good_response() -> None:
    found = attack(40, 24, workers=2, timeout_seconds=3.0, kind="math_verify")
    assert found["good_right"] == found["good_right_alone"]
    assert found["counts"]["scored"] == 64
    assert found["workers_killed"] >= 2  # else nothing of it was hostile; how many others are, the machine decides
