"""Good responses with hostile ones strewn in: what the pool makes of them, beside the good ones alone."""

from __future__ import annotations

import collections
import random
import time
from dataclasses import asdict
from typing import Any

from megatron_fork.rewards import RewardPool, RewardsConfig

Pair = tuple[str, str]


def good(count: int, generator: random.Random) -> list[Pair]:
    pairs = []
    for place in range(count):
        a, b = generator.randint(1, 999), generator.randint(2, 99)
        pairs.append(
            [
                (rf"We add and get \boxed{{{a:,}}}.", str(a)),
                (rf"\boxed{{\frac{{{a * 3}}}{{{b * 3}}}}}", rf"\frac{{{a}}}{{{b}}}"),
                (rf"so $\boxed{{{b} + {a}x + x^2}}$", f"x^2+{a}x+{b}"),
                (
                    rf"Answer: $\frac{{{a}}}{{\sqrt{{{b * b + 1}}}}}$",
                    rf"\frac{{{a}\sqrt{{{b * b + 1}}}}}{{{b * b + 1}}}",
                ),
            ][place % 4]
        )
    return pairs


def hostile(count: int, generator: random.Random) -> list[tuple[str, Pair]]:
    """(sort, pair); the references are ordinary answers, but for two that let costs through which are else refused."""
    chosen = []
    for place in range(count):
        n = generator.randint(40, 90)
        sorts: dict[str, Pair] = {
            "tower of powers": (rf"\boxed{{10^{{10^{{{n}}}}}}}", "x+1"),
            "tower let through": (rf"\boxed{{{n}^{{10^{{10}}}}}}", "2^{10^{9}}-1"),
            "factorial of factorial": (rf"\boxed{{(({n}!)!)!}}", r"\frac{1}{2}"),
            "trigonometric powers": (rf"\boxed{{\sin^{{{n}}}(x)\cos^{{{n}}}(x)}}", r"\sqrt{2}"),
            "nested roots": ("\\boxed{" + "\\sqrt{1+" * 28 + str(n) + "}" * 29, r"\sqrt{3}"),
            "long sum": (rf"\boxed{{{'+'.join(f'{n}x^{{{k}}}' for k in range(150))}}}", "x^2+1"),
            "open braces": (r"\boxed{" * 150_000, "7"),
            "statement": (rf"\boxed{{{n - 1}+1={n}}}", str(n)),
            "remainder": (rf"\boxed{{{n} \bmod {n + 9}}}", str(n)),
            "every number": (rf"\boxed{{{','.join(map(str, range(200)))}}}", str(n)),
            "Python": (r"\boxed{__import__('os').system('touch /tmp/owned')}", str(n)),
            "broken text": ('\\boxed{\ud800"]}\x00' * 2000 + '[0, 1.0, "right"]', str(n)),
        }
        sort = list(sorts)[place % len(sorts)]
        chosen.append((sort, sorts[sort]))
    return chosen


def attack(
    goods: int, hostiles: int, *, workers: int, timeout_seconds: float, seed: int = 0, kind: str = "math"
) -> dict[str, Any]:
    generator = random.Random(seed)
    right = good(goods, generator)
    wrong = hostile(hostiles, generator)
    config = RewardsConfig(kind=kind, workers=workers, timeout_seconds=timeout_seconds)

    with RewardPool(config) as pool:
        pool.warm()
        began = time.perf_counter()
        alone = pool.score_many(right)
        seconds_alone = time.perf_counter() - began

    mixed = [("good", pair) for pair in right] + wrong
    generator.shuffle(mixed)
    with RewardPool(config) as pool:
        pool.warm()
        began = time.perf_counter()
        scores = pool.score_many([pair for _, pair in mixed])
        seconds = time.perf_counter() - began
        counts = pool.counts
    by_sort: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for (sort, _), result in zip(mixed, scores, strict=True):
        lost = result.reason if result.reason.startswith("verifier") else "judged"
        by_sort[sort][f"{lost}, {result.value:g}"] += 1
    return {
        "kind": kind,
        "good": goods,
        "good_right_alone": sum(result.value for result in alone),
        "good_right": sum(result.value for (sort, _), result in zip(mixed, scores, strict=True) if sort == "good"),
        "hostile": hostiles,
        "hostile_rewarded": sum(
            result.value for (sort, _), result in zip(mixed, scores, strict=True) if sort != "good"
        ),
        "workers": workers,
        "timeout_seconds": timeout_seconds,
        "seconds_good_alone": seconds_alone,
        "seconds_with_hostile": seconds,
        "ratio": seconds / seconds_alone,
        "workers_killed": counts.timed_out + counts.died,
        "counts": asdict(counts),
        "by_sort": {sort: dict(outcomes) for sort, outcomes in sorted(by_sort.items())},
    }
