"""A trajectory as the row of a trace file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_fork.experience import Trajectory
from megatron_fork.traces.schema import MOST_LOGPROB, Kind, TracedResponse


def traced(
    trajectory: Trajectory,
    token_texts: Sequence[str],
    *,
    set: str,
    prompt_id: str,
    answer: str,
    sample: int,
    kind: Kind,
    step: int | None = None,
    entropy: Sequence[float] | None = None,
    selected: Sequence[bool] | None = None,
    logprob: Sequence[float] | None = None,
) -> TracedResponse:
    """The row of a response; see `COLUMNS`.

    Args:
        trajectory: a response that an engine drew.
        token_texts: what each of its tokens adds to the text; see `TokenTexts`.
        set: name of its prompt set.
        prompt_id: of its question.
        answer: the reference answer as text.
        sample: its place among the responses to the prompt.
        kind: why there is this response.
        step: trainer step; None outside of a run.
        entropy: nats, of each token; None if it was not computed. A column with a number that is none is left out.
        selected: of each token; None if it was not trained on.
        logprob: nats, of each token, by the trainer; None takes the engine's.

    """
    prompt = trajectory.prompt
    logprob = trajectory.rollout_logprob if logprob is None else logprob
    return TracedResponse(
        set=set,
        prompt_id=prompt_id,
        prompt=prompt.text,
        prompt_tokens=prompt.tokens,
        answer=answer,
        sample=sample,
        response=trajectory.text,
        tokens=np.asarray(trajectory.response, dtype=np.int32),  # type: ignore[arg-type]
        token_texts=token_texts,
        finish_reason=trajectory.finish_reason,
        kind=kind,
        entropy=None if entropy is None else _numbers(entropy, np.isfinite),
        logprob=_numbers(logprob, lambda values: values <= MOST_LOGPROB),
        kept_tokens=None if trajectory.kept is None else np.asarray(trajectory.kept.counts, dtype=np.int32),  # type: ignore[arg-type]
        selected=selected,
        weight_version=_versions(trajectory),
        reward=trajectory.reward,
        reason=trajectory.reason,
        failure=trajectory.failure,
        step=step,
        number=None if step is None else trajectory.number,
        advantage=trajectory.advantage if kind == "trained" else None,
    )


def _numbers(values: Sequence[float], are_valid: Callable[[Any], Any]) -> Any:
    """`[tokens]` float32; None if any is not valid (NaN never is), as after a broken update."""
    numbers = np.asarray(values, dtype=np.float32)
    return numbers if are_valid(numbers).all() else None


def _versions(trajectory: Trajectory) -> Any:
    """`[tokens]` int32; None where the engine does not say which weights drew them, or knows nothing of ours."""
    if not trajectory.versions:
        return None
    first, length = trajectory.versions[0], len(trajectory.response)
    if (first.start, first.end) == (0, length) and first.version >= 0:
        return np.full(length, first.version, dtype=np.int32)
    drawn = np.full(length, -1, dtype=np.int32)
    for span in trajectory.versions:
        drawn[span.start : span.end] = span.version
    return None if (drawn < 0).any() else drawn
