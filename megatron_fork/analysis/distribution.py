"""How the entropy of the traced tokens is distributed, and where the selection cuts."""

from __future__ import annotations

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.figures import WIDE, Drawing, finished, new_figure
from megatron_fork.analysis.run_record import RunRecord

STONE, ORANGE, BLUE, INK = (PALETTE[name][0] for name in ("stone", "orange", "blue", "ink"))


def draw_distribution(record: RunRecord) -> Drawing | None:
    traces = record.traces.all()
    entropy = numpy.array([value for trace in traces for value in trace.entropy], dtype=float)
    selected = numpy.array([value for trace in traces for value in trace.selected], dtype=bool)
    finite = numpy.isfinite(entropy)
    if not finite.any():
        return None
    edges = numpy.linspace(min(float(entropy[finite].min()), 0.0), max(float(entropy[finite].max()), 0.1), 61)
    everything, _ = numpy.histogram(entropy[finite], edges)
    gradient, _ = numpy.histogram(entropy[finite & selected], edges)
    figure, axes = new_figure("entropy of a response token (nats)", "traced tokens, log count", WIDE)
    # The bars of a log axis cannot be stacked: both stand on the axis, the selected share in front.
    axes.stairs(everything, edges, fill=True, color=STONE, label="all traced tokens", baseline=0.5)
    axes.stairs(gradient, edges, fill=True, color=ORANGE, label="carried gradient", baseline=0.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10))
    mark_thresholds(axes, record)
    not_finite = int((~finite).sum())
    remark = f"{not_finite} tokens whose entropy is not finite are left out." if not_finite else ""
    return finished(figure, f"{int(finite.sum()):,} tokens of {len(traces):,} trajectories. {remark}".strip())


def mark_thresholds(axes: Axes, record: RunRecord) -> None:
    """Mark the threshold of the traced steps: a line for one, a band from lowest to highest for more."""
    series = record.metrics.series("train", "selection/threshold")
    traced = numpy.isin(series.steps, list(record.traces.by_step)) & numpy.isfinite(series.values)
    if not traced.any():
        return
    steps, values = series.steps[traced], series.values[traced]
    label = f"threshold, step {steps[-1]}: {values[-1]:.2f} nats"
    axes.axvline(values[-1], color=INK, linestyle="--", linewidth=1.2, label=label)
    if len(values) > 1:
        band = f"thresholds, traced steps: {values.min():.2f} to {values.max():.2f} nats"
        axes.axvspan(values.min(), values.max(), color=BLUE, alpha=0.18, linewidth=0, label=band)
