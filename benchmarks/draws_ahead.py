"""Engine calls of a step and groups that it throws away, with the share of signal of earlier steps and without it.

    python benchmarks/draws_ahead.py --out benchmarks/results/draws_ahead.json

Steps of 16 groups and up to 10 rounds, as in the quickstart; each group has signal with the same probability. Simulated: no
responses are drawn, the collector's own rules decide.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from served import PROJECT, write

from megatron_fork.config import load_config
from megatron_fork.data import load_prompts
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import Collector, RolloutConfig, SignalShare
from megatron_fork.rollout.engine import InProcessEngine

GROUPS, ROUNDS, STEPS, WARM_UP = 16, 10, 420, 20


class Simulated(Collector):
    """Each draw has signal with probability `share`, decided by its number."""

    share = 0.0

    def _draw_groups(self, count: int, first_draw: int) -> list[list[Trajectory]]:
        draws = range(first_draw, first_draw + count)
        return [[self._response(0.0), self._response(float(self._has_signal(draw)))] for draw in draws]

    def _has_signal(self, draw: int) -> bool:
        return random.Random(f"{self.share}/{draw}").random() < self.share

    def _response(self, reward: float) -> Trajectory:
        return Trajectory(0, Prompt(0, "", (2,), ""), (2,), (0.0,), "stop", 0, reward=reward)


class NoEngine(InProcessEngine):
    def generate(self, requests):
        raise AssertionError("nothing is drawn")

    def update_weights(self, weights, version):
        raise AssertionError("there are no weights")


def row_of(share: float, *, remembers: bool) -> dict[str, Any]:
    config = RolloutConfig(samples=2, max_rounds=ROUNDS)
    source = load_prompts(load_config(PROJECT / "examples" / "quickstart.yaml").data, None)
    pool = RewardPool(RewardsConfig(kind="reach", workers=0))
    collector = Simulated(config, NoEngine(), source, pool, groups=GROUPS, world=None, seed=0)
    collector.share = share
    seen, start = SignalShare(), 0
    steps = []
    for step in range(STEPS):
        found = collector.collect(start=start, version=step, seen=seen if remembers else SignalShare())
        start += found.prompts_drawn
        seen = seen.after_step(found.counts.judged, found.counts.kept)
        steps.append(found)
    steps = steps[WARM_UP:]
    return {
        "share": share,
        "remembers": remembers,
        "engine_calls": round(sum(step.calls for step in steps) / len(steps), 2),
        "rounds": round(sum(step.rounds for step in steps) / len(steps), 2),
        "groups_needed": round(sum(step.prompts_drawn for step in steps) / len(steps), 1),
        "groups_thrown_away": round(sum(step.surplus for step in steps) / len(steps), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for share in (0.9, 0.6, 0.33, 0.15):
        for remembers in (False, True):
            rows.append(row_of(share, remembers=remembers))
            print(json.dumps(rows[-1]), flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
