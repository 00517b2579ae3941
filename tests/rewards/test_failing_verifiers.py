"""A verifier that fails is told apart from one that judges: by its own error and line, in scores, counts, and at the start."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.misbehaving import __name__ as module

from megatron_fork.errors import ConfigError
from megatron_fork.rewards import (
    Failures,
    FailureWatch,
    Reference,
    RewardError,
    RewardPool,
    RewardsConfig,
    Score,
    score,
)
from megatron_fork.rewards.custom import OF_ROW, OURS, VERL, _with_arguments, as_score, load_custom
from megatron_fork.rewards.reference import MARK, read_reference


@pytest.fixture
def verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module with a function `verify`; the kind that names it."""
    monkeypatch.syspath_prepend(tmp_path)
    names = itertools.count()

    def write(source: str) -> str:
        name = f"mine_{abs(hash(tmp_path))}_{next(names)}"  # modules are imported once a process
        (tmp_path / f"{name}.py").write_text(source)
        return f"{name}:verify"

    return write


FAILING = {
    "raises": ("raise LookupError('no such\\nset')", r"verifier raised LookupError: no such set \(.*mine_\w+\.py:2\)"),
    "inside a library": ("import json; json.loads('{')", r"raised JSONDecodeError: .* \(.*mine_\w+\.py:2\)"),
    "exits": ("import sys; sys.exit(0)", r"raised SystemExit: 0 \(.*mine_\w+\.py:2\)"),
    "none": ("return None", r"verifier returned None, which is not .* \(.*mine_\w+\.py:1\)"),
    "dict": ("return {'score': 1.0}", r"returned \{'score': 1\.0\}"),
    "nan": ("return float('nan')", r"returned nan"),
    "inf": ("return float('inf')", r"returned inf"),
    "pair of nan": ("return float('nan'), 'why'", r"returned \(nan, 'why'\)"),
    "score of nan": (
        "from megatron_fork.rewards import Score; return Score(float('nan'), 'why')",
        r"returned Score\(value=nan",
    ),
    "text": ("return '1.0'", r"returned '1\.0'"),
    "list": ("return [1.0]", r"returned \[1\.0\]"),
    "large": ("return 10 ** 400", r"verifier returned"),
    "coroutine": ("async def later(): return 1.0\n    return later()", r"returned <coroutine"),
}


@pytest.mark.parametrize("name", sorted(FAILING))
@pytest.mark.filterwarnings("error")
def test_what_fails_is_no_judgement(verifier: Callable[[str], str], name: str) -> None:
    body, reason = FAILING[name]
    result = score("1", "1", kind=verifier(f"def verify(response, answer):\n    {body}\n"))
    assert (result.value, result.failure) == (0.0, "error")
    assert result.reason.isprintable()
    assert re.search(reason, result.reason), result.reason


def test_judgements_are_no_failures() -> None:
    assert score("1", "1", kind=f"{module}:half").failure is None
    for response in ("", r"\boxed{2}", r"\boxed{", "\0"):
        assert score(response, "1").failure is None
    assert score("done", "not a task", kind="reach").failure == "error"
    assert score(r"\boxed{1}", "not a chain", kind="arithmetic").failure == "error"
    assert score("<answer>1</answer>", "not a task", kind="reasoning_gym").failure == "error"


def test_workers_hand_on_how_it_failed() -> None:
    jobs = [("1", "1"), ("die", "1"), ("raise", "1"), ("sleep", "1"), ("2", "1")]
    with RewardPool(RewardsConfig(kind=f"{module}:fails_in_every_way", timeout_seconds=0.5)) as pool:
        results = pool.score_many(jobs)
        counts = pool.counts
    assert [result.failure for result in results] == [None, "died", "error", "timed_out", None]
    assert (counts.scored, counts.died, counts.timed_out, counts.errors) == (5, 1, 1, 1)
    assert "misbehaving.py" in results[2].reason


def test_a_long_reason_does_not_cost_the_worker(verifier: Callable[[str], str]) -> None:
    kind = verifier("def verify(response, answer):\n    return 1.0, 'because ' * 100_000\n")
    with RewardPool(RewardsConfig(kind=kind)) as pool:
        (result,) = pool.score_many([("1", "1")])
    assert result.value == 1.0 and result.failure is None and len(result.reason) < 1100


@given(data=st.data())
def test_names_are_given_by_name_in_any_order(data: st.DataObject) -> None:
    """Every signature that names one of the pairs gets what it names, whatever else has a default."""
    pair = data.draw(st.sampled_from([OURS, VERL]))
    names = data.draw(st.permutations([*pair, *data.draw(st.sets(st.sampled_from(OF_ROW))), "tolerance"]))
    first_keyword = data.draw(st.integers(0, len(names)))
    words = [f"{name}=None" if name == "tolerance" else name for name in names]
    optional = data.draw(st.booleans())
    if optional:  # all after the first default have one too, before the star
        words = [f"{name}=None" for name in names]
    elif "tolerance" in names[:first_keyword]:
        first_keyword = names.index("tolerance")
    words.insert(first_keyword, "*")
    if words[-1] == "*":
        words.pop()
    scope: dict = {}
    exec(f"def verify({', '.join(words)}): seen.update(locals()); return 1", {"seen": (seen := {})}, scope)
    given_row = Reference(("gold",), "a set", {"index": 1})
    assert _with_arguments(scope["verify"], "m:verify")("said", "gold", given_row) == Score(1.0, "custom verifier")
    expected = dict(zip((*pair, *OF_ROW), ("said", "gold", "a set", {"index": 1}), strict=True))
    assert seen == {"tolerance": None, **{name: expected[name] for name in names if name in expected}}


@pytest.mark.parametrize(
    ("head", "body", "value", "reason"),
    [
        ("data_source, solution_str, ground_truth, extra_info=None", "solution_str == ground_truth", 1.0, "custom"),
        ("ground_truth, solution_str", "solution_str == '1' and ground_truth == '1'", 1.0, "custom verifier"),
        (
            "data_source, solution_str, ground_truth, extra_info=None, **kwargs",
            "{'score': 0.5, 'acc': True, 'pred': '1'}",
            0.5,
            "acc: True, pred: 1",
        ),
        ("solution_str, ground_truth, **kwargs", "sorted(kwargs) == ['data_source', 'extra_info']", 1.0, "custom"),
        ("answer, response", "response == '1'", 1.0, "custom"),
        ("text, gold", "text == gold", 1.0, "custom"),
        ("*both", "both == ('1', '1')", 1.0, "custom"),
        ("solution_str, ground_truth, /", "True", 1.0, "custom"),
    ],
)
def test_forms(verifier: Callable[[str], str], head: str, body: str, value: float, reason: str) -> None:
    result = score("1", "1", kind=verifier(f"def verify({head}):\n    return {body}\n"))
    assert (result.value, result.failure) == (value, None), result.reason
    assert reason in result.reason


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("completions", "(completions)"),
        ("prompts, completions, answer", "(prompts, completions, answer)"),
        ("data_source, solution_str", "(data_source, solution_str)"),
        ("gold, response", "(gold, response)"),
        ("answer, text", "(answer, text)"),
        ("solution_str, ground_truth, tokenizer", "(solution_str, ground_truth, tokenizer)"),
        ("", "()"),
        ("*, text, gold", "(*, text, gold)"),
    ],
)
def test_what_fits_no_form_is_refused_at_the_start(verifier: Callable[[str], str], head: str, named: str) -> None:
    kind = verifier(f"def verify({head}):\n    return 1.0\n")
    with pytest.raises(RewardError) as caught:
        RewardPool(RewardsConfig(kind=kind))
    assert f"rewards.kind={kind} takes {named}" in caught.value.message
    assert "response" in caught.value.hint and "solution_str" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("async def verify(response, answer):\n    return 1.0\n", "is an async function"),
        (
            "class Later:\n    async def __call__(self, response, answer):\n        return 1.0\nverify = Later()\n",
            "async",
        ),
        ("def verify(response, answer):\n    yield 1.0\n", "is a generator"),
        ("verify = 3\n", "has no function verify"),
    ],
)
def test_what_gives_no_score_is_refused_at_the_start(verifier: Callable[[str], str], source: str, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        RewardPool(RewardsConfig(kind=verifier(source)))
    assert caught.value.hint


def test_a_score_of_the_users_own_may_say_that_it_failed() -> None:
    assert as_score(Score(0.0, "the server is gone", "died")).failure == "error"


TEXTS = st.text(max_size=20) | st.text(max_size=20).map(lambda text: MARK + text)


@given(
    answers=st.lists(TEXTS, min_size=1, max_size=4),
    source=st.text(max_size=5),
    extra=st.none() | st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3)),
)
def test_a_reference_survives_its_string(answers: list[str], source: str, extra: object) -> None:
    reference = Reference(tuple(answers), source, extra)
    assert read_reference(reference.encoded()) == reference


@given(text=TEXTS)
def test_any_string_is_some_reference(text: str) -> None:
    assert read_reference(Reference((text,)).encoded()).answers == (text,)
    if not text.startswith(MARK):
        assert Reference((text,)).encoded() == text


@pytest.mark.parametrize(
    ("kind", "response", "answers", "value"),
    [
        ("math", r"\boxed{0.5}", ("7", r"\frac{1}{2}"), 1.0),
        ("math", r"\boxed{8}", ("7", r"\frac{1}{2}"), 0.0),
        ("reach", "op+1 done", ("0 2", "0 1"), 1.0),
        ("arithmetic", r"\boxed{3}", ("1 + 1", "1 + 2"), 1.0),
        (f"{module}:half", "1", ("1", "2"), 0.5),
        (f"{module}:equal_text", "2", ("1", "2"), 1.0),
        (f"{module}:equal_text", "3", ("1", "2"), 0.0),
    ],
)
def test_any_of_the_answers_is_right(kind: str, response: str, answers: tuple[str, ...], value: float) -> None:
    answer = Reference(answers).encoded()
    assert score(response, answer, kind=kind).value == value
    with RewardPool(RewardsConfig(kind=kind)) as pool:
        assert pool.score_many([(response, answer)])[0].value == value


def test_a_failure_on_one_answer_is_not_hidden_by_another() -> None:
    kind = f"{module}:fails_in_every_way"
    assert score("raise", Reference(("1", "2")).encoded(), kind=kind).failure == "error"


OUTCOMES = st.lists(st.sampled_from([None, "error", "timed_out", "died"]), max_size=30)


@given(steps=st.lists(OUTCOMES, min_size=1, max_size=6), limit=st.floats(0, 1))
def test_the_watch_stops_only_where_nothing_was_ever_judged(steps: list[list], limit: float) -> None:
    watch, judged = FailureWatch("math", limit), False
    for number, outcomes in enumerate(steps):
        failures = Failures()
        failures.add((outcome, f"reason {place}") for place, outcome in enumerate(outcomes))
        failed = sum(outcome is not None for outcome in outcomes)
        assert (failures.failed, failures.responses) == (failed, len(outcomes))
        metrics = failures.metrics()
        assert sum(metrics[f"rewards/{kind}"] for kind in ("error", "timed_out", "died")) == failed
        judged |= failed < len(outcomes)
        if outcomes and not judged:
            with pytest.raises(RewardError, match=f"all {failed} responses of step {number}: reason 0"):
                watch.look(failures, f"step {number}")
            return
        warning = watch.look(failures, f"step {number}")
        assert (warning is not None) == (failed > limit * len(outcomes))
        if warning is not None:
            first = next(place for place, outcome in enumerate(outcomes) if outcome is not None)
            assert f"step {number}" in warning and f"{failed} of {len(outcomes)}" in warning
            assert f"reason {first}" in warning


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_the_limit_is_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.failure_warning"):
        RewardsConfig(failure_warning=value)


def test_whether_a_verifier_takes_the_row(verifier: Callable[[str], str]) -> None:
    assert load_custom(verifier("def verify(solution_str, ground_truth, extra_info): return 1")).takes_row
    assert not load_custom(verifier("def verify(response, answer): return 1")).takes_row
