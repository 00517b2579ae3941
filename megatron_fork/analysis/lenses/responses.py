"""The responses that lenses look at: their tokens, where the reasoning ends, and the reference answer as tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_fork.errors import TraceError
from megatron_fork.traces import TraceFiles, Traces

Array = np.ndarray[Any, np.dtype[np.float64]]
COLUMNS = ("prompt_id", "prompt_tokens", "answer", "sample", "token_texts", "entropy", "reward", "set")


@dataclass(frozen=True)
class AnswerForm:
    """How a reference answer stands behind the reasoning; `{answer}` in a text is the answer."""

    text: str = "{answer}"
    """Its tokens are scored."""
    bridge: str = ""
    """Read between the reasoning and the answer, and not scored."""
    begins: str = ""
    """The reasoning of a response ends before the last place of this text in it; empty: before its end token."""
    gold: str = "{answer}"
    """Text whose hidden state is the gold answer's for the mutual information; a worked solution in the paper."""


@dataclass(frozen=True)
class LensResponse:
    """One response."""

    prompt_id: str
    sample: int
    prompt: Sequence[int]
    tokens: Sequence[int]
    texts: Sequence[str]
    answer: str
    reward: float | None
    entropy_t: Array | None
    reasoning: int
    """Tokens before the answer."""

    @property
    def chain(self) -> Sequence[int]:
        return self.tokens[: self.reasoning]

    @property
    def length(self) -> int:
        """Tokens that a model reads to score it."""
        return len(self.prompt) + len(self.tokens) - 1

    def spread(self, values: Sequence[float]) -> Array:
        """`[tokens]`: values of the first tokens, and NaN for the others."""
        return np.concatenate([np.asarray(values, np.float64), np.full(len(self.tokens) - len(values), np.nan)])


def read_responses(
    files: TraceFiles,
    form: AnswerForm,
    texts_of: Callable[[Sequence[int], int], Sequence[str]],
    *,
    stop_tokens: Collection[int],
    limit: int | None,
) -> list[LensResponse]:
    """The responses that have tokens, those to a prompt together; raises `TraceError` for one without its prompt's tokens.

    Args:
        files: of one model.
        form: see `AnswerForm`.
        texts_of: what each of some tokens adds to the text after a token, for traces without token texts.
        stop_tokens: tokens that end a response, which are not of its reasoning; one of another program may have none.
        limit: only the responses to so many prompts, the first ones by name, which says nothing of them: engines finish short
            responses first, and so do traces.

    """
    found: list[LensResponse] = []
    wanted = set(sorted({name for part in files.parts(("set", "prompt_id")) for name in _names(part)})[:limit])
    for row in _rows(files):
        name = f"{row['set']}/{row['prompt_id']}"
        if not row["tokens"] or name not in wanted:
            continue
        if not row["prompt_tokens"]:
            raise TraceError(
                f"a response to {row['prompt_id']} has no prompt tokens",
                hint="a model cannot read it without its prompt",
            )
        texts = [each.decode(errors="replace") for each in row["token_texts"] or ()]
        texts = texts or list(texts_of(row["tokens"], row["prompt_tokens"][-1]))
        entropy = None if row["entropy"] is None else np.asarray(row["entropy"], np.float64)
        found.append(
            LensResponse(
                name,
                row["sample"],
                row["prompt_tokens"],
                row["tokens"],
                texts,
                row["answer"],
                row["reward"],
                entropy,
                _reasoning(texts, form.begins, ends=row["tokens"][-1] in stop_tokens),
            )
        )
    if not found:
        raise TraceError(f"{files.files[0]} has no response with tokens", hint="give traces of responses")
    return sorted(found, key=lambda response: (response.prompt_id, response.sample))


def by_prompt(responses: Sequence[LensResponse]) -> dict[str, list[int]]:
    """Places of the responses to each prompt."""
    groups: dict[str, list[int]] = {}
    for place, response in enumerate(responses):
        groups.setdefault(response.prompt_id, []).append(place)
    return groups


def _names(part: Traces) -> list[str]:
    pairs = zip(part.values("set"), part.values("prompt_id"), strict=True)
    return [f"{name}/{prompt}" for name, prompt in pairs]


def _rows(files: TraceFiles) -> Iterator[dict[str, Any]]:
    for part in files.parts(COLUMNS):
        yield from part.table.to_pylist()


def _reasoning(texts: Sequence[str], begins: str, *, ends: bool) -> int:
    """Tokens up to the one in which the answer begins, and without the end token."""
    count = len(texts) - ends
    place = "".join(texts[:count]).rfind(begins) if begins else -1
    if place < 0:
        return count
    # The token that holds the first letter: tokens often begin with the space before a word.
    place += len(begins) - len(begins.lstrip())
    ends_at = np.cumsum([len(text) for text in texts[:count]])
    return int(np.searchsorted(ends_at, place, side="right"))
