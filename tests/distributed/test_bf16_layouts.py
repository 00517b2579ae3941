"""bfloat16 under every layout of two ranks: one rank's results within stated bounds, and no farther from float32 than they.

Layouts that only move work (pipeline stages) repeat one rank bit for bit. Where sums are cut anew (tensor, context, data ranks)
the roundings of activations differ, and with them log-probs, entropies and gradients: docs/numerics.md states by how much. A
token at the cut may be chosen in one layout and not in another, and a token may go to another expert; so gradients are compared
where all tokens are chosen, and where all runs replay the experts of float32.
"""

from typing import Any

import pytest
from support.bf16 import BOUND, BOUND_OF_OWN_EXPERTS, SELECTED, apart, experts_of, statistics_apart
from support.layouts import legal, name_of, two_updates
from support.ranks import run_on_ranks

KINDS = ("logprob", "entropy", "weights", "gradient", "expert")


def both(experts: bool, precision: str) -> list[dict[str, Any]]:
    """With the tokens of the highest entropies chosen, and with all of them."""
    common = {"tied": True, "experts": experts, "precision": precision, "backend": "local"}
    common |= {"replay": experts, "as_float32": experts}
    return [{**common, "ratio": ratio} for ratio in (0.2, 1.0)]


def run_all(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [two_updates(parallel, **options) for parallel, options in cases]


def on_one_rank(*options: dict[str, Any]) -> list[dict[str, Any]]:
    return run_on_ranks(run_all, 1, [({}, each) for each in options])[0]


def too_far(from_true: dict[str, float], rounding: dict[str, float]) -> list[str]:
    """The kinds in which a run is more than twice as far from float32 as one rank in bfloat16 is."""
    return [kind for kind in KINDS if kind in from_true and from_true[kind] > 2.0 * rounding[kind] + 1e-6]


def with_a_fault(result: dict[str, Any], part: str) -> dict[str, Any]:
    """The run with 1.3 times the gradient of the tensors whose name has `part`."""
    gradients = {name: 1.3 * tensor if part in name else tensor for name, tensor in result["gradients"].items()}
    return {**result, "gradients": gradients}


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True])
def test_a_layout_rounds_as_one_rank_does(experts: bool) -> None:
    results = on_one_rank(*both(experts, "bf16"), *both(experts, "fp32"))
    one, true = results[:2], results[2:]
    layouts = list(legal(2, experts=experts))
    cases = [(parallel, options) for parallel in layouts for options in both(experts, "bf16")]
    everyone = run_on_ranks(run_all, 2, cases, time_limit=900.0)
    rounding = apart(one, true)
    print(f"one rank to float32: {rounding}")
    for index, parallel in enumerate(layouts):
        for of_rank in everyone:
            chosen, whole = of_rank[2 * index : 2 * index + 2]
            found, from_true = apart([chosen, whole], one), apart([chosen, whole], true)
            print(f"{name_of(parallel, {})}: {found}, to float32 {from_true}")
            for expert in experts_of(whole):
                faulty = apart([chosen, with_a_fault(whole, expert)], true)
                assert "expert" in too_far(faulty, rounding), f"a fault of {expert} is not seen"
            if parallel["pipeline"] == 2 and parallel["virtual_pipeline"] == 1:
                # The whole is summed by the ranks of a tied embedding, and all is clipped by its norm.
                gradients = [found.pop(kind) for kind in ("gradient", "expert")]
                assert not any(found.values()) and max(gradients) < 1e-6, (
                    "stages run one rank's products on its tensors"
                )
                continue
            assert all(found[kind] <= bound for kind, bound in BOUND.items()), (parallel, found)
            assert found["selected"] <= SELECTED
            assert not too_far(from_true, rounding), parallel


@pytest.mark.slow
def test_a_layout_that_chooses_experts_itself_does_so_nearly_as_one_rank() -> None:
    bf16, fp32 = (both(True, precision)[0] | {"replay": False, "as_float32": False} for precision in ("bf16", "fp32"))
    one, true = on_one_rank(bf16, fp32)
    layouts = [parallel for parallel in legal(2, experts=True) if parallel["expert"] == 2]
    everyone = run_on_ranks(run_all, 2, [(parallel, bf16) for parallel in layouts], time_limit=900.0)
    rounding = statistics_apart(one, true)
    for index, parallel in enumerate(layouts):
        for of_rank in everyone:
            found = statistics_apart(of_rank[index], one)
            print(f"{name_of(parallel, {})}: {found}, {rounding}")
            assert all(found[kind] <= bound for kind, bound in BOUND_OF_OWN_EXPERTS.items()), (parallel, found)
            assert found["selected"] <= SELECTED
            assert not too_far(statistics_apart(of_rank[index], true), rounding), parallel
