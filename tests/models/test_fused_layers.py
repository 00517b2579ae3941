"""Transformer Engine's layers in every layout of two ranks: as near to float32 as local layers are, and to one rank.

Its Python runs here on stand-ins for its kernels (`support.engine_on_cpu`), where the package is installed. `test_fused_on_gpu`
compares the kernels themselves.
"""

from typing import Any

import pytest
from support import engine_on_cpu
from support.layouts import differences, gradient_apart, legal, name_of, two_updates
from support.ranks import run_on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(engine_on_cpu.cannot_run(), reason=engine_on_cpu.REASON),
]
# As local layers: see tests/distributed/test_bf16_layouts.py.
TO_ONE_RANK = {
    False: {"selected": 4, "logprob": 0.015, "entropy": 0.015, "metrics": 0.03, "weights": 1.5e-3, "gradient": 0.1},
    True: {"selected": 4, "logprob": 0.05, "entropy": 0.05, "metrics": 0.1, "weights": 3e-3, "gradient": 0.4},
}
SETTINGS: dict[str, Any] = {"tied": False, "experts": False, "precision": "bf16"}


def on_stand_ins(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    engine_on_cpu.stand_in()
    return [
        two_updates(parallel, **{**SETTINGS, "backend": "transformer_engine", **options}) for parallel, options in cases
    ]


def on_local_layers(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [two_updates({}, **{**SETTINGS, "backend": "local", **each}) for each in options]


def apart(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {**differences(result, reference), "gradient": gradient_apart(result, reference)}


def test_one_rank_is_as_near_to_float32_as_local_layers() -> None:
    for options in ({}, {"experts": True}, {"tied": True, "recompute": "full"}):
        exact, local = run_on_ranks(on_local_layers, 1, [{**options, "precision": "fp32"}, options])[0]
        fused = run_on_ranks(on_stand_ins, 1, [({}, options)], are_new=True)[0][0]
        ours, theirs = apart(fused, exact), apart(local, exact)
        print(options, ours, theirs)
        for kind in ("logprob", "entropy", "weights", "gradient"):
            assert ours[kind] < 2.0 * theirs[kind], (options, kind)


@pytest.mark.parametrize("experts", [False, True])
def test_two_ranks_are_one(experts: bool) -> None:
    options = {"experts": experts}
    one = run_on_ranks(on_stand_ins, 1, [({}, options)], are_new=True)[0][0]
    cases = [(parallel, options) for parallel in legal(2, experts=experts)]
    everyone = run_on_ranks(on_stand_ins, 2, cases, time_limit=900.0, are_new=True)
    for index, (parallel, _) in enumerate(cases):
        for results in everyone:
            found = apart(results[index], one)
            print(name_of(parallel, {}), found)
            assert all(found[kind] <= bound for kind, bound in TO_ONE_RANK[experts].items()), (parallel, found)
