"""Layout invariance: a legal layout of 1 to 4 ranks gives one rank's statistics, selection, gradients and weights (1e-5).

Sizes of all kinds of parallelism are enumerated, and each layout draws the rest from a seed: tied or not, packed or one
sequence a micro-batch, distributed optimizer, overlap, recomputed activations, loss and denominator, kept sets and the engine's
routing to be replayed or not. Of those on 4 ranks a
drawn part runs, all with EVERY_LAYOUT=1. What ran is printed.
"""

import os
import random
from typing import Any

import pytest
from support.layouts import differences, legal, name_of, two_updates
from support.ranks import run_on_ranks

TOLERANCE = 1e-5
DRAWN = 6


def options_of(parallel: dict[str, Any], *, experts: bool) -> dict[str, Any]:
    draw = random.Random(f"{sorted(parallel.items())} {experts}")
    distributed = draw.random() < 0.4
    return {
        "tied": draw.random() < 0.5,
        "balance": draw.choice((0.0, 0.01)) if experts else 0.0,
        "experts": experts,
        "packed": draw.random() < 0.8,
        "distributed_optimizer": distributed,
        "overlap": draw.random() < 0.3,
        "recompute": draw.choice(("none", "none", "selective", "full")),
        "loss": draw.choice(("ppo", "ppo", "gspo")),
        "denominator": draw.choice(("selected", "all")),
        "kept": draw.random() < 0.5,
        "replay": experts and draw.random() < 0.5,
    }


def run_all(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [two_updates(parallel, **options) for parallel, options in cases]


def reference_key(options: dict[str, Any]) -> tuple[Any, ...]:
    """What changes the result; the rest must not."""
    return tuple(options[name] for name in ("tied", "experts", "balance", "loss", "denominator", "kept", "replay"))


@pytest.fixture(scope="module")
def references() -> dict[tuple[Any, ...], dict[str, Any]]:
    return {}


def add_references(references: dict[tuple[Any, ...], Any], cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    missing = {reference_key(options): options for _, options in cases if reference_key(options) not in references}
    plain = {"packed": True, "distributed_optimizer": False, "overlap": False, "recompute": "none"}
    if missing:
        results = run_on_ranks(run_all, 1, [({}, {**options, **plain}) for options in missing.values()])[0]
        references.update(zip(missing, results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "experts"), [(n, experts) for experts in (False, True) for n in (1, 2, 3, 4)])
def test_every_layout_is_one_computation(ranks: int, experts: bool, references: dict[tuple[Any, ...], Any]) -> None:
    cases = [(parallel, options_of(parallel, experts=experts)) for parallel in legal(ranks, experts=experts)]
    if ranks == 4 and not os.environ.get("EVERY_LAYOUT"):
        cases = random.Random(f"drawn {experts}").sample(cases, DRAWN)
    add_references(references, cases)
    everyone = run_on_ranks(run_all, ranks, cases, time_limit=1800.0)
    failed = []
    for index, (parallel, options) in enumerate(cases):
        reference = references[reference_key(options)]
        worst: dict[str, float] = {}
        for results in everyone:
            for kind, value in differences(results[index], reference).items():
                worst[kind] = max(worst.get(kind, 0.0), value)
        print(f"{ranks} ranks: {name_of(parallel, options)}: {worst}")
        if max(worst.values()) > TOLERANCE:
            failed.append(f"{name_of(parallel, options)}: {worst}")
    assert cases and not failed, "\n".join(failed)
