"""Cross-rollout variance (arXiv 2506.13351): which tokens of a reference answer depend on the reasoning before them.

For rollouts i = 1..G of a question q with chains of thought c_i, token j of the reference answer y has the log-prob
log p(y_j | q, c_i, y_<j); sigma_j is its standard deviation over i, by which the paper's reward R3 weights the token (its
section 4.1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def cross_rollout_deviation(logprob: Sequence[Sequence[float]]) -> Array:
    """`[answer tokens]` nats: the standard deviation (divided by G) over rollouts of `[rollouts][answer tokens]` log-probs.

    NaN for a single rollout.
    """
    certainty_gy = np.asarray(logprob, dtype=np.float64)
    if len(certainty_gy) < 2:
        return np.full(certainty_gy.shape[1], np.nan)
    return np.asarray(certainty_gy.std(axis=0))
