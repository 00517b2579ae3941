"""The charts of a run, each drawn when its series were written and left out otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.style
import numpy
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.distribution import draw_distribution
from megatron_fork.analysis.figures import (
    NARROW,
    WIDE,
    Drawing,
    draw_line,
    draw_lines,
    finished,
    label_axes,
    new_figure,
)
from megatron_fork.analysis.inline_svg import STYLE, inline_svg
from megatron_fork.analysis.metrics import Metrics, Series
from megatron_fork.analysis.run_record import RunRecord

BLUE, SKY, ORANGE, TEAL, VIOLET, STONE, MUTED = (
    PALETTE[name][0] for name in ("blue", "sky", "orange", "teal", "violet", "stone", "muted")
)


@dataclass(frozen=True)
class Chart:
    """A figure as inline SVG with the words around it; `wide` asks for the full width of the page."""

    title: str
    caption: str
    svg: Markup
    wide: bool


@dataclass(frozen=True)
class ChartPlan:
    """How to draw one chart: `draw` returns None when the run has written no point of it."""

    identifier: str
    title: str
    caption: str
    draw: Callable[[RunRecord], Drawing | None]


def draw_curves(record: RunRecord) -> list[Chart]:
    """Draw the metrics that the run has written, in the order of the report."""
    charts = [draw_chart(plan, record) for plan in CURVES]
    return [chart for chart in charts if chart]


def draw_entropy_distribution(record: RunRecord) -> Chart | None:
    """Draw the histogram of the entropy of traced tokens, None when no token was traced."""
    return draw_chart(DISTRIBUTION, record)


def draw_chart(plan: ChartPlan, record: RunRecord) -> Chart | None:
    with matplotlib.style.context(STYLE):
        drawing = plan.draw(record)
    if drawing is None:
        return None
    svg = inline_svg(drawing.figure, plan.identifier, plan.title)
    wide = bool(drawing.figure.get_figwidth() == WIDE[0])
    return Chart(plan.title, f"{plan.caption} {drawing.remark}".strip(), svg, wide)


def draw_pass_rate(record: RunRecord) -> Drawing | None:
    metrics = record.metrics
    rollouts, held_out = metrics.series("train", "rollout/pass_rate"), metrics.series("evaluation", "pass_rate")
    greedy = metrics.series("evaluation", "greedy")
    if not (rollouts or held_out or greedy):
        return None
    figure, axes = new_figure("RL step", "pass rate", WIDE)
    if rollouts:
        draw_line(axes, rollouts, "training rollouts, each step", SKY, width=1.1)
    if greedy:
        axes.plot(greedy.steps, greedy.values, "--D", color=TEAL, markersize=4.5, label="held out, greedy")
    if held_out:
        axes.errorbar(
            held_out.steps,
            held_out.values,
            yerr=standard_errors(metrics, held_out),
            label="held out, sampled, ± 1 standard error",
            color=BLUE,
            marker="o",
            markersize=5.5,
            capsize=3,
            linewidth=1.8,
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return finished(figure)


def standard_errors(metrics: Metrics, held_out: Series) -> numpy.ndarray:
    """Return one standard error a held-out point, 0 where none was written: the point then has no bar."""
    errors = metrics.series("evaluation", "pass_rate_se")
    written = dict(zip(errors.steps, errors.values, strict=True))
    return numpy.array([max(numpy.nan_to_num(written.get(step, 0.0)), 0.0) for step in held_out.steps])


def draw_entropy(record: RunRecord) -> Drawing | None:
    names = {
        "entropy/selected_mean": ("mean, selected", ORANGE, "-"),
        "selection/threshold": ("threshold", MUTED, "--"),
        "entropy/mean": ("mean, all tokens", BLUE, "-"),
    }
    return draw_lines(record.metrics, names, "entropy (nats)", from_zero=True)


def draw_fraction(record: RunRecord) -> Drawing | None:
    fraction = record.metrics.series("train", "selection/fraction")
    if not fraction:
        return None
    figure, axes = new_figure("RL step", "selected / candidate tokens")
    draw_line(axes, fraction, "selected fraction", ORANGE)
    ratio = record.configured("selection", "ratio")
    if isinstance(ratio, int | float):
        axes.axhline(ratio, color=MUTED, linestyle="--", linewidth=1.1, label=f"configured ratio {ratio:g}")
    axes.set_ylim(0, max(1.25 * float(numpy.nanmax(fraction.values)), 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return finished(figure)


def draw_update(record: RunRecord) -> Drawing | None:
    panels = {"gradient_norm": ("gradient norm", BLUE), "loss": ("policy loss", VIOLET)}
    drawn = {name: series for name in panels if (series := record.metrics.series("train", name))}
    if not drawn:
        return None
    figure = Figure(figsize=NARROW, layout="constrained")
    for axes, (name, series) in zip(
        figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0], drawn.items(), strict=True
    ):
        label, colour = panels[name]
        label_axes(axes, "", label)
        draw_line(axes, series, label, colour)
    axes.set_xlabel("RL step")
    return finished(figure)


def draw_mismatch(record: RunRecord) -> Drawing | None:
    names = {"mismatch/max": ("maximum", ORANGE), "mismatch/mean": ("mean", BLUE), "mismatch/k3": ("k3 estimate", TEAL)}
    figure, axes = new_figure("RL step", "log-prob difference (nats)")
    absent, drawn = 0, False
    for name, (label, colour) in names.items():
        series = record.metrics.series("train", name)
        drawn = drawn or bool(series)
        absent += int((series.values <= 0).sum())
        positive = Series(series.steps, numpy.where(series.values > 0, series.values, numpy.nan))
        if positive:
            draw_line(axes, positive, label, colour)
    if not drawn:
        return None
    remark = f"{absent} values of 0 or below have no place on the log axis." if absent else ""
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.text(0.5, 0.5, "0 at every step", transform=axes.transAxes, ha="center", color=MUTED)
    return finished(figure, remark)


def draw_time(record: RunRecord) -> Drawing | None:
    whole = record.metrics.series("train", "time/step")
    names = {"rollout": BLUE, "statistics": TEAL, "update": ORANGE, "synchronise": VIOLET}
    parts = {name: record.metrics.series("train", f"time/{name}") for name in names}
    written = [series for series in [whole, *parts.values()] if series]
    if not written:
        return None
    steps = numpy.unique(numpy.concatenate([series.steps for series in written]))
    heights = {name: on_steps(series, steps) for name, series in parts.items() if series}
    if whole:
        heights["other"] = numpy.maximum(on_steps(whole, steps) - sum(heights.values()), 0.0)
    figure, axes = new_figure("RL step", "time (s)")
    edges, below = step_edges(steps), numpy.zeros(len(steps))
    for name, height in heights.items():
        axes.stairs(
            below + height, edges, baseline=below, fill=True, color=names.get(name, STONE), label=name, alpha=0.85
        )
        below = below + height
    axes.set_ylim(bottom=0)
    return finished(figure)


def on_steps(series: Series, steps: numpy.ndarray) -> numpy.ndarray:
    """Return the values at `steps`, 0 where none was written."""
    written = dict(zip(series.steps, numpy.nan_to_num(series.values), strict=True))
    return numpy.array([written.get(step, 0.0) for step in steps])


def step_edges(steps: numpy.ndarray) -> numpy.ndarray:
    """Return the borders of the bars around `steps` [points], halfway to the neighbour: [points + 1]."""
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = (middles[0], middles[-1]) if len(middles) else (steps[0] + 0.5, steps[0] - 0.5)
    return numpy.concatenate([[2 * steps[0] - first], middles, [2 * steps[-1] - last]])


def draw_sft_loss(record: RunRecord) -> Drawing | None:
    names = {"loss": ("SFT loss", VIOLET, "-")}
    return draw_lines(record.metrics, names, "cross-entropy (nats per token)", stage="sft", x_label="SFT step")


CURVES = (
    ChartPlan("pass-rate", "Pass rate", "Share of responses that the verifier accepts.", draw_pass_rate),
    ChartPlan(
        "entropy",
        "Entropy and threshold",
        "Mean of each step, and the entropy from which a token is selected.",
        draw_entropy,
    ),
    ChartPlan("fraction", "Selected fraction", "Share of tokens that carried policy gradient.", draw_fraction),
    ChartPlan(
        "update",
        "Gradient norm and loss",
        "Watch the norm for spikes; the level of the loss says little, as advantages are centred in each group.",
        draw_update,
    ),
    ChartPlan(
        "mismatch",
        "Engine against trainer",
        "Difference of the log-probs that rollout engine and trainer give the same tokens.",
        draw_mismatch,
    ),
    ChartPlan("time", "Where the time of a step goes", "Seconds of each step by phase, stacked.", draw_time),
    ChartPlan("sft-loss", "Supervised warm-up", "Loss of the steps before reinforcement learning.", draw_sft_loss),
)
DISTRIBUTION = ChartPlan(
    "distribution",
    "How entropy is distributed",
    "Most tokens are all but decided; those in the tail are where a response can fork.",
    draw_distribution,
)
