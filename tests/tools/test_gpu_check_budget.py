"""The parts' limits never pass the minutes that were given, and where these are enough each part gets what it needs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))
from gpu_check.budget import BEFORE_SECONDS, limit_of, refuse_too_few  # noqa: E402
from gpu_check.errors import CheckError  # noqa: E402
from gpu_check.parts import PARTS, Part, chosen  # noqa: E402

PARTS_OF_ANY_SHARE = st.lists(
    st.builds(
        lambda share, least, most: replace(PARTS[0], share=share, least=least, most=least + most),
        *(st.floats(1, 100), st.floats(1, 60), st.floats(0, 600)),
    ),
    min_size=1,
    max_size=15,
)


@given(parts=PARTS_OF_ANY_SHARE, seconds=st.floats(1, 2000), used=st.lists(st.floats(0, 1), min_size=15, max_size=15))
def test_limits_fit_however_early_parts_end(parts: list[Part], seconds: float, used: list[float]) -> None:
    left = seconds
    for place, (part, fraction) in enumerate(zip(parts, used, strict=False)):
        rest = parts[place + 1 :]
        limit = limit_of(part, rest, left)
        assert 0.0 <= limit <= min(left * (1 + 1e-12), part.most)
        if not rest:
            assert limit == pytest.approx(min(left, part.most))
        left -= limit * fraction
    assert left >= -1e-6


@given(parts=PARTS_OF_ANY_SHARE, early=st.lists(st.floats(0, 1), min_size=15, max_size=15))
def test_with_the_minutes_that_the_refusal_names_every_part_gets_what_it_needs(
    parts: list[Part], early: list[float]
) -> None:
    with pytest.raises(CheckError) as refused:
        refuse_too_few(parts, 0.01)
    minutes = float(refused.value.hint.split("at least ")[1].split()[0].replace(",", ""))
    refuse_too_few(parts, minutes)
    left = minutes * 60 - BEFORE_SECONDS
    for place, (part, fraction) in enumerate(zip(parts, early, strict=False)):
        limit = limit_of(part, parts[place + 1 :], left)
        assert limit >= part.least - 1e-6
        left -= limit * fraction


def test_all_parts_fit_the_minutes_that_are_the_default() -> None:
    refuse_too_few(PARTS, 8.0)


def test_a_part_without_time_left_gets_none() -> None:
    assert limit_of(PARTS[0], PARTS[1:], -5.0) == 0.0


def test_a_group_names_all_that_begin_so_in_the_tables_order() -> None:
    assert [part.name for part in chosen(["head", "kernels"])] == ["kernels", "head-8b", "head-32b"]
    assert chosen([]) == list(PARTS)
    assert len({part.name for part in PARTS}) == len(PARTS)
    with pytest.raises(CheckError) as refused:
        chosen(["kernel"])
    assert "did you mean kernels?" in refused.value.hint
