"""Puts a page together: reads the responses twice, first what is to be shown of them, then all of their tokens."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_fork.analysis.charts import CURVES, draw_charts
from megatron_fork.analysis.colours import LEVELS, PALETTE, entropy_colours, entropy_scale
from megatron_fork.analysis.headline import facts, headlines
from megatron_fork.analysis.json_lines import AnalysisError
from megatron_fork.analysis.metrics import Series
from megatron_fork.analysis.page.evaluations import Estimates, estimates_at
from megatron_fork.analysis.page.overview import left_out, sampled, set_rows, status, warning
from megatron_fork.analysis.page.payload import Payload
from megatron_fork.analysis.page.plots import PLOTS, Entropies
from megatron_fork.analysis.page.responses import Facts, Sources, Vocabulary
from megatron_fork.analysis.page.sampling import Budget, chosen
from megatron_fork.analysis.page.sources import sources_at
from megatron_fork.analysis.page.statistics import Statistics
from megatron_fork.analysis.page.token_table import token_table
from megatron_fork.analysis.publication import save_plot
from megatron_fork.analysis.run_record import RunRecord, read_run
from megatron_fork.analysis.tokens import visible
from megatron_fork.errors import RunFolderError
from megatron_fork.files import write_flushed

SCRIPTS = ("data.js", "transcript.js", "list.js", "table.js", "theme.js")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Gathered:
    """All that a page shows. `record` of the run, if one is among the places; `facts` of every response."""

    title: str
    record: RunRecord | None
    facts: list[Facts]
    statistics: Statistics
    vocabulary: Vocabulary
    payload: Payload
    truncated: list[str]
    estimates: list[Estimates]

    def entropies(self) -> Entropies:
        steps = {each.step for each in self.facts if each.kind == "trained"}
        of_run = (
            self.record.metrics.series("train", "selection/threshold") if self.record else Series(*numpy.zeros((2, 0)))
        )
        traced = numpy.isin(of_run.steps, [step for step in steps if step is not None])
        return Entropies(self.statistics, Series(of_run.steps[traced], of_run.values[traced]))


def write_page(places: list[Path], out: Path, *, figures: Path | None = None, budget: Budget | None = None) -> Path:
    """Write the page over runs', evaluations' and other traces to `out`, and its figures into the folder `figures`.

    The same places give the same bytes. At most one of them is a run, whose metrics are shown too.

    Raises `AnalysisError`, `TraceError` or `EvaluationError` for what cannot be read, `RunFolderError` if the page cannot be
    written.
    """
    gathered = gather(places, budget or Budget())
    page = render(gathered)
    aside = out.with_name(f".{out.name}.{os.getpid()}")  # two processes may write the report of one run
    try:
        write_flushed(aside, page)
        aside.replace(out)
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror}", hint="choose another file with --out, or make room"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    if figures is not None:
        save_figures(figures, gathered.entropies(), gathered.record)
    return out


def save_figures(folder: Path, entropies: Entropies, record: RunRecord | None) -> list[Path]:
    """Save every plot that has data, and a run's curves; returns the files.

    Raises `AnalysisError` if nothing has data, `RunFolderError` if a file cannot be written.
    """
    written = []
    for plot in PLOTS:
        written += save_plot(folder, plot.identifier, partial(plot.draw, entropies))
    if record is not None:
        for curve in CURVES:
            written += save_plot(folder, curve.identifier, partial(curve.draw, record))
    if not written:
        raise AnalysisError(
            f"--figures={folder}: there are no entropies and no metrics to draw",
            hint="compute entropies with `megatron-fork analyze rescore`",
        )
    return written


def gather(places: list[Path], budget: Budget) -> Gathered:
    """Read the places; the tokens are counted part by part, and only those of chosen responses are kept."""
    runs = [place for place in places if (place / "metrics.jsonl").is_file()]
    if len(runs) > 1:
        raise AnalysisError(
            f"{runs[0]} and {runs[1]} are both runs, and a page has the curves of one",
            hint="make a page of each, or give the traces of one, such as RUN/traces",
        )
    record = read_run(runs[0]) if runs else None
    sources = sources_at(*places)
    every = sources.facts()
    vocabulary = Vocabulary()
    payload = Payload(vocabulary, budget)
    statistics = _read(sources, set(chosen(every, budget)), payload, vocabulary)
    name = record.name if record else ", ".join(place.resolve().name for place in places)
    return Gathered(name, record, every, statistics, vocabulary, payload, sources.truncated, estimates_at(places))


def _read(sources: Sources, shown: set[int], payload: Payload, vocabulary: Vocabulary) -> Statistics:
    """Count the entropies of what was trained on; where nothing was, those of all responses."""
    of_trained, of_others = Statistics(), Statistics()
    before = 0
    for part in sources.parts(vocabulary):
        trained = numpy.array([facts.kind == "trained" for facts in part.facts], dtype=bool)
        of_trained.add(part, trained & part.has_entropy)
        of_others.add(part, ~trained & part.has_entropy)
        payload.add(part, [place for place in range(len(part.facts)) if before + place in shown])
        before += len(part.facts)
    return of_trained if of_trained.responses else of_others


def render(gathered: Gathered) -> str:
    """Return the page. Every text of the run is escaped by the template or by JSON; only charts and the script are markup."""
    environment = Environment(
        loader=PackageLoader("megatron_fork.analysis", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    record, statistics, payload = gathered.record, gathered.statistics, gathered.payload
    scale = entropy_scale(statistics.percentile(0.99))
    table = token_table(statistics, gathered.vocabulary.texts)
    described, arrays = payload.data(table.rows, top=scale.top, levels=LEVELS, at_least=table.minimum_count)
    script = '"use strict";\n' + "\n".join((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return environment.get_template("page.html").render(
        name=visible(gathered.title),
        record=record,
        status=status(record) if record else "",
        headlines=headlines(record) if record else [],
        provenance=facts(record) if record else [],
        warning=warning(record) if record else "",
        curves=draw_charts(CURVES, record) if record else [],
        plots=draw_charts(PLOTS, gathered.entropies()),
        sets=set_rows(gathered.facts),
        estimates=gathered.estimates,
        responses=len(gathered.facts),
        shown=len(payload.facts),
        sampled=sampled(gathered.facts, payload),
        measured=any(payload.measured),
        table=table,
        statistics=statistics,
        config=visible(record.config_text) if record else "",
        left_out=left_out(record, gathered.truncated),
        legend=scale.legend(),
        palette=PALETTE,
        light_levels=entropy_colours(dark=False),
        dark_levels=entropy_colours(dark=True),
        described=Markup(described),
        arrays=Markup(arrays),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
