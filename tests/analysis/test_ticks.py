"""Ticks stand at steps of 1, 2 or 5 times a power of ten, of steps and counts at whole numbers, and none covers another."""

import itertools
import math

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from megatron_fork.analysis.figures import NARROW, WIDE, Line, draw_lines, legend_columns, number_text, share_text
from megatron_fork.analysis.metrics import Metrics


def metrics_of(values: dict[int, float]) -> Metrics:
    return Metrics({"train": {step: {"m": value} for step, value in values.items()}}, 0, 0, truncated=False)


def is_round(step: float) -> bool:
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    return any(math.isclose(mantissa, good, rel_tol=1e-6) for good in (1, 2, 5))


def shown(axis) -> list:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    return [tick for tick in axis.get_major_ticks() if low - slack <= tick.get_loc() <= high + slack]


@given(
    st.dictionaries(st.integers(0, 200_000), st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.sampled_from([NARROW, WIDE]),
    st.sampled_from(["", "%"]),
)
@settings(deadline=None, max_examples=20)
def test_any_series_has_round_ticks_that_do_not_overlap(values: dict[int, float], size, unit: str) -> None:
    spread = max(values.values()) - min(values.values())
    assume(spread == 0 or spread > 1e-6 * max(map(abs, values.values())))  # else the ticks differ in their last digits
    drawing = draw_lines(metrics_of(values), {"m": Line("m", "#000000")}, "m", size, unit=unit)
    figure = drawing.figure
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for axis in (axes.xaxis, axes.yaxis):
        places = numpy.array([tick.get_loc() for tick in shown(axis)])
        assert len(places) <= 12
        if len(places) > 1:
            assert is_round(float(numpy.diff(places).min()))
    assert all(float(tick.get_loc()).is_integer() for tick in shown(axes.xaxis))
    boxes = [tick.label1.get_window_extent() for tick in shown(axes.xaxis)]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.30000000000000004, "0.3"), (12000, "12,000"), (2e-6, "2e-6"), (1e-5, "1e-5"), (-0.05, "-0.05")],
)
def test_numbers_as_a_reader_writes_them(value: float, text: str) -> None:
    assert number_text(value) == text


def test_shares_are_percents() -> None:
    assert [share_text(value) for value in (0.07, 1.0, 0.005)] == ["7 %", "100 %", "0.5 %"]


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6), st.floats(50, 900))
def test_a_legend_has_as_many_columns_as_fit(labels: list[str], points: float) -> None:
    assert 1 <= legend_columns(labels, points) <= len(labels)
    assert legend_columns(labels, points) <= legend_columns(labels, 2 * points)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), st.booleans())
@settings(deadline=None, max_examples=20)
def test_every_value_is_within_the_axes(values: list[float], from_zero: bool) -> None:
    """Also the negative estimate of what is drawn from zero; where all is zero the axis is not a sliver around it."""
    drawing = draw_lines(
        metrics_of(dict(enumerate(values))), {"m": Line("m", "#000000")}, "m", NARROW, from_zero=from_zero
    )
    low, high = drawing.figure.axes[0].get_ylim()
    assert low <= min(values) and max(values) <= high
    if from_zero and min(values) >= 0:
        assert low == 0 and (max(values) > 0 or high == 1)
