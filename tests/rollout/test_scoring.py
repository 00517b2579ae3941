"""Scores are taken while responses still arrive, none twice, none lost, and errors of either side come through."""

import threading

import pytest

from megatron_fork.rollout.scoring import score_on_arrival


def test_scores_come_while_items_still_arrive() -> None:
    scored = threading.Event()

    def arriving():
        yield 1
        assert scored.wait(10.0), "the first item was not scored before the second arrived"
        yield from range(2, 50)

    def score(items):
        scored.set()
        return [10 * item for item in items]

    assert score_on_arrival(arriving(), score) == [10 * item for item in range(1, 50)]


def test_nothing_arrives() -> None:
    assert score_on_arrival([], lambda items: pytest.fail("there is nothing to score")) == []


def test_errors_come_through() -> None:
    def breaks(items):
        raise ValueError("no score")

    with pytest.raises(ValueError, match="no score"):
        score_on_arrival([1, 2], breaks)

    def stops():
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        score_on_arrival(stops(), list)
