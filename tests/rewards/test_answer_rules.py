# ruff: noqa: E501 (tables)
r"""What a verifier may not be talked into: every rule is a property of answers that a generator makes.

A right value in another spelling is right. A value with something around it that changes what it stands for is wrong, and so
are two values joined by anything. Values that differ are wrong however near they are.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers_generated import DECORATIONS, JOINTS, NEAR, SENTENCES, VALUES, sample

from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, score
from megatron_fork.rewards.units import MULTIPLES, UNITS

CASES = [json.loads(line) for line in (Path(__file__).parent / "answer_cases.jsonl").read_text("utf-8").splitlines()]
# Right there, and refused by a rule of this project: a named number, and an answer on the line after "Answer:".
REFUSED = {"Answer:\n5", "Answer: x = 5", r"So \boxed{x=11}."}
ANSWERS = st.sampled_from(sorted(VALUES))
# A closing parenthesis behind the letter of a choice is a spelling of it.
SPELLINGS = {("C", "@)")}
SYMBOLS = {each for each in VALUES if each not in ("C", "ABD", r"\text{Monday}")}


def right(stated: str, answer: str) -> bool:
    return score(rf"So \boxed{{{stated}}}.", answer).value == 1.0


def test_no_wrong_case_is_rewarded_and_few_right_ones_are_refused() -> None:
    verdicts = {case["response"]: score(case["response"], case["answer"]).value == 1.0 for case in CASES}
    assert len(CASES) == 325
    assert [case for case in CASES if verdicts[case["response"]] and not case["right"]] == []
    assert {case["response"] for case in CASES if case["right"] and not verdicts[case["response"]]} == REFUSED


@pytest.mark.parametrize("answer", sorted(VALUES))
def test_every_spelling_of_a_value_is_right(answer: str) -> None:
    for spelled in (answer, *VALUES[answer]):
        for sentence in SENTENCES:
            assert score(sentence.replace("@", spelled), answer).value == 1.0, (spelled, sentence)


@pytest.mark.parametrize("answer", sorted(VALUES))
def test_nothing_around_a_value_is_overlooked(answer: str) -> None:
    for decoration in DECORATIONS:
        if (answer, decoration) not in SPELLINGS:
            assert not right(decoration.replace("@", answer), answer), decoration


@settings(deadline=None, max_examples=300)
@given(answer=ANSWERS, other=ANSWERS, joint=st.sampled_from(JOINTS), close=st.booleans())
def test_two_values_joined_are_right_for_neither(answer: str, other: str, joint: str, close: bool) -> None:
    if answer == other or (joint == r"\in" and len(answer) == 1):
        return
    space = "" if close and not joint[-1].isalpha() else " "
    joined = f"{answer}{space}{joint}{space}{other}"
    assert not right(joined, answer)
    assert not right(joined, other)


@settings(deadline=None, max_examples=300)
@given(
    answer=st.sampled_from(sorted(SYMBOLS)),
    unknown=st.characters(categories=("Cc", "Cf", "Co", "Cn", "Mn", "Me", "Lt", "Lm"), min_codepoint=0x80),
    place=st.sampled_from(("@#", "#@", "@#9", "{@}#")),
)
def test_an_unknown_character_makes_it_no_value(answer: str, unknown: str, place: str) -> None:
    assert not right(place.replace("@", answer).replace("#", unknown), answer)


@pytest.mark.parametrize(("answer", "near"), NEAR)
def test_what_is_near_is_wrong(answer: str, near: str) -> None:
    assert not right(near, answer)


@settings(deadline=None, max_examples=60)
@given(
    base=st.integers(2, 12), exponent=st.integers(20, 900), factor=st.sampled_from((r"\sqrt{2}", r"\pi", "e", "1")),
    other=st.sampled_from((r"\sqrt{3}", "3", r"\ln 5")), step=st.integers(-1, 1),
)  # fmt: skip
def test_small_numbers_are_told_apart(base: int, exponent: int, factor: str, other: str, step: int) -> None:
    answer = rf"{factor}\cdot {base}^{{-{exponent}}}"
    same = rf"\frac{{{factor}}}{{{base}^{{{exponent}}}}}"
    assert right(same, answer)
    assert not right("0", answer)
    assert not right(rf"\frac{{{other}}}{{{base}^{{{exponent}}}}}", answer)
    if step:
        assert not right(rf"\frac{{{factor}}}{{{base}^{{{exponent + step}}}}}", answer)
        assert not right(f"7+{answer}", "7")


@settings(deadline=None, max_examples=60)
@given(size=st.integers(5, 300), added=st.integers(1, 9), other=st.integers(1, 9))
def test_large_surds_are_told_apart(size: int, added: int, other: int) -> None:
    answer = rf"\sqrt{{10^{{{2 * size}}}+{added}}}"
    assert not right(rf"10^{{{size}}}", answer)
    assert right(rf"\sqrt{{10^{{{2 * size}}}+{other}}}", answer) == (added == other)


@settings(deadline=None, max_examples=100)
@given(
    value=st.fractions(-(10**9), 10**9, max_denominator=10**4),
    decoration=st.sampled_from(("million", "dozen", "hundred")),
)
def test_a_word_that_multiplies_multiplies(value: Fraction, decoration: str) -> None:
    answer = f"{value.numerator}/{value.denominator}"
    stated = rf"{answer}\text{{ {decoration}}}"
    product = value * MULTIPLES[decoration]
    if value:
        assert not right(stated, answer)
        assert right(stated, f"{product.numerator}/{product.denominator}")


LETTERS = st.text(st.characters(codec="ascii", categories=("Ll",)), min_size=4, max_size=12)


@settings(deadline=None, max_examples=300)
@given(word=LETTERS, answer=st.sampled_from(("7", r"\frac{3}{4}", r"\sqrt{2}", "x+1", "(1,2)", r"\{1,2\}")))
def test_a_word_is_a_unit_of_the_list_or_no_answer(word: str, answer: str) -> None:
    if word not in UNITS:
        assert not right(rf"{answer}\text{{ {word}}}", answer)


# Everyday words that the package takes for a prefix and another unit: kiloseconds, attometers per second.
MISREAD = ("kilos", "amps", "rads")
UNIT_PACKAGE = (
    "meter centimeter millimeter kilometer inch foot yard mile gram kilogram milligram pound ounce second minute hour day "
    "week month year liter milliliter gallon acre hectare newton joule watt kilowatt volt ampere ohm pascal hertz mole "
    "calorie degree radian byte bit"
).split()


@pytest.mark.parametrize("name", UNIT_PACKAGE)
def test_units_have_the_dimension_that_a_units_package_gives_them(name: str) -> None:
    """Every spelling of one unit of the list is the same unit there, so that none says something else."""
    pint = pytest.importorskip("pint")
    registry = pint.UnitRegistry()
    known = registry.Unit(name)
    assert right(rf"7\text{{ {name}s}}" if name not in ("inch", "foot", "hertz") else rf"7\text{{ {name}}}", "7")
    for spelling, unit in UNITS.items():
        said = spelling.lower()
        if unit == UNITS[name] and len(said) > 3 and said not in MISREAD and said.isascii() and said in registry:
            assert registry.Unit(said) == known, spelling


def test_every_unit_is_accepted_behind_a_number_only() -> None:
    for spelling in UNITS:
        if len(spelling) > 1:
            assert right(rf"7\text{{ {spelling}}}", "7"), spelling
        assert not right(rf"8\text{{ {spelling}}}", "7"), spelling
        assert not right(rf"7\text{{ not {spelling}}}", "7"), spelling
        assert not right(rf"7\text{{ {spelling} }} 9", "7"), spelling


def test_another_unit_is_another_answer() -> None:
    names = list("cm m kg hours minutes dollars euros liters mph degrees".split())
    for one in names:
        for other in names:
            assert right(rf"5\text{{ {one}}}", rf"5\text{{ {other}}}") == (one == other)


def test_rules_of_taste() -> None:
    unevaluated, named = (r"so \boxed{17 \times 23}", "391"), (r"so \boxed{x = 5}", "5")
    assert [score(*pair).value for pair in (unevaluated, named)] == [1.0, 0.0]
    strict, lenient = "math?unevaluated=refuse", "math?named_numbers=accept"
    assert [score(*unevaluated, kind=kind).value for kind in (strict, lenient)] == [0.0, 1.0]
    assert [score(*named, kind=kind).value for kind in (strict, lenient)] == [0.0, 1.0]
    for written in ("391", "391.0", r"\frac{782}{2}", "391,0"):
        assert score(rf"\boxed{{{written}}}", "391", kind=strict).value == float(written != "391,0")
    with pytest.raises(RewardError, match="taste"):
        score("7", "7", kind="math?taste=refuse")


def test_rules_reach_the_workers() -> None:
    jobs = [(r"so \boxed{17 \times 23}", "391"), (r"so \boxed{x = 5}", "5")]
    for workers in (0, 1):
        config = RewardsConfig(workers=workers, unevaluated="refuse", named_numbers="accept")
        with RewardPool(config) as pool:
            assert [result.value for result in pool.score_many(jobs)] == [0.0, 1.0]


def test_math_verify_as_it_comes_is_a_kind() -> None:
    jobs = [(r"\boxed{\frac{6}{8}}", "0.75"), (r"\boxed{8}", "7"), (r"\boxed{1+1=7}", "7")]
    with RewardPool(RewardsConfig(kind="math_verify", timeout_seconds=30.0)) as pool:
        assert [result.value for result in pool.score_many(jobs)] == [
            1.0,
            0.0,
            1.0,
        ]  # the last is what it is wrong about


def test_generated_answers_are_judged_as_they_were_made() -> None:
    for kind, answer, response, is_right in sample(600, seed=1):
        assert (score(response, answer).value == 1.0) == is_right, (kind, answer, response)


def test_a_reference_that_is_no_value_is_compared_as_text() -> None:
    answer = r"\lim_{n\to\infty} a_n"
    assert right(answer, answer)
    assert not right(r"\lim_{n\to\infty} b_n", answer)
    assert "text" in score(r"\boxed{7}", answer).reason


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        (r"\boxed{42}. No, it is \boxed{17", "42", 0.0),
        (r"<think>try \boxed{42}, check", "42", 0.0),
        (r"<think>\boxed{9}</think> so \boxed{42}", "42", 1.0),
        (r"the sum $\frac{\boxed{7}}{9}$", "7", 0.0),
        (r"\boxed{7}^2", "7", 0.0),
        (r"so -\boxed{7}", "7", 0.0),
        (r"\boxed{7}\boxed{}", "7", 0.0),
        (r"\boxed{3}, \boxed{5} and \boxed{7}", "3, 5, 7", 1.0),
        (r"\boxed{3}, \boxed{5} and \boxed{7}", "7", 0.0),
        (r"\boxed 5.", "5", 1.0),
        (r"= \boxed9$", "9", 1.0),
        ("#### 72", "72", 1.0),
        ("The final answer is 13", "13", 1.0),
        ("Final Answer: The final answer is $13$. I hope it is correct.", "13", 1.0),
        (r"it is not equal to \boxed{7}", "7", 0.0),
        (r"\boxed{7} is incorrect", "7", 0.0),
        ("**Final Answer**\n\n**73**", "73", 1.0),
        ("Answer: 7 (wrong)", "7", 0.0),
        ("Answer: 8\nReal answer : 7 or 8", "7", 0.0),
        ("Answer: 13\n\nAnswer the next question: why?", "13", 0.0),
    ],
)
def test_where_an_answer_is_stated(response: str, answer: str, value: float) -> None:
    assert score(response, answer).value == value


EXPENSIVE = (
    "10^{10^{10}}", "(10^8)!", "((100!)!)!", r"\binom{10^9}{5\cdot 10^8}", "e^{e^{e^{e^{10}}}}", r"\sin(10^{10^{5}})", "2^{2^{2^{2^{2}}}}",
    r"\sqrt[10^9]{2}", r"(1+\sqrt{2})^{10^9}", "(x+1)^{10^9}", r"\sin^{5000} x", "x^{x^{x^{x^{x}}}}", "9" * 1990, "1e999" * 100,
    "((1e999)^{99})^{99}", r"\tan(10^{40})", "9999!", r"9999!+\sqrt{2}", r"\sin(9999!)", "e^{9999!}", "e^{-10^9}", r"\Gamma(10^9)",
    r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13})^{50}", rf"\sqrt[7]{{{'9' * 1900}}}", r"\sum_{k=1}^{10^9}k", "1" + "!" * 100,
)  # fmt: skip
REPEATED = (
    r"\sqrt{1+@}", "(@)", "{@}", r"\frac{@}{2}", "|@|", r"\sin(@)", "e^{@}", r"\ln(@)", "2^{0.5^{@}}", r"\text{@}", "x_{@}", "f(@)",
    r"\boxed{@}", r"\lfloor @ \rfloor", "x(@)", r"\{@\}", "(1,@)", r"\overline{@}",
)  # fmt: skip
LISTED = (
    "@,",
    r"\sqrt{@},",
    r"\sqrt{@}+",
    "@x^{@}+",
    r"(\sqrt{@},@9)\cup",
    "(x+@)^{@}",
    r"\sin(@x)+",
    r"@\pm",
    "@!",
    "@&",
    "@ and ",
    "-",
    "|x|",
)


def expensive_answers() -> list[str]:
    nested = [nest(template, depth) for template in REPEATED for depth in (9, 28, 300)]
    listed = ["".join(template.replace("@", str(place)) for place in range(120)) + "1" for template in LISTED]
    return [*EXPENSIVE, *nested, *listed]


def nest(template: str, depth: int) -> str:
    before, _, behind = template.partition("@")
    return before * depth + "x" + behind * depth


def test_no_answer_costs_a_worker() -> None:
    """What an answer may cost is bounded before anything of it is computed, whatever the reference asks for."""
    references = ("7", "x+1", r"\sqrt{2}", "(1,2)", r"\{1,2\}", r"x \ge 3", "y=x^2", "2^{10^{9}}-1")
    jobs = [
        (rf"\boxed{{{stated}}}", references[place % len(references)])
        for place, stated in enumerate(expensive_answers())
    ]
    with RewardPool(RewardsConfig(workers=2, timeout_seconds=5.0, memory_gib=1.0)) as pool:
        results = pool.score_many(jobs)
        assert pool.counts.timed_out == pool.counts.died == 0
    assert [job for job, result in zip(jobs, results, strict=True) if result.value] == []
    assert not [result.reason for result in results if "raised" in result.reason]
