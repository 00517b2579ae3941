"""The head of the report: the main numbers, and the provenance of the run, as far as the run wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from megatron_fork.analysis.run_record import RunRecord
from megatron_fork.analysis.tokens import visible
from megatron_fork.recipe import plain, read_yaml

ABSENT = "n/a"


@dataclass(frozen=True)
class Headline:
    """One number; `before` is empty unless the number is a change, and `detail` is shown below in small print."""

    label: str
    value: str
    before: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Score:
    """A fraction from 0 to 1 at a step, with its standard error if one was written."""

    step: int
    share: float
    error: float | None


def headlines(record: RunRecord) -> list[Headline]:
    """Return the main numbers, the two changes first; they come from the metrics while there is no summary."""
    return [
        change(record, "Pass rate, held out", "pass_rate"),
        change(record, "Greedy, held out", "greedy"),
        steps_of(record),
        Headline("Wall time", duration_text(record.summary.number("wall_seconds"))),
        parameters_of(record),
        selection_of(record),
        seed_of(record),
    ]


def change(record: RunRecord, label: str, name: str) -> Headline:
    """Return the scores of the first and the last evaluation."""
    scores = summarised(record, name) or evaluated(record, name)
    if not scores:
        return Headline(label, ABSENT, detail="not evaluated" if record.finished else "not evaluated yet")
    first, last = scores[0], scores[-1]
    if len(scores) == 1:
        return Headline(label, percent_text(last), detail=f"one evaluation, step {last.step}")
    gain = f"{(last.share - first.share) * 100:+.1f} points"
    when = "" if record.finished else f" at step {last.step}, the latest evaluation"
    return Headline(label, percent_text(last), before=percent_text(first), detail=gain + when)


def summarised(record: RunRecord, name: str) -> list[Score]:
    summary, last_step = record.summary, record.metrics.last_step("train")
    before, after = summary.number(f"{name}_before"), summary.number(f"{name}_after")
    if before is None or after is None:
        return []
    return [
        Score(0, before, summary.number(f"{name}_before_se")),
        Score(last_step, after, summary.number(f"{name}_after_se")),
    ]


def evaluated(record: RunRecord, name: str) -> list[Score]:
    series, errors = (record.metrics.series("evaluation", key) for key in (name, f"{name}_se"))
    error_at = dict(zip(errors.steps.tolist(), errors.values.tolist(), strict=True))
    points = zip(series.steps.tolist(), series.values.tolist(), strict=True)
    return [Score(step, share, error_at.get(step)) for step, share in points if math.isfinite(share)]


def percent_text(score: Score) -> str:
    if not math.isfinite(score.share):
        return ABSENT
    error = "" if score.error is None or not math.isfinite(score.error) else f" ± {score.error * 100:.1f}"
    return f"{score.share * 100:.1f}{error} %"


def steps_of(record: RunRecord) -> Headline:
    warm_up = record.metrics.last_step("sft")
    steps = record.summary.number("steps")
    done = record.metrics.last_step("train") if steps is None else steps
    return Headline("RL steps", whole_text(done), detail=f"after {warm_up:,} of SFT" if warm_up else "")


def parameters_of(record: RunRecord) -> Headline:
    ranks = record.summary.number("world_size")
    detail = "" if ranks is None else f"on {ranks:,.0f} rank{'' if ranks == 1 else 's'}"
    return Headline("Parameters", magnitude_text(record.summary.number("parameters")), detail=detail)


def selection_of(record: RunRecord) -> Headline:
    tokens, ratio = record.configured("selection", "tokens"), record.configured("selection", "ratio")
    detail = "" if ratio is None else f"ratio {visible(str(ratio))}"
    return Headline("Selected tokens", ABSENT if tokens is None else visible(str(tokens)), detail=detail)


def seed_of(record: RunRecord) -> Headline:
    seed = record.summary.number("seed")
    if seed is not None:
        return Headline("Seed", whole_text(seed).replace(",", ""))
    configured = record.configured("seed")
    return Headline("Seed", ABSENT if configured is None else visible(str(configured)))


def whole_text(number: float) -> str:
    return f"{number:,.0f}" if math.isfinite(number) else ABSENT


def magnitude_text(number: float | None) -> str:
    """Return a count with three digits and a decimal multiple, such as 1.72 B."""
    if number is None or not math.isfinite(number):
        return ABSENT
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {sign}"
    return f"{number:.0f}"


def duration_text(seconds: float | None) -> str:
    """Return seconds as hours and minutes, minutes and seconds, or seconds."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return labels with their texts, made visible; facts that the run folder does not hold are left out."""
    origin = provenance(record)
    found = {
        "Model": model_of(record),
        "Data": text_of(record.configured("data", "source")),
        "Verifier": text_of(record.configured("rewards", "kind")),
        "Recipe": text_of(record.configured("run", "name")),
        "Engine": engine_of(record),
        "Layout": text_of(record.summary.fields.get("layout")) or text_of(origin.get("layout")),
        "Date": text_of(origin.get("written")).replace("T", " "),
        "Machine": ", ".join(filter(None, [text_of(origin.get("host")), text_of(origin.get("device"))])),
        "Versions": versions_of(origin.get("versions")),
        "Commit": text_of(origin.get("commit")),
        "Command": text_of(origin.get("command")),
    }
    return [(label, visible(text)) for label, text in found.items() if text]


def model_of(record: RunRecord) -> str:
    path, family = record.configured("model", "path"), record.configured("model", "hf_config", "model_type")
    return text_of(path) or (f"{family}, weights drawn at random" if family else "")


def engine_of(record: RunRecord) -> str:
    engine, rollout = text_of(record.configured("rollout", "engine")), record.config.get("rollout")
    servers = rollout.get("servers") if isinstance(rollout, dict) else None
    if not engine or not isinstance(servers, list) or not servers:
        return engine
    return f"{engine}, {len(servers)} server{'' if len(servers) == 1 else 's'}"


def versions_of(versions: object) -> str:
    if not isinstance(versions, Mapping):
        return ""
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def text_of(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def provenance(record: RunRecord) -> Mapping[str, Any]:
    """Return the provenance in the summary, or before there is one, in the comments above the resolved config."""
    written = record.summary.fields.get("provenance")
    if isinstance(written, Mapping):
        return written
    lines = record.config_text.splitlines()
    comments = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    try:
        head = plain(read_yaml("\n".join(comments)))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # comments that a person wrote
        return {}
    found = head.get("provenance") if isinstance(head, dict) else None
    return found if isinstance(found, dict) else {}
