"""The transcripts that the report shows, every token with its colour and its tooltip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fork.analysis.colours import EntropyScale
from megatron_fork.analysis.tokens import visible, visible_label, visible_token
from megatron_fork.analysis.traces import Trace, Traces

STEPS_SHOWN = 6
TRANSCRIPTS_SHOWN = 4
TOKENS_SHOWN = 1500


@dataclass(frozen=True)
class TokenSpan:
    """One token as the page shows it; `classes` name its colour level and whether it was selected."""

    text: str
    title: str
    classes: str


@dataclass(frozen=True)
class Transcript:
    """One trajectory as the page shows it; `tokens_left_out` follow the last span."""

    prompt: str
    answer: str
    spans: list[TokenSpan]
    tokens_left_out: int
    rewarded: bool
    badges: list[str]


@dataclass(frozen=True)
class TracedStep:
    """The transcripts shown of one step, of `traced` that were written."""

    step: int
    traced: int
    transcripts: list[Transcript]


def traced_steps(traces: Traces, scale: EntropyScale) -> list[TracedStep]:
    """Return the first transcripts of at most `STEPS_SHOWN` steps, which include the first and the last."""
    return [
        TracedStep(step, len(traces.by_step[step]), [transcript(trace, scale) for trace in first_of(traces, step)])
        for step in evenly_chosen(list(traces.by_step), STEPS_SHOWN)
    ]


def first_of(traces: Traces, step: int) -> list[Trace]:
    return traces.by_step[step][:TRANSCRIPTS_SHOWN]


def evenly_chosen(steps: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the steps, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(position * (len(steps) - 1) / (count - 1))] for position in range(count)]


def transcript(trace: Trace, scale: EntropyScale) -> Transcript:
    per_token = zip(trace.tokens, trace.entropy, trace.selected, trace.logprob, strict=True)
    spans = [token_span(*values, scale) for values, _ in zip(per_token, range(TOKENS_SHOWN), strict=False)]
    return Transcript(
        prompt=visible(trace.prompt),
        answer=visible(trace.answer),
        spans=spans,
        tokens_left_out=len(trace.tokens) - len(spans),
        rewarded=trace.reward > 0,
        badges=badges(trace),
    )


def badges(trace: Trace) -> list[str]:
    """Return the reward first, then what else is worth knowing of the whole response."""
    advantage = "no advantage" if trace.advantage is None else f"advantage {trace.advantage:+.3g}"
    finite = [value for value in trace.entropy if math.isfinite(value)]
    mean = [f"mean entropy {math.fsum(finite) / len(finite):.3f} nats"] if finite else []
    counts = f"{len(trace.tokens):,} tokens, {sum(trace.selected):,} selected"
    return [f"reward {trace.reward:g}", advantage, f"finished by {visible(trace.finish_reason)}", counts, *mean]


def token_span(text: str, entropy: float, selected: bool, logprob: float, scale: EntropyScale) -> TokenSpan:
    level = scale.level(entropy)
    classes = "not-finite" if level is None else f"level-{level}"
    title = f"{visible_label(text)}\nentropy {entropy:.4f} nats\n{probability_text(logprob)}"
    if selected:
        return TokenSpan(visible_token(text), f"{title}\nselected: carried gradient", f"{classes} selected")
    return TokenSpan(visible_token(text), title, classes)


def probability_text(logprob: float) -> str:
    """Return the probability of a log-prob in nats, or the number itself where it is none."""
    # Rounding may lift the log-prob of a certain token slightly over zero.
    if logprob <= 1e-3:
        return f"probability {math.exp(min(logprob, 0.0)):.4g}"
    return f"log-prob {logprob:g}"
