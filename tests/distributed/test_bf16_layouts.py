"""bfloat16 under every layout of two ranks: one rank's results within stated bounds, and no farther from float32 than they.

Layouts that only move work (pipeline stages) repeat one rank bit for bit. Where sums are cut anew (tensor, context, data ranks)
the roundings of activations differ, and with them log-probs, entropies and gradients: docs/numerics.md states by how much. A
token at the cut may be chosen in one layout and not in another; so gradients are compared where all tokens are chosen.
"""

from typing import Any

import pytest
from support.bf16 import BOUND, SELECTED, apart
from support.layouts import legal, name_of, two_updates
from support.ranks import run_on_ranks

KINDS = ("logprob", "entropy", "weights", "gradient")


def both(experts: bool, precision: str) -> list[dict[str, Any]]:
    """With the tokens of the highest entropies chosen, and with all of them."""
    return [
        {"tied": True, "experts": experts, "precision": precision, "backend": "local", "ratio": ratio}
        for ratio in (0.2, 1.0)
    ]


def run_all(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [two_updates(parallel, **options) for parallel, options in cases]


def of_one_rank(experts: bool, precision: str) -> list[dict[str, Any]]:
    return run_on_ranks(run_all, 1, [({}, options) for options in both(experts, precision)])[0]


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True])
def test_a_layout_rounds_as_one_rank_does(experts: bool) -> None:
    one, true = of_one_rank(experts, "bf16"), of_one_rank(experts, "fp32")
    layouts = list(legal(2, experts=experts))
    cases = [(parallel, options) for parallel in layouts for options in both(experts, "bf16")]
    everyone = run_on_ranks(run_all, 2, cases, time_limit=900.0)
    rounding = apart(one, true)
    print(f"one rank to float32: {rounding}")
    for index, parallel in enumerate(layouts):
        for of_rank in everyone:
            results = of_rank[2 * index : 2 * index + 2]
            found, from_true = apart(results, one), apart(results, true)
            print(f"{name_of(parallel, {})}: {found}, to float32 {from_true}")
            if parallel["pipeline"] == 2 and parallel["virtual_pipeline"] == 1:
                gradient = found.pop("gradient")  # summed by the ranks of a tied embedding
                assert not any(found.values()) and gradient < 1e-6, "stages run one rank's products on its tensors"
                continue
            assert all(found[kind] <= bound for kind, bound in BOUND[experts].items()), (parallel, found)
            assert found["selected"] <= SELECTED
            for kind in KINDS:
                # A token that a rounding sends to another expert moves the whole gradient, in one rank's run or in this one.
                limit = (
                    rounding[kind] + BOUND[experts][kind] if experts and kind == "gradient" else 2.0 * rounding[kind]
                )
                assert from_true[kind] <= limit + 1e-6, (parallel, kind)
