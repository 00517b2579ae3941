"""How far bfloat16 may be from itself under another layout or by other layers: the bounds of docs/numerics.md."""

import re
from typing import Any

from support.layouts import differences, gradient_apart

# Relative, by norm, of four layers of width 32; "expert" is the gradient of the expert that is farthest. Experts are those of
# float32, replayed: a rounding that sends a token to another expert would move its whole gradient there.
BOUND = {"logprob": 0.015, "entropy": 0.015, "threshold": 0.015, "weights": 1.5e-3, "gradient": 0.1, "expert": 0.15}
# Where each run chooses experts itself.
BOUND_OF_OWN_EXPERTS = {"logprob": 0.08, "entropy": 0.08, "threshold": 0.05, "weights": 3e-3}
# Of 26 tokens chosen of 130: those that lie at the cut, as near to it as roundings move an entropy.
SELECTED = 4


def apart(results: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
    """Differences of two runs: one with the highest entropies chosen, which says which, and one with all, for the gradient."""
    (chosen, whole), (of_chosen, of_whole) = results, references
    return {
        **statistics_apart(chosen, of_chosen),
        "weights": differences(whole, of_whole)["weights"],
        "gradient": gradient_apart(whole, of_whole),
        "expert": max((gradient_apart(whole, of_whole, expert) for expert in experts_of(of_whole)), default=0.0),
    }


def statistics_apart(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Differences of log-probs, entropies, thresholds, weights, and of how many tokens are chosen in one run alone."""
    found = differences(result, reference)
    name = "selection/threshold"
    thresholds = [
        abs(ours[name] - theirs[name]) / abs(theirs[name])
        for ours, theirs in zip(result["metrics"], reference["metrics"], strict=True)
    ]
    return {
        **{kind: found[kind] for kind in ("logprob", "entropy", "selected", "weights")},
        "threshold": max(thresholds),
    }


def experts_of(result: dict[str, Any]) -> list[str]:
    """What the names of an expert's tensors have in common, for every expert of every layer."""
    names = (re.search(r"\.\d+\.mlp\.experts\.\d+\.", name) for name in result["gradients"])
    return sorted({found[0] for found in names if found})
