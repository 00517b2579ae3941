"""Thought anchors (arXiv 2506.19143): sentences that decide the answer, found by resampling.

The resampling importance of sentence S_i is KL(p(A'_i) || p(A_i)). A_i are final answers of responses that go on after it, A'_i
of those that go on from before it and so draw another sentence in its place. The paper's counterfactual importance also drops
replacements that mean the same, which needs a model of sentence meaning: it is not computed here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

SMOOTHING = 0.5
"""Added to the count of every answer that occurs, so that the divergence is finite with few samples."""
_END = re.compile(r"[.!?]+(?=\s|$)|\n+")


def sentence_starts(texts: Sequence[str], tokens: int) -> list[int]:
    """Places of the tokens that begin a sentence, from 0; of the first `tokens` tokens, whose texts are given.

    A sentence ends with `.`, `!` or `?` before white space, or with a line break.
    """
    ends, length = [], 0
    for text in texts[:tokens]:
        length += len(text)
        ends.append(length)
    whole = "".join(texts[:tokens])
    starts = [0]
    for match in _END.finditer(whole):
        first = next((place + 1 for place, end in enumerate(ends) if end >= match.end()), tokens)
        if starts[-1] < first < tokens:
            starts.append(first)
    return starts


def divergence(replaced: Sequence[Hashable], kept: Sequence[Hashable], *, smoothing: float = SMOOTHING) -> float:
    """KL(p(replaced) || p(kept)) in nats of the smoothed shares of the answers that occur in either."""
    counts, others = Counter(replaced), Counter(kept)
    known = counts.keys() | others.keys()
    total, of_others = len(replaced) + smoothing * len(known), len(kept) + smoothing * len(known)
    shares = [((counts[each] + smoothing) / total, (others[each] + smoothing) / of_others) for each in known]
    return sum(share * math.log(share / other) for share, other in shares)


def resampling_importance(answers: Sequence[Sequence[Hashable]]) -> list[float]:
    """`[sentences]` nats, of `[sentences + 1][samples]` answers: going on from before each sentence, and from the end."""
    return [divergence(answers[place], answers[place + 1]) for place in range(len(answers) - 1)]
