"""The transcripts of the report, each token with its colour and its tooltip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_fork.analysis.colours import EntropyScale
from megatron_fork.analysis.tokens import visible, visible_label, visible_token
from megatron_fork.analysis.traces import Trace, Traces, mixture

STEPS_SHOWN = 6
EVALUATIONS_SHOWN = 2
TRANSCRIPTS_SHOWN = 4
TOKENS_SHOWN = 1500
# A response of more than `UNFOLDED` tokens is folded after `FOLDED_AFTER`.
UNFOLDED, FOLDED_AFTER = 240, 160


@dataclass(frozen=True)
class TokenSpan:
    """One token on the page; `classes` name its colour level and whether it was selected."""

    text: str
    title: str
    classes: str


@dataclass(frozen=True)
class Transcript:
    """One trajectory on the page: `spans`, then `folded` spans; the last `tokens_left_out` tokens are not shown."""

    prompt: str
    answer: str
    spans: list[TokenSpan]
    folded: list[TokenSpan]
    tokens_left_out: int
    rewarded: bool
    badges: list[str]


@dataclass(frozen=True)
class TracedStep:
    """The transcripts that are shown of one step; `traced` were written."""

    step: int
    traced: int
    without_signal: bool
    transcripts: list[Transcript]


def traced_steps(traces: Traces, scale: EntropyScale) -> list[TracedStep]:
    """Return transcripts of at most `STEPS_SHOWN` steps, trained or without signal, with the first and the last of them."""
    by_step = dict(sorted({**traces.without_signal, **traces.by_step}.items()))
    return [
        shown_step(by_step, step, scale, without_signal=step not in traces.by_step)
        for step in evenly_chosen(list(by_step), STEPS_SHOWN)
    ]


def evaluated_steps(traces: Traces, scale: EntropyScale) -> list[TracedStep]:
    """Return transcripts of the first and of the last evaluation."""
    return [
        shown_step(traces.evaluations, step, scale)
        for step in evenly_chosen(list(traces.evaluations), EVALUATIONS_SHOWN)
    ]


def shown_step(
    by_step: Mapping[int, list[Trace]], step: int, scale: EntropyScale, *, without_signal: bool = False
) -> TracedStep:
    chosen = mixture(by_step[step], TRANSCRIPTS_SHOWN, is_rewarded)
    return TracedStep(step, len(by_step[step]), without_signal, [transcript(trace, scale) for trace in chosen])


def is_rewarded(trace: Trace) -> bool:
    return trace.reward > 0


def evenly_chosen(steps: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(position * (len(steps) - 1) / (count - 1))] for position in range(count)]


def transcript(trace: Trace, scale: EntropyScale) -> Transcript:
    per_token = zip(trace.tokens, trace.entropy, trace.selected, trace.logprob, strict=True)
    of_trained = trace.kind == "trained"
    spans = [
        token_span(*values, scale) if of_trained else plain_span(values[0], values[-1])
        for values, _ in zip(per_token, range(TOKENS_SHOWN), strict=False)
    ]
    fold = len(spans) if len(spans) <= UNFOLDED else FOLDED_AFTER
    return Transcript(
        prompt=visible(trace.prompt),
        answer=visible(trace.answer),
        spans=spans[:fold],
        folded=spans[fold:],
        tokens_left_out=len(trace.tokens) - len(spans),
        rewarded=is_rewarded(trace),
        badges=badges(trace),
    )


def badges(trace: Trace) -> list[str]:
    """Return the reward, the verifier's reason, and other facts about the whole response."""
    reason = [f"verifier: {visible(trace.reason)}"] if trace.reason else []
    finished, count = f"finished by {visible(trace.finish_reason)}", f"{len(trace.tokens):,} tokens"
    if trace.kind != "trained":
        return [f"reward {trace.reward:g}", *reason, finished, count]
    advantage = "no advantage" if trace.advantage is None else f"advantage {trace.advantage:+.3g}"
    finite = [value for value in trace.entropy if math.isfinite(value)]
    mean = [f"mean entropy {math.fsum(finite) / len(finite):.3f} nats"] if finite else []
    counts = f"{count}, {sum(trace.selected):,} selected"
    return [f"reward {trace.reward:g}", *reason, advantage, finished, counts, *mean]


def token_span(text: str, entropy: float, selected: bool, logprob: float, scale: EntropyScale) -> TokenSpan:
    level = scale.level(entropy)
    classes = "not-finite" if level is None else f"level-{level}"
    title = f"{visible_label(text)}\nentropy {entropy:.4f} nats\n{probability_text(logprob)}"
    if selected:
        return TokenSpan(visible_token(text), f"{title}\nselected: carried gradient", f"{classes} selected")
    return TokenSpan(visible_token(text), title, classes)


def plain_span(text: str, logprob: float) -> TokenSpan:
    """A token that was not trained on, so its entropy is not known."""
    return TokenSpan(visible_token(text), f"{visible_label(text)}\n{probability_text(logprob)}", "plain")


def probability_text(logprob: float) -> str:
    """Return the probability of a log-prob in nats, or the number itself if it cannot be a log-prob."""
    # Rounding may lift the log-prob of a certain token slightly above zero.
    if logprob <= 1e-3:
        return f"probability {math.exp(min(logprob, 0.0)):.4g}"
    return f"log-prob {logprob:g}"
