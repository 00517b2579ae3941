"""Traces: responses with their tokens, entropies and log-probs in Parquet, as training, evaluations and analyses share them."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.traces.reading import TraceFiles, Traces, open_traces
    from megatron_fork.traces.responses import traced
    from megatron_fork.traces.schema import COLUMNS, KINDS, Column, Kind, Origin, TracedResponse
    from megatron_fork.traces.texts import TokenTexts, vocabulary_fingerprint
    from megatron_fork.traces.writing import TraceWriter, write_traces
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "COLUMNS",
    "KINDS",
    "Column",
    "Kind",
    "Origin",
    "TokenTexts",
    "TraceFiles",
    "TraceWriter",
    "TracedResponse",
    "Traces",
    "open_traces",
    "traced",
    "vocabulary_fingerprint",
    "write_traces",
]
