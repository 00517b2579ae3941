"""The charts of a run's metrics over its steps."""

from __future__ import annotations

import re

import numpy
from matplotlib.figure import Figure

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.figures import (
    Drawing,
    Line,
    Size,
    draw_line,
    draw_lines,
    finished,
    label_axes,
    log_ticks,
    new_figure,
    round_ticks,
)
from megatron_fork.analysis.metrics import Metrics, Series
from megatron_fork.analysis.run_record import RunRecord

BLUE, SKY, ORANGE, TEAL, VIOLET, STONE, MUTED = (
    PALETTE[name][0] for name in ("blue", "sky", "orange", "teal", "violet", "stone", "muted")
)

_COLOURS = (BLUE, ORANGE, TEAL, VIOLET, SKY, STONE)
_OF_A_SET = re.compile(r"[A-Za-z0-9_-]+/avg@\d+")


def draw_pass_rate(record: RunRecord, size: Size) -> Drawing | None:
    metrics = record.metrics
    rollouts, held_out = metrics.series("train", "rollout/pass_rate"), metrics.series("evaluation", "pass_rate")
    greedy = metrics.series("evaluation", "greedy")
    if not (rollouts or held_out or greedy):
        return None
    figure, axes = new_figure("RL step", "pass rate", size)
    if rollouts:
        draw_line(axes, rollouts, Line("training rollouts", SKY), width=1.1)
    if greedy:
        axes.plot(greedy.steps, greedy.values, "--D", color=TEAL, markersize=4.5, label="held out, greedy")
    if held_out:
        axes.errorbar(
            held_out.steps,
            held_out.values,
            yerr=standard_errors(metrics, held_out),
            label="held out, sampled, ± 1 s.e.",
            color=BLUE,
            marker="o",
            markersize=5.5,
            capsize=3,
            linewidth=1.8,
        )
    highest = max(float(numpy.nanmax(series.values)) for series in (rollouts, held_out, greedy) if series)
    axes.set_ylim(bottom=0, top=None if highest > 0 else 1)
    round_ticks(axes.yaxis, unit="%")
    return finished(figure)


def standard_errors(metrics: Metrics, held_out: Series, name: str = "pass_rate_se") -> numpy.ndarray:
    """Return one standard error for each evaluated point; 0 if none was written: the point then has no bar."""
    errors = metrics.series("evaluation", name)
    written = dict(zip(errors.steps, errors.values, strict=True))
    return numpy.array([max(numpy.nan_to_num(written.get(step, 0.0)), 0.0) for step in held_out.steps])


def draw_sets(record: RunRecord, size: Size) -> Drawing | None:
    """A curve for the avg@k of each prompt set."""
    metrics = record.metrics
    written = {name for values in metrics.stages["evaluation"].values() for name in values if _OF_A_SET.fullmatch(name)}
    drawn = {name: series for name in sorted(written) if (series := metrics.series("evaluation", name))}
    if not drawn:
        return None
    figure, axes = new_figure("RL step", "avg@k", size)
    for place, (name, series) in enumerate(drawn.items()):
        axes.errorbar(
            series.steps,
            series.values,
            yerr=standard_errors(metrics, series, f"{name}_se"),
            label=name,
            color=_COLOURS[place % len(_COLOURS)],
            marker="o",
            markersize=4.5,
            capsize=3,
            linewidth=1.5,
        )
    highest = max(float(numpy.nanmax(series.values)) for series in drawn.values())
    axes.set_ylim(bottom=0, top=None if highest > 0 else 1)
    round_ticks(axes.yaxis, unit="%")
    return finished(figure)


def draw_entropy(record: RunRecord, size: Size) -> Drawing | None:
    lines = {
        "entropy/selected_mean": Line("mean, selected", ORANGE),
        "selection/threshold": Line("threshold", MUTED, "--"),
        "entropy/mean": Line("mean, all tokens", BLUE),
    }
    return draw_lines(record.metrics, lines, "entropy (nats)", size, from_zero=True)


def draw_length(record: RunRecord, size: Size) -> Drawing | None:
    lines = {
        "rollout/response_tokens": Line("trained", SKY),
        "response_tokens": Line("held out", BLUE, stage="evaluation"),
    }
    return draw_lines(record.metrics, lines, "response tokens", size, from_zero=True)


def draw_groups(record: RunRecord, size: Size) -> Drawing | None:
    lines = {
        "rollout/groups_sampled": Line("sampled", STONE),
        "rollout/groups_kept": Line("kept", BLUE),
        "rollout/groups_with_signal": Line("with signal", TEAL, "--"),
    }
    return draw_lines(record.metrics, lines, "groups of a step", size, from_zero=True, whole=True)


def draw_overlap(record: RunRecord, size: Size) -> Drawing | None:
    lines = {"selection/overlap_old": Line("overlap", ORANGE)}
    return draw_lines(record.metrics, lines, "share of the selection", size, unit="%")


def draw_clips(record: RunRecord, size: Size) -> Drawing | None:
    lines = {
        "objective/clipped_high": Line("from above", ORANGE),
        "objective/clipped_low": Line("from below", BLUE),
        "objective/dual_clipped": Line("dual clip", VIOLET, "--"),
        "objective/covered": Line("by covariance", TEAL),
    }
    return draw_lines(record.metrics, lines, "share of trained tokens", size, from_zero=True, unit="%")


def draw_kl(record: RunRecord, size: Size) -> Drawing | None:
    lines = {
        "objective/k3": Line("to the old policy", BLUE),
        "objective/kl": Line("to the reference", VIOLET),
    }
    return draw_lines(record.metrics, lines, "KL (nats per token)", size, from_zero=True)


def draw_rate(record: RunRecord, size: Size) -> Drawing | None:
    return draw_lines(record.metrics, {"learning_rate": Line("learning rate", TEAL)}, "", size, from_zero=True)


def draw_speed(record: RunRecord, size: Size) -> Drawing | None:
    lines = {"tokens_per_second": Line("tokens per second", BLUE)}
    return draw_lines(record.metrics, lines, "tokens / s", size, from_zero=True)


def draw_fraction(record: RunRecord, size: Size) -> Drawing | None:
    fraction = record.metrics.series("train", "selection/fraction")
    if not fraction:
        return None
    figure, axes = new_figure("RL step", "share of candidate tokens", size)
    draw_line(axes, fraction, Line("selected", ORANGE))
    ratio = record.configured("selection", "ratio")
    if isinstance(ratio, int | float):
        axes.axhline(ratio, color=MUTED, linestyle="--", linewidth=1.1, label=f"asked for: {ratio:g}")
    axes.set_ylim(0, max(1.25 * float(numpy.nanmax(fraction.values)), 0.01))
    round_ticks(axes.yaxis, unit="%")
    return finished(figure)


def draw_update(record: RunRecord, size: Size) -> Drawing | None:
    panels = {"gradient_norm": ("gradient norm", BLUE), "loss": ("policy loss", VIOLET)}
    drawn = {name: series for name in panels if (series := record.metrics.series("train", name))}
    if not drawn:
        return None
    figure = Figure(figsize=size, layout="constrained")
    for axes, (name, series) in zip(
        figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0], drawn.items(), strict=True
    ):
        label, colour = panels[name]
        label_axes(axes, "", "", size)
        draw_line(axes, series, Line(label, colour))
        round_ticks(axes.yaxis, most=3)
    axes.set_xlabel("RL step")
    return finished(figure)


def draw_mismatch(record: RunRecord, size: Size) -> Drawing | None:
    names = {"mismatch/max": ("maximum", ORANGE), "mismatch/mean": ("mean", BLUE), "mismatch/k3": ("k3 estimate", TEAL)}
    figure, axes = new_figure("RL step", "difference (nats)", size)
    absent, drawn = 0, False
    for name, (label, colour) in names.items():
        series = record.metrics.series("train", name)
        drawn = drawn or bool(series)
        absent += int((series.values <= 0).sum())
        positive = Series(series.steps, numpy.where(series.values > 0, series.values, numpy.nan))
        if positive:
            draw_line(axes, positive, Line(label, colour))
    if not drawn:
        return None
    remark = f"{absent} values of 0 or below have no place on the log axis." if absent else ""
    if axes.lines:
        axes.set_yscale("log")
        log_ticks(axes)
    else:
        axes.text(0.5, 0.5, "0 at every step", transform=axes.transAxes, ha="center", color=MUTED)
    return finished(figure, remark)


def draw_time(record: RunRecord, size: Size) -> Drawing | None:
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
    figure, axes = new_figure("RL step", "time (s)", size)
    edges, below = step_edges(steps), numpy.zeros(len(steps))
    for name, height in heights.items():
        axes.stairs(
            below + height, edges, baseline=below, fill=True, color=names.get(name, STONE), label=name, alpha=0.85
        )
        below = below + height
    axes.set_ylim(bottom=0)
    return finished(figure)


def on_steps(series: Series, steps: numpy.ndarray) -> numpy.ndarray:
    """Return the values at `steps`, 0 if none was written."""
    written = dict(zip(series.steps, numpy.nan_to_num(series.values), strict=True))
    return numpy.array([written.get(step, 0.0) for step in steps])


def step_edges(steps: numpy.ndarray) -> numpy.ndarray:
    """Return the edges of the bars around `steps` [points], halfway to the neighbours: [points + 1]."""
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = (middles[0], middles[-1]) if len(middles) else (steps[0] + 0.5, steps[0] - 0.5)
    return numpy.concatenate([[2 * steps[0] - first], middles, [2 * steps[-1] - last]])


def draw_sft_loss(record: RunRecord, size: Size) -> Drawing | None:
    lines = {"loss": Line("SFT loss", VIOLET, stage="sft")}
    return draw_lines(record.metrics, lines, "nats per token", size, x_label="SFT step", from_zero=True)
