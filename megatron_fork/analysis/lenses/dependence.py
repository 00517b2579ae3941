"""Mutual-information peaks (arXiv 2506.02867): dependence between hidden states and the gold answer's, by HSIC.

The paper tracks I(h_t; h_y) over the tokens t of a response, with HSIC (Gretton et al. 2005) in the place of the mutual
information: h_t is the last layer's state that predicts token t, h_y its state after reading the gold answer alone. t is a peak
where the value is above Q3 + 1.5 IQR of the trajectory. Two readings of what the samples are:

authors_code: in each response, the coordinates of h_t and h_y are the samples, as in the released code: a Gaussian kernel of
    bandwidth 50, and the normalised form tr(R_x R_y) with R = K (K + eps m)^-1 of centred kernels (Fukumizu et al. 2007).
responses: at each t, the responses that have a token t are the samples, as the estimator is meant: a Gaussian kernel whose
    bandwidth is the median distance, and HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). All responses then share one trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
MutualInformation = Literal["authors_code", "responses"]
BANDWIDTH = 50.0
REGULARISATION = 1e-5
LEAST_RESPONSES = 8
"""Below so many samples HSIC is mostly bias."""
PEAK = 1.5


def gaussian_kernel(x: Array, bandwidth: float | None = None) -> Array:
    """`[n, n]`: exp(-|x_i - x_j|^2 / (2 bandwidth^2)) of `[n, d]`; None takes the median distance of different rows."""
    squares = (x**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * x @ x.T, 0.0)
    if bandwidth is None:
        apart = np.sqrt(distances[~np.eye(len(x), dtype=bool)])
        bandwidth = float(np.median(apart)) or float(apart.mean()) or 1.0
    return np.asarray(np.exp(-distances / (2 * bandwidth**2)))


def centred(kernel: Array) -> Array:
    """H K H with H = I - 1/n: rows and columns sum to 0."""
    rows = kernel - kernel.mean(1, keepdims=True)
    return np.asarray(rows - rows.mean(0, keepdims=True))


def hsic(kernel_x: Array, kernel_y: Array) -> float:
    """tr(K_x H K_y H) / (n - 1)^2 (empirical HSIC of Gretton et al. 2005, Definition 2; arXiv 2506.02867)."""
    return float((centred(kernel_x) * kernel_y).sum() / (len(kernel_x) - 1) ** 2)


def normalised_hsic(kernel_x: Array, kernel_y: Array) -> float:
    """In [0, 1]; NaN where one of both is constant."""
    scale = np.sqrt(hsic(kernel_x, kernel_x) * hsic(kernel_y, kernel_y))
    return hsic(kernel_x, kernel_y) / float(scale) if scale > 1e-12 else float("nan")


def normalised_cross_covariance(x_tn: Array, y_n: Array, *, bandwidth: float = BANDWIDTH) -> Array:
    """`[t]`: the form of the authors' code, the coordinates of `x_tn` `[t, n]` and `y_n` `[n]` being n samples of a number."""
    size = len(y_n)
    shift = REGULARISATION * size * np.eye(size)

    def ratio(values: Array) -> Array:
        kernel = centred(gaussian_kernel(values[:, None], bandwidth))
        return np.asarray(np.linalg.solve(kernel + shift, kernel))  # both commute, so the order does not matter

    answer = ratio(np.asarray(y_n, np.float64))
    return np.array([(ratio(np.asarray(each, np.float64)) * answer.T).sum() for each in x_tn])


def over_responses(hidden: Sequence[Array], gold_rd: Array) -> Array:
    """`[longest]`: the normalised HSIC at each t over the responses that have a token t; NaN where they are too few.

    Args:
        hidden: of each response `[tokens, d]`.
        gold_rd: `[responses, d]`, of each response's gold answer.

    """
    longest = max(map(len, hidden))
    values = np.full(longest, np.nan)
    for t in range(longest):
        having = [number for number, each in enumerate(hidden) if len(each) > t]
        if len(having) >= LEAST_RESPONSES:
            at_t = np.stack([hidden[number][t] for number in having]).astype(np.float64)
            values[t] = normalised_hsic(gaussian_kernel(at_t), gaussian_kernel(gold_rd[having].astype(np.float64)))
    return values


def peaks(values: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a trajectory is above Q3 + 1.5 (Q3 - Q1) of its finite values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values), dtype=bool)
    low, high = np.quantile(finite, [0.25, 0.75])
    return np.asarray(np.nan_to_num(values, nan=-np.inf) > high + PEAK * (high - low))
