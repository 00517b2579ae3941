"""The colours of the report: one palette for page and charts, and one sequential colour map for entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Each colour on a light and on a dark page. A chart is drawn in the light ones and refers to them by name afterwards,
# so that it follows the page.
PALETTE = {
    "ink": ("#1c2128", "#e4e7eb"),
    "muted": ("#626c78", "#98a2ae"),
    "rule": ("#e2e5e9", "#2f353d"),
    "page": ("#fbfbfa", "#14171b"),
    "card": ("#ffffff", "#1b1f24"),
    "blue": ("#2b66a8", "#79b0ee"),
    "sky": ("#8fb4dc", "#48719e"),
    "orange": ("#c9581a", "#f0935a"),
    "teal": ("#2a8c82", "#5cc4b8"),
    "violet": ("#7a5aa6", "#b79be0"),
    "stone": ("#b4bac2", "#59626d"),
    "good": ("#1f7a4d", "#5fca97"),
    "bad": ("#b3372f", "#f08a82"),
}

LEVELS = 16


@dataclass(frozen=True)
class EntropyScale:
    """The map from an entropy in nats to one of `LEVELS` colours; the last level holds `top` and all above."""

    top: float

    def legend(self) -> list[str]:
        """Return the entropies in nats at the quarters of the colour map."""
        quarters = [self.top * quarter / 4 for quarter in range(4)]
        return [f"{nats:g}" for nats in quarters] + [f"≥ {self.top * (LEVELS - 1) / LEVELS:.3g}"]


def entropy_scale(percentile_99: float) -> EntropyScale:
    """Fit the scale to the 99th percentile of the entropies, so that one outlier does not pale all the others."""
    # Half-nat tops make round legends; a collapsed policy, or none (NaN), still gets a scale.
    return EntropyScale(top=max(math.ceil(percentile_99 * 2) / 2, 0.5) if math.isfinite(percentile_99) else 0.5)


def entropy_colours(*, dark: bool) -> list[str]:
    """Return the `LEVELS` colours of rising entropy as CSS.

    They are even steps of lightness and chroma in OKLCH, where even steps look even. The page's text stays readable on each.
    """
    lightness, chroma, hue = ((0.22, 0.52), (0.0, 0.15), (60, 32)) if dark else ((1.0, 0.68), (0.0, 0.17), (90, 42))
    shares = [level / (LEVELS - 1) for level in range(LEVELS)]
    return [
        f"oklch({between(lightness, share):.4f} {between(chroma, share):.4f} {between(hue, share):.1f})"
        for share in shares
    ]


def between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
