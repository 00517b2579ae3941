"""Transformer Engine's layers in every layout of two ranks: as near to float32 as local layers are, and to one rank.

Its Python runs here on stand-ins for its kernels (`support.engine_on_cpu`), where the package is installed. `test_fused_on_gpu`
compares the kernels themselves.
"""

from typing import Any

import pytest
from support import engine_on_cpu
from support.bf16 import BOUND, SELECTED, apart
from support.layouts import legal, name_of, two_updates
from support.ranks import run_on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(engine_on_cpu.cannot_run(), reason=engine_on_cpu.REASON),
]
SETTINGS: dict[str, Any] = {"tied": False, "experts": False, "precision": "bf16", "backend": "local"}
FUSED = {"backend": "transformer_engine"}


def on_stand_ins(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    engine_on_cpu.stand_in()
    return [twice(parallel, {**options, **FUSED}) for parallel, options in cases]


def twice(parallel: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    return [two_updates(parallel, **{**SETTINGS, **options, "ratio": ratio}) for ratio in (0.2, 1.0)]


@pytest.mark.parametrize(
    "options", [{}, {"experts": True, "replay": True}, {"tied": True, "recompute": "full"}], ids=str
)
def test_one_rank_is_as_near_to_float32_as_local_layers(options: dict[str, Any]) -> None:
    exact = run_on_ranks(twice, 1, {}, {**options, "precision": "fp32"})[0]
    local = run_on_ranks(twice, 1, {}, options)[0]
    (fused,) = run_on_ranks(on_stand_ins, 1, [({}, options)], are_new=True)[0]
    ours, theirs = apart(fused, exact), apart(local, exact)
    print(options, ours, theirs)
    for kind in ("logprob", "entropy", "weights", "gradient", "expert"):
        assert ours[kind] <= 2.0 * theirs[kind], kind


@pytest.mark.parametrize("experts", [False, True])
def test_two_ranks_are_one(experts: bool) -> None:
    options = {"experts": experts, "replay": experts}
    (one,) = run_on_ranks(on_stand_ins, 1, [({}, options)], are_new=True)[0]
    cases = [(parallel, options) for parallel in legal(2, experts=experts)]
    everyone = run_on_ranks(on_stand_ins, 2, cases, time_limit=900.0, are_new=True)
    for index, (parallel, _) in enumerate(cases):
        for results in everyone:
            found = apart(results[index], one)
            print(name_of(parallel, {}), found)
            assert all(found[kind] <= bound for kind, bound in BOUND.items()), (parallel, found)
            assert found["selected"] <= SELECTED
