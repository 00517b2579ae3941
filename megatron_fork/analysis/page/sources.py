"""Reads responses for the page: trace files in Parquet, and the JSON lines that runs of earlier versions wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy

from megatron_fork.analysis import traces as lines
from megatron_fork.analysis.page.responses import Facts, Part, Source, Sources, Vocabulary
from megatron_fork.traces import TraceFiles, Traces, open_traces

SCALARS = (
    *("set", "prompt_id", "prompt", "answer", "sample", "reward", "reason", "finish_reason", "kind", "step"),
    "advantage",
)
PER_TOKEN = ("token_texts", "entropy", "logprob", "selected")


def sources_at(*places: Path) -> Sources:
    """The traces at files and folders; a folder may hold some of either format, in itself or in its `traces/`.

    Raises `TraceError` or `AnalysisError` for a place without traces or with damaged ones; a run's folder may have none yet.
    """
    of_lines = {place: found for place in places if (found := _lines_at(place)) is not None}
    parquet = [place for place in places if _has_parquet(place) or not (place in of_lines or _is_run(place))]
    each: list[Source] = [LineSource(found) for found in of_lines.values()]
    if parquet:
        each.append(ParquetSource(open_traces(*parquet)))
    return Sources(each, [name for found in of_lines.values() for name in found.truncated])


def _is_run(place: Path) -> bool:
    return (place / "metrics.jsonl").is_file()


def _folder_of(place: Path) -> Path:
    return place / "traces" if (place / "traces").is_dir() else place


def _has_parquet(place: Path) -> bool:
    return place.is_file() or any(_folder_of(place).glob("*.parquet"))


def _lines_at(place: Path) -> lines.Traces | None:
    found = lines.read_traces(_folder_of(place)) if place.is_dir() else None
    has_any = found and (found.by_step or found.without_signal or found.evaluations or found.truncated)
    return found if has_any else None


@dataclass(frozen=True)
class ParquetSource:
    files: TraceFiles

    def facts(self) -> list[Facts]:
        return [facts for traces in self.files.parts(SCALARS) for facts in _facts_of(traces)]

    def parts(self, vocabulary: Vocabulary) -> Iterator[Part]:
        for traces in self.files.parts((*SCALARS, *PER_TOKEN)):
            entropy, has_entropy = _column(traces, "entropy", math.nan)
            yield Part(
                facts=_facts_of(traces),
                starts=numpy.concatenate([[0], numpy.cumsum(traces.lengths)]),
                tokens=_numbered(traces, vocabulary),
                entropy=entropy.astype(numpy.float32),
                logprob=_column(traces, "logprob", math.nan)[0].astype(numpy.float32),
                selected=_column(traces, "selected", False)[0].astype(bool),
                has_entropy=has_entropy,
            )


def _facts_of(traces: Traces) -> list[Facts]:
    columns = {name: traces.values(name) for name in SCALARS}
    rows = zip(*columns.values(), traces.lengths.tolist(), strict=True)
    return [Facts(**dict(zip((*SCALARS, "length"), row, strict=True))) for row in rows]


def _column(traces: Traces, name: str, fill: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
    """[tokens], with `fill` in the responses that have no such values, and [responses]: which have them."""
    column = traces.table.column(name).combine_chunks()
    has = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    found = column.flatten().to_numpy(zero_copy_only=False)
    if has.all():
        return found, has
    filled = numpy.full(int(traces.lengths.sum()), fill, dtype=found.dtype if len(found) else None)
    filled[numpy.repeat(has, traces.lengths)] = found
    return filled, has


def _numbered(traces: Traces, vocabulary: Vocabulary) -> numpy.ndarray:
    """[tokens]: the number of each text; a token whose text was not written is named by its id."""
    ids = traces.flat("tokens")
    numbers = numpy.empty(len(ids), dtype=numpy.int64)
    column = traces.table.column("token_texts").combine_chunks()
    has_text = numpy.repeat(column.is_valid().to_numpy(zero_copy_only=False).astype(bool), traces.lengths)
    texts = column.flatten().dictionary_encode()
    known = [vocabulary.number(text.decode(errors="surrogateescape")) for text in texts.dictionary.to_pylist()]
    numbers[has_text] = numpy.array(known, dtype=numpy.int64)[texts.indices.to_numpy(zero_copy_only=False)]
    alone, places = numpy.unique(ids[~has_text], return_inverse=True)
    numbers[~has_text] = numpy.array([vocabulary.number(f"#{token}") for token in alone], dtype=numpy.int64)[places]
    return numbers


@dataclass(frozen=True)
class LineSource:
    traces: lines.Traces

    def _all(self) -> list[lines.Trace]:
        kinds = (self.traces.by_step, self.traces.without_signal, self.traces.evaluations)
        return [trace for by_step in kinds for traces in by_step.values() for trace in traces]

    def facts(self) -> list[Facts]:
        return [
            Facts(
                set="held_out" if trace.kind == "evaluation" else "training",
                prompt_id=trace.prompt,
                prompt=trace.prompt,
                answer=trace.answer,
                kind=trace.kind,
                length=len(trace.tokens),
                finish_reason=trace.finish_reason,
                step=trace.step,
                reward=trace.reward,
                advantage=trace.advantage,
                reason=trace.reason,
            )
            for trace in self._all()
        ]

    def parts(self, vocabulary: Vocabulary) -> Iterator[Part]:
        found = self._all()

        def flat(name: str, kind: type) -> numpy.ndarray:
            return numpy.array([value for trace in found for value in vars(trace)[name]], dtype=kind)

        with numpy.errstate(over="ignore"):
            yield Part(
                facts=self.facts(),
                starts=numpy.array([0, *accumulate(len(trace.tokens) for trace in found)]),
                tokens=numpy.array([vocabulary.number(text) for trace in found for text in trace.tokens], dtype=int),
                entropy=flat("entropy", numpy.float32),
                logprob=flat("logprob", numpy.float32),
                selected=flat("selected", bool),
                has_entropy=numpy.array([trace.kind == "trained" for trace in found], dtype=bool),
            )
