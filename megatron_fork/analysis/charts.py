"""The charts of a run as inline SVG; a chart is left out if the run has not written its series."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from megatron_fork.analysis import curves
from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.distribution import draw_distribution
from megatron_fork.analysis.figures import NARROW, WIDE, Drawing, Size
from megatron_fork.analysis.run_record import RunRecord

INK, MUTED, RULE = (PALETTE[name][0] for name in ("ink", "muted", "rule"))

# "default" first: a user's matplotlibrc must not change the report.
STYLE: list[str | Path | dict[str, Any]] = [
    "default",
    {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": MUTED,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": 9,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.5,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
        # Draw every point that was written.
        "path.simplify": False,
        # Keep text as text, so that it takes the font of the page and can be searched.
        "svg.fonttype": "none",
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    },
]


@dataclass(frozen=True)
class Chart:
    """A figure as inline SVG with its title and caption; the page shows `wide_svg` instead if there is room for it."""

    title: str
    caption: str
    svg: Markup
    wide_svg: Markup | None


@dataclass(frozen=True)
class ChartPlan:
    """How to draw one chart: `draw` returns None if the run has written no point of it."""

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
    """Draw the histogram of the entropy of traced tokens; None if no token was traced."""
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


def inline_svg(figure: Figure, identifier: str, label: str) -> Markup:
    """Return a figure as one `<svg>` element, the same text for the same figure.

    Every id in it begins with `identifier`, so that figures on one page do not share ids; `label` is for screen readers.
    Colours of the palette become CSS variables of the page. The figure must have been made under `STYLE`.
    """
    buffer = io.StringIO()
    with matplotlib.style.context([*STYLE, {"svg.hashsalt": identifier}]):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{identifier}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{identifier}-", svg)
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box, "matplotlib writes a view box"
    opening = Markup('<svg {} role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg"').format(
        Markup(view_box.group()), label
    )
    xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(opening + Markup(xlink) + Markup(svg[svg.index(">") + 1 :].strip()))


CURVES = (
    ChartPlan(
        "pass-rate", "Pass rate", "Share of responses that the verifier accepts.", curves.draw_pass_rate, wide=True
    ),
    ChartPlan("sets", "Evaluation sets", "Mean over problems of each set, ± 1 s.e.", curves.draw_sets, wide=True),
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
