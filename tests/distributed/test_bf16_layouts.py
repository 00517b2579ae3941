"""bfloat16 under every layout of two ranks: one rank's results within stated bounds, and no farther from float32 than they.

Layouts that only move work (pipeline stages) repeat one rank bit for bit. Where sums are cut anew (tensor, context, data ranks)
the roundings of activations differ, and with them log-probs, entropies and gradients: docs/numerics.md states by how much.
"""

from typing import Any

import pytest
from support.layouts import differences, gradient_apart, legal, name_of, two_updates
from support.ranks import run_on_ranks

# Relative, by norm, of four layers of width 32. With experts a rounding may send a token, and its gradient, to another one.
BOUND = {
    False: {"logprob": 0.015, "entropy": 0.015, "metrics": 0.03, "weights": 1.5e-3, "gradient": 0.1},
    True: {"logprob": 0.05, "entropy": 0.05, "metrics": 0.1, "weights": 3e-3, "gradient": 0.4},
}
# Of 26 tokens chosen of 130: those that lie at the cut, as near to it as roundings move an entropy.
SELECTED = 4
# Stages run one rank's products on one rank's tensors.
EXACT = {"pipeline": 2, "virtual_pipeline": 1, "tensor": 1, "context": 1}


def settings(experts: bool, precision: str) -> dict[str, Any]:
    return {"tied": True, "experts": experts, "precision": precision, "backend": "local"}


def run_all(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [two_updates(parallel, **options) for parallel, options in cases]


def worst(results: list[dict[str, Any]], reference: dict[str, Any]) -> dict[str, float]:
    """The largest difference that any rank has."""
    found = [{**differences(result, reference), "gradient": gradient_apart(result, reference)} for result in results]
    return {kind: max(each[kind] for each in found) for kind in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True])
def test_a_layout_rounds_as_one_rank_does(experts: bool) -> None:
    rounded, exact = settings(experts, "bf16"), settings(experts, "fp32")
    one, true = run_on_ranks(run_all, 1, [({}, rounded), ({}, exact)])[0]
    cases = [(parallel, rounded) for parallel in legal(2, experts=experts)]
    everyone = run_on_ranks(run_all, 2, cases, time_limit=900.0)
    rounding = worst([one], true)
    print(f"one rank to float32: {rounding}")
    for index, (parallel, _) in enumerate(cases):
        results = [of_rank[index] for of_rank in everyone]
        found, from_true = worst(results, one), worst(results, true)
        print(f"{name_of(parallel, {})}: {found}, to float32 {from_true}")
        if all(parallel[name] == value for name, value in EXACT.items()) and not experts:
            assert not any(found[kind] for kind in ("logprob", "entropy", "selected", "weights", "gradients"))
        assert all(found[kind] <= bound for kind, bound in BOUND[experts].items()), (parallel, found)
        assert found["selected"] <= SELECTED
        for kind in ("logprob", "entropy", "weights", "gradient"):
            assert from_true[kind] <= 2.0 * rounding[kind], (parallel, kind)
