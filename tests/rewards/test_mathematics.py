r"""The last boxed answer earns 1 exactly when it is the reference: numbers by exact arithmetic, the rest by value."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.rewards import RewardError, score
from megatron_fork.rewards.grammar import plain_number

RIGHT = [
    ("7", "7"),
    ("7", "+7"),
    ("7", "07.00"),
    ("7", "$7$"),
    ("7", "7."),
    ("7", r"\frac{14}{2}"),
    ("7", r"\sqrt{49}"),
    ("7", r"2^3 - 1"),
    ("7", r"7\text{ cm}"),
    ("-7", "\u22127"),
    ("1234567", "1,234,567"),
    ("1234567", r"1{,}234{,}567"),
    ("1234567", r"1\,234\,567"),
    ("12000", r"12,\!000"),
    ("0.5", r"\dfrac12"),
    ("1/2", "0.50"),
    ("1/2", ".5"),
    ("-1/2", r"\frac{-1}{2}"),
    ("-1/2", r"-\tfrac{1}{2}"),
    ("2.5", r"2\frac{1}{2}"),
    ("5", r"\$5"),
    ("50%", r"50\%"),
    ("0.5", r"50\%"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+1", "1 + x^2"),
    ("2x+3", "y = 2x + 3"),
    ("y=2x+3", "2x+3 = y"),
    (r"\left(1, 2\right)", "(1,2)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{2\pi}", r"2 \pi"),
    ("Monday", "Monday"),
]

WRONG = [
    ("7", "8"),
    ("7", "-7"),
    ("7", "1+1=7"),
    ("7", "7 = 1+1"),
    ("7", "x = 7"),
    ("7", r"3^{10} \bmod 7"),
    ("7", r"7 \pmod 9"),
    ("7", r"7 \mod 10"),
    ("7", r"7 \% 10"),
    ("7", "x > 6"),
    ("7", r"\approx 7"),
    ("7", "7.0000001"),
    ("7", "6, 7"),
    ("7", r"6 \text{ or } 7"),
    ("15", "8 7"),
    ("12", "1 2"),
    ("1/3", "0.333333"),
    ("2", "1.9999999999999999"),
    ("50", r"50\%"),
    ("50%", "50"),
    ("50", r"(25+25)\%"),
    ("1234", "1, 234"),
    ("1/2", r"1\frac12"),
    ("0", r"\frac{0}{0}"),
    ("2x+3", "1 = 2x+3"),
    ("2x+3", "2x+4"),
    ("(1,2)", "[1,2]"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    ("7", ""),
    ("", ""),
    ("7", "9" * 3000),
]


@pytest.mark.parametrize(("answer", "boxed"), RIGHT)
def test_right_answers(answer: str, boxed: str) -> None:
    assert score(rf"We get \boxed{{{boxed}}}.", answer).value == 1.0


@pytest.mark.parametrize(("answer", "boxed"), WRONG)
def test_wrong_answers(answer: str, boxed: str) -> None:
    assert score(rf"We get \boxed{{{boxed}}}.", answer).value == 0.0


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (r"first \boxed{8}, no: \boxed{7}", 1.0),
        (r"first \boxed{7}, no: \boxed{8}", 0.0),
        (r"\boxed{7} and then, cut off, \boxed{8", 0.0),
        (r"\boxed{\boxed{7}}", 1.0),
        (r"an open { before \boxed{7}", 1.0),
        (r"\boxed {7} } }", 1.0),
        ("Answer: 8\nAnswer: 7\n", 1.0),
        ("Answer: 7\nAnswer: 8\n", 0.0),
        ("**Answer:** $7$.\n", 1.0),
        ("**Final answer**: **7**", 1.0),
        (r"Answer: \(7\)", 1.0),
        ("\\boxed{8}\nAnswer: 7", 0.0),
        ("Answer: 7}", 0.0),
        ("the result is 7", 0.0),
        ("", 0.0),
    ],
)
def test_where_the_answer_is_read(response: str, value: float) -> None:
    assert score(response, "7").value == value


def test_nested_braces_stay_whole() -> None:
    assert score(r"\boxed{\frac{3^{2}}{\sqrt{x}}}", r"\frac{9}{\sqrt{x}}").value == 1.0
    assert score(r"\boxed{\{1, 2\}}", r"\{2, 1\}").value == 1.0


@pytest.mark.parametrize(
    "response", [r"\boxed{" * 100_000, "}" * 300_000, r"\boxed{\frac{}{}}", "\\boxed{\x00\ud800}", "\\"]
)
def test_hostile_text_scores_zero(response: str) -> None:
    result = score(response, "x+1")
    assert result.value == 0.0
    assert result.reason.isprintable()


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(RewardError, match="maths") as caught:
        score("7", "7", kind="maths")
    assert "math" in caught.value.hint
    assert "reach" in caught.value.hint


def spellings(value: Fraction) -> list[str]:
    sign, size = ("-" if value < 0 else ""), abs(value)
    top, bottom = size.numerator, size.denominator
    fractions = [rf"{sign}{top}/{bottom}", rf"{sign}\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{sign}{top}}}{{{bottom}}}"]
    if bottom != 1:
        return fractions
    return [*fractions, f"{sign}{top}", f"{sign}{top:,}", f"{sign}{top}.00", f"{sign}{top * 100}%"]


@pytest.mark.parametrize("written", ["-100%", r"-100\%", "-1", "-1.00"])
def test_a_sign_before_a_percentage_is_a_number_s(written: str) -> None:
    assert plain_number(written) == -1


@given(st.fractions(max_denominator=10**6), st.data())
def test_every_spelling_of_a_number_has_its_value(value: Fraction, data: st.DataObject) -> None:
    assert plain_number(data.draw(st.sampled_from(spellings(value)))) == value


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000), st.data())
def test_numbers_are_right_exactly_when_equal(answer: Fraction, claim: Fraction, data: st.DataObject) -> None:
    written, claimed = (data.draw(st.sampled_from(spellings(value))) for value in (answer, claim))
    assert score(rf"\boxed{{{claimed}}}", written).value == float(answer == claim)
