r"""A labelled set of answers, written for this project: no wrong one earns anything, and which right ones do not is known.

`answer_pairs.jsonl` has, a line each: the category, the reference answer, a response, and whether the response is right. An
equation or a relation is wrong where the answer is a number. `benchmarks/rewards_accuracy.py` asks math-verify the same.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_fork.rewards import score

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "answer_pairs.jsonl").read_text("utf-8").splitlines()]
# Called right there, and refused: a response that is cut off in a later box has not given the older one as its answer.
MISSED = {r"\boxed{7} and then, cut off, \boxed{8"}


def test_the_set_is_large_balanced_and_without_repetition() -> None:
    assert len(PAIRS) >= 400
    assert 0.4 < sum(pair["right"] for pair in PAIRS) / len(PAIRS) < 0.6
    assert len({(pair["answer"], pair["response"]) for pair in PAIRS}) == len(PAIRS)
    assert len(Counter(pair["category"] for pair in PAIRS)) >= 25


@pytest.mark.parametrize("category", sorted({pair["category"] for pair in PAIRS}))
def test_every_category(category: str) -> None:
    wrong = []
    for pair in PAIRS:
        if pair["category"] == category and pair["response"] not in MISSED:
            result = score(pair["response"], pair["answer"])
            if result.value != float(pair["right"]):
                wrong.append((pair["answer"], pair["response"], result.reason))
    assert not wrong


def test_what_is_missed_is_still_missed() -> None:
    missed = [pair for pair in PAIRS if pair["response"] in MISSED]
    assert len(missed) == len(MISSED)
    assert all(pair["right"] and not score(pair["response"], pair["answer"]).value for pair in missed)


def test_every_right_answer_equals_itself() -> None:
    for answer in {pair["answer"] for pair in PAIRS}:
        result = score(rf"\boxed{{{answer}}}", answer)
        assert result.value == 1.0, (answer, result.reason)


def test_reasons_are_one_printable_line() -> None:
    for pair in PAIRS[::5]:
        reason = score(pair["response"], pair["answer"]).reason
        assert reason.isprintable() and reason
