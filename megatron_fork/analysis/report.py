"""The report of a run: one HTML file that needs no other file."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_fork.analysis.charts import draw_curves, draw_entropy_distribution
from megatron_fork.analysis.colours import LEVELS, PALETTE, EntropyScale, entropy_colours, entropy_scale
from megatron_fork.analysis.headline import facts, headlines
from megatron_fork.analysis.outcome import signal
from megatron_fork.analysis.run_record import RunRecord, read_run
from megatron_fork.analysis.tokens import fork_table, visible, visible_label
from megatron_fork.analysis.transcripts import STEPS_SHOWN, TRANSCRIPTS_SHOWN, evaluated_steps, traced_steps
from megatron_fork.errors import RunFolderError
from megatron_fork.files import write_flushed

REPORT = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    The same folder gives the same bytes. Raise AnalysisError if the folder cannot be read as a run, RunFolderError if the
    report cannot be written.
    """
    page = render(read_run(run_folder))
    path = run_folder / REPORT
    aside = run_folder / f".{REPORT}.{os.getpid()}"  # two processes may write the report of one run
    try:
        write_flushed(aside, page)
        aside.replace(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def render(record: RunRecord) -> str:
    """Return the page. Every text of the run is escaped by the template; only the charts are markup."""
    environment = Environment(
        loader=PackageLoader("megatron_fork", "analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible_label"] = visible_label
    traces = record.traces.all()
    scale = entropy_scale(value for trace in traces for value in trace.entropy)
    return environment.get_template(REPORT).render(
        name=visible(record.name),
        status=status(record),
        finished=record.finished,
        headlines=headlines(record),
        facts=facts(record),
        warning=warning(record),
        curves=draw_curves(record),
        distribution=draw_entropy_distribution(record),
        table=fork_table(traces) if traces else None,
        steps=traced_steps(record.traces, scale),
        evaluations=evaluated_steps(record.traces, scale),
        config=visible(record.config_text),
        left_out=left_out(record),
        scale=scale,
        legend=legend(scale),
        palette=PALETTE,
        light_levels=entropy_colours(dark=False),
        dark_levels=entropy_colours(dark=True),
    )


def status(record: RunRecord) -> str:
    if record.finished:
        return "finished"
    return f"unfinished, {record.metrics.last_step('train'):,} RL steps so far"


def warning(record: RunRecord) -> str:
    """Return a warning about steps without signal; empty if every step had some."""
    steps = record.metrics.stages["train"]
    without = sum(signal(step) == 0 for step in steps.values())
    if not without:
        return ""
    return (
        f"In {without:,} of {len(steps):,} steps no group of responses had signal: in each, all were right or all were wrong, "
        "and there was nothing to learn from. The transcripts below show some of them, with what the verifier said."
    )


def legend(scale: EntropyScale) -> list[str]:
    """Return the entropies in nats at the quarters of the colour map."""
    quarters = [scale.top * quarter / 4 for quarter in range(5)]
    return [f"{nats:g}" for nats in quarters[:-1]] + [f"≥ {scale.top * (LEVELS - 1) / LEVELS:.3g}"]


def left_out(record: RunRecord) -> list[str]:
    """Return one sentence for each part of the run that the report does not show."""
    metrics, traces = record.metrics, record.traces
    sentences = []
    if metrics.truncated:
        sentences.append("The last line of metrics.jsonl is half-written and was left out.")
    sentences += [f"The last line of traces/{name} is half-written and was left out." for name in traces.truncated]
    sentences += [
        f"Of traces/{name} {read:,} of {all:,} responses were read." for name, (read, all) in traces.sampled.items()
    ]
    if metrics.superseded:
        sentences.append(
            f"{metrics.superseded:,} lines of metrics.jsonl were replaced by a later line of the same stage and step."
        )
    if metrics.not_finite:
        sentences.append(f"{metrics.not_finite:,} metrics are null, NaN or infinite and leave gaps in the curves.")
    steps = {**traces.by_step, **traces.without_signal}
    if len(steps) > STEPS_SHOWN:
        sentences.append(f"Transcripts of {STEPS_SHOWN} of the {len(steps):,} traced steps are shown.")
    longer = sum(len(found) > TRANSCRIPTS_SHOWN for found in steps.values())
    if longer:
        sentences.append(
            f"Of each traced step {TRANSCRIPTS_SHOWN} transcripts are shown, right and wrong ones; {longer:,} steps have more. "
            "The distribution and the token table count all that were trained on."
        )
    return sentences
