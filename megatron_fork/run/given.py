"""Responses that a file of any framework holds, with a model's log-probs and entropies, as rows of a trace file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from megatron_fork.data import GivenResponse, read_responses
from megatron_fork.errors import DataError
from megatron_fork.experience import Demonstration, Prompt
from megatron_fork.run.scoring import Scorer, is_first
from megatron_fork.traces import TokenTexts, TracedResponse

_TOKENS_AT_A_TIME = 1 << 18
"""Scored together: enough to pack well, few enough to stay small."""


def score_given(file: Path, scores: Scorer, columns: Mapping[str, str] | None = None) -> Iterator[TracedResponse]:
    """The file's responses with their log-probs and entropies; see `read_responses`.

    Every rank goes through it, the first gets the rows. Raises `DataError` for what cannot be read, and for responses that are
    longer than the model's longest sequence.
    """
    texts = TokenTexts(scores.tokenizer)
    for batch in _batches(read_responses(file, scores.tokenizer, columns), scores.longest):
        found = scores.score([
            Demonstration(number, Prompt(number, "", tuple(each.prompt_tokens), ""), each.tokens)
            for number, each in enumerate(batch)
        ])  # fmt: skip
        ends = np.cumsum([len(each.tokens) for each in batch])
        for each, end in zip(batch, ends, strict=True) if is_first() else ():
            here = slice(int(end) - len(each.tokens), int(end))
            yield TracedResponse(
                *(file.stem, each.prompt_id, each.prompt, each.prompt_tokens, each.answer, each.sample, each.text),
                *(each.tokens, "stop", "given"),
                token_texts=texts.of(each.tokens, after=each.prompt_tokens[-1]),
                entropy=found.entropy[here],  # type: ignore[arg-type]
                logprob=found.logprob[here],  # type: ignore[arg-type]
                reward=each.reward,
            )


def _batches(responses: Iterator[GivenResponse], longest: int) -> Iterator[list[GivenResponse]]:
    batch: list[GivenResponse] = []
    tokens = 0
    for each in responses:
        length = len(each.prompt_tokens) + len(each.tokens)
        if length > longest + 1:
            raise DataError(
                f"{each.place}: a response has {length:,} tokens with its prompt, more than the model's "
                f"max_position_embeddings={longest:,}",
                hint="leave it out, or give the model rope_parameters for longer sequences",
            )
        batch.append(each)
        tokens += length
        if tokens >= _TOKENS_AT_A_TIME:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
