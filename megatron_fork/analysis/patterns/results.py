"""An entropy pattern as JSON and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_fork.analysis.counting import EDGES, PAPER_ENTROPY
from megatron_fork.analysis.patterns.entropy import Distribution, EntropyPattern
from megatron_fork.analysis.saving import save_figures, save_record


def save_entropy(folder: Path, pattern: EntropyPattern) -> list[Path]:
    """Write entropy.json and the figures, and return their paths; raises `RunFolderError`."""
    from megatron_fork.analysis.patterns.entropy_figures import figures_of

    record = save_record(folder / "entropy.json", entropy_record(pattern))
    return [record, *save_figures(folder, figures_of(pattern))]


def entropy_record(pattern: EntropyPattern) -> dict[str, Any]:
    """The pattern as JSON: nats, counts and shares."""
    return {
        "groups": {name: _group_record(group) for name, group in pattern.groups.items()},
        "paper": PAPER_ENTROPY,
        "histogram_edges": [float(f"{edge:.6g}") for edge in EDGES],
        "minimum_count": pattern.minimum_count,
        "tokens_ranked": pattern.ranked,
        "tokens_distinct": pattern.distinct,
        "highest": [vars(each) for each in pattern.highest],
        "lowest": [vars(each) for each in pattern.lowest],
        "by_position": {
            name: {
                kind: {"tokens": sums.count.tolist(), "mean": sums.mean.tolist()}
                for kind, sums in (("relative", places.relative), ("absolute", places.absolute))
            }
            for name, places in pattern.positions.items()
        },
        "responses_without_entropy": pattern.left_out,
        "temperatures": pattern.temperatures,
        "models": pattern.models,
    }


def _group_record(group: Distribution) -> dict[str, Any]:
    return {
        "responses": group.responses,
        "tokens": group.tokens,
        "mean": group.mean,
        "share_below_0.01": group.low,
        "percentiles": {f"{percentile:g}": value for percentile, value in group.percentiles.items()},
        "histogram": group.counts.tolist(),
    }
