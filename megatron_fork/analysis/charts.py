"""The charts of a run, each drawn when its series were written and left out otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.style
from markupsafe import Markup

from megatron_fork.analysis import curves
from megatron_fork.analysis.distribution import draw_distribution
from megatron_fork.analysis.figures import NARROW, WIDE, Drawing, Size
from megatron_fork.analysis.inline_svg import STYLE, inline_svg
from megatron_fork.analysis.run_record import RunRecord


@dataclass(frozen=True)
class Chart:
    """A figure as inline SVG with the words around it; `wide_svg` takes its place where the page has room for it."""

    title: str
    caption: str
    svg: Markup
    wide_svg: Markup | None


@dataclass(frozen=True)
class ChartPlan:
    """How to draw one chart: `draw` returns None when the run has written no point of it."""

    identifier: str
    title: str
    caption: str
    draw: Callable[[RunRecord, Size], Drawing | None]
    wide: bool = False


def draw_curves(record: RunRecord) -> list[Chart]:
    """Draw the metrics that the run has written, in the order of the report."""
    charts = [draw_chart(plan, record) for plan in CURVES]
    return [chart for chart in charts if chart]


def draw_entropy_distribution(record: RunRecord) -> Chart | None:
    """Draw the histogram of the entropy of traced tokens, None when no token was traced."""
    return draw_chart(DISTRIBUTION, record)


def draw_chart(plan: ChartPlan, record: RunRecord) -> Chart | None:
    with matplotlib.style.context(STYLE):
        drawing = plan.draw(record, NARROW)
        wide = plan.draw(record, WIDE) if plan.wide else None
    if drawing is None:
        return None
    svg = inline_svg(drawing.figure, plan.identifier, plan.title)
    wide_svg = inline_svg(wide.figure, f"{plan.identifier}-wide", plan.title) if wide else None
    return Chart(plan.title, f"{plan.caption} {drawing.remark}".strip(), svg, wide_svg)


CURVES = (
    ChartPlan(
        "pass-rate", "Pass rate", "Share of responses that the verifier accepts.", curves.draw_pass_rate, wide=True
    ),
    ChartPlan(
        "entropy",
        "Entropy and threshold",
        "Mean of each step, and the entropy from which a token is selected.",
        curves.draw_entropy,
    ),
    ChartPlan(
        "length", "Response length", "Mean of the step's responses, and of the held-out ones.", curves.draw_length
    ),
    ChartPlan(
        "groups",
        "Groups",
        "Sampled in each step, kept for training, and with signal: some responses better than others.",
        curves.draw_groups,
    ),
    ChartPlan("fraction", "Selected fraction", "Share of tokens that carried policy gradient.", curves.draw_fraction),
    ChartPlan(
        "overlap",
        "Overlap with the old selection",
        "Share of the selected tokens that the step's first policy would have selected too.",
        curves.draw_overlap,
    ),
    ChartPlan(
        "update",
        "Gradient norm and loss",
        "Watch the norm for spikes; the level of the loss says little, as advantages are centred in each group.",
        curves.draw_update,
    ),
    ChartPlan(
        "clip", "Clip shares", "Share of trained tokens whose ratio to the old policy was cut off.", curves.draw_clips
    ),
    ChartPlan("kl", "KL divergence", "Estimated from the trained tokens.", curves.draw_kl),
    ChartPlan("rate", "Learning rate", "Of the policy.", curves.draw_rate),
    ChartPlan(
        "mismatch",
        "Engine against trainer",
        "Difference of the log-probs that rollout engine and trainer give the same tokens.",
        curves.draw_mismatch,
    ),
    ChartPlan("time", "Where the time of a step goes", "Seconds of each step by phase, stacked.", curves.draw_time),
    ChartPlan("speed", "Tokens per second", "Trained response tokens over the time of their step.", curves.draw_speed),
    ChartPlan(
        "sft-loss", "Supervised warm-up", "Loss of the steps before reinforcement learning.", curves.draw_sft_loss
    ),
)
DISTRIBUTION = ChartPlan(
    "distribution",
    "How entropy is distributed",
    "Most tokens are all but decided; those in the tail are where a response can fork.",
    draw_distribution,
    wide=True,
)
