"""What the page says in words and small numbers: how a run stands, what the responses of each set are, what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_fork.analysis.outcome import signal
from megatron_fork.analysis.page.payload import Payload
from megatron_fork.analysis.page.responses import Facts
from megatron_fork.analysis.run_record import RunRecord
from megatron_fork.analysis.tokens import visible

OF_KIND = {
    "trained": "trained on",
    "without_signal": "without signal",
    "evaluation": "evaluation",
    "generated": "generated",
    "given": "given",
}


@dataclass(frozen=True)
class SetRow:
    """The responses of one set and kind; `right` is empty where none was judged."""

    set: str
    kind: str
    prompts: int
    responses: int
    right: str
    length: str
    cut: str


def set_rows(facts: Iterable[Facts]) -> list[SetRow]:
    groups: dict[tuple[str, str], list[Facts]] = {}
    for each in facts:
        groups.setdefault((each.set, each.kind), []).append(each)
    return [_row(name, kind, found) for (name, kind), found in sorted(groups.items())]


def _row(name: str, kind: str, found: Sequence[Facts]) -> SetRow:
    judged = [each for each in found if each.reward is not None]
    right = sum(each.verdict == 0 for each in judged)
    return SetRow(
        set=visible(name) or "(no name)",
        kind=OF_KIND[kind],
        prompts=len({each.prompt_id for each in found}),
        responses=len(found),
        right=f"{100 * right / len(judged):.1f} %" if judged else "",
        length=f"{sum(each.length for each in found) / len(found):,.0f}",
        cut=f"{100 * sum(each.finish_reason == 'length' for each in found) / len(found):.1f} %",
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


def sampled(facts: Sequence[Facts], payload: Payload) -> list[str]:
    """Return what the transcripts are a sample of; nothing if all are there, whole."""
    sentences = []
    if len(payload.facts) < len(facts):
        tokens = sum(each.length for each in facts)
        sentences.append(
            f"The page holds {len(payload.facts):,} of {len(facts):,} responses with {tokens:,} tokens, drawn evenly over "
            "sets, kinds, steps, right and wrong ones. Plots and tables count all of them."
        )
    if payload.tokens_cut:
        sentences.append(
            f"Of a response {payload.budget.per_response:,} tokens are shown; {payload.tokens_cut:,} more are left out."
        )
    return sentences


def left_out(record: RunRecord | None, truncated: Iterable[str]) -> list[str]:
    """Return one sentence for each part of the files that the page does not show."""
    sentences = [f"The last line of traces/{name} is half-written and was left out." for name in truncated]
    if record is None:
        return sentences
    metrics = record.metrics
    if metrics.truncated:
        sentences.insert(0, "The last line of metrics.jsonl is half-written and was left out.")
    if metrics.superseded:
        sentences.append(
            f"{metrics.superseded:,} lines of metrics.jsonl were replaced by a later line of the same stage and step."
        )
    if metrics.not_finite:
        sentences.append(f"{metrics.not_finite:,} metrics are null, NaN or infinite and leave gaps in the curves.")
    return sentences
