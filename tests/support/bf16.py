"""How far bfloat16 may be from itself under another layout or by other layers: the bounds of docs/numerics.md."""

from typing import Any

from support.layouts import differences, gradient_apart

# Relative, by norm, of four layers of width 32. With experts a rounding may send a token, and its gradient, to another one.
BOUND = {
    False: {"logprob": 0.015, "entropy": 0.015, "threshold": 0.015, "weights": 1.5e-3, "gradient": 0.1},
    True: {"logprob": 0.08, "entropy": 0.08, "threshold": 0.05, "weights": 3e-3, "gradient": 0.4},
}
# Of 26 tokens chosen of 130: those that lie at the cut, as near to it as roundings move an entropy.
SELECTED = 4


def apart(results: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
    """Differences of two runs: one with the highest entropies chosen, which says which, and one with all, for the gradient."""
    (chosen, whole), (of_chosen, of_whole) = results, references
    found = differences(chosen, of_chosen)
    name = "selection/threshold"
    thresholds = [
        abs(ours[name] - theirs[name]) / abs(theirs[name])
        for ours, theirs in zip(chosen["metrics"], of_chosen["metrics"], strict=True)
    ]
    return {
        **{kind: found[kind] for kind in ("logprob", "entropy", "selected")},
        "threshold": max(thresholds),
        "weights": differences(whole, of_whole)["weights"],
        "gradient": gradient_apart(whole, of_whole),
    }
