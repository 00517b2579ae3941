r"""No string makes `score` raise, and none takes a worker beyond its limits: every job comes back with one finite value."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_fork.rewards import RewardPool, RewardsConfig, score

PIECES = (
    r"\boxed{ } { \frac \frac{1}{2} \sqrt{ \sqrt[3]{ ( ) [ ] \{ \} , ; ^ ^{ _ _{ + - * / = < \le \bmod "
    r"\pmod{7} 7 12 0.5 1,000 x i e \pi \infty \text{ \text{cm} \left( \right) \left \begin{pmatrix} "
    r"\end{pmatrix} \\ & \cup \in \pm ! | \% % $ \sin \log \binom Answer: \emptyset \circ °"
).split(" ")
# Without powers and factorials nothing in the list costs much, so that the calling process can try it.
CHEAP = [piece for piece in PIECES if "^" not in piece and "!" not in piece and "binom" not in piece]
ANSWERS = st.sampled_from(
    ["7", r"\frac{1}{2}", "x+1", r"\sqrt{2}", "(1,2)", "[1,2)", r"\{1,2\}", "C", "Monday", "x=5", ""]
)


def latex(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=14).map(" ".join)


@settings(deadline=None, max_examples=80)
@given(text=latex(CHEAP), answer=ANSWERS)
def test_score_does_not_raise_on_latex(text: str, answer: str) -> None:
    for response in (text, rf"\boxed{{{text}}}"):
        assert score(response, answer).value in (0.0, 1.0)


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=200), answer=st.text(max_size=30))
@pytest.mark.parametrize("kind", ["reach", "math"])
def test_score_does_not_raise_on_text(kind: str, text: str, answer: str) -> None:
    for response in (text, rf"\boxed{{{text}}}", f"Answer: {text}"):
        result = score(response, answer, kind=kind)
        assert result.value in (0.0, 1.0)
        assert result.reason.isprintable()


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(RewardsConfig(workers=2, timeout_seconds=0.5, memory_gib=1.0)) as pool:
        yield pool


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(st.tuples(latex(list(PIECES)), ANSWERS), min_size=5, max_size=10))
def test_every_job_comes_back(pool: RewardPool, jobs: list[tuple[str, str]]) -> None:
    before = pool.counts.scored
    results = pool.score_many([(rf"\boxed{{{text}}}", answer) for text, answer in jobs])
    assert len(results) == len(jobs)
    assert pool.counts.scored == before + len(jobs)
    assert all(math.isfinite(result.value) and result.reason.isprintable() for result in results)
