"""The colours of entropy rise evenly to a round top."""

import pytest

from megatron_fork.analysis.colours import LEVELS, entropy_colours, entropy_scale


@pytest.mark.parametrize(("percentile", "top"), [(0.0, 0.5), (2.2, 2.5), (2.5, 2.5), (float("nan"), 0.5)])
def test_scale_has_a_round_top(percentile: float, top: float) -> None:
    assert entropy_scale(percentile).top == top


def test_the_legend_ends_where_the_last_colour_begins() -> None:
    assert entropy_scale(2.0).legend() == ["0", "0.5", "1", "1.5", "≥ 1.88"]


def test_each_level_has_a_colour_of_its_own() -> None:
    assert len(set(entropy_colours(dark=False))) == len(set(entropy_colours(dark=True))) == LEVELS
