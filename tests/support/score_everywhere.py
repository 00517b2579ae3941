"""Scores the labelled answers through a pool and prints a digest of values and reasons."""

import hashlib
import json
import os
from pathlib import Path

from megatron_fork.rewards import RewardPool, RewardsConfig

PAIRS = Path(__file__).parents[1] / "rewards" / "answer_pairs.jsonl"


def digest(workers: int = 1) -> str:
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()][::4]
    with RewardPool(RewardsConfig(workers=workers, timeout_seconds=30.0)) as pool:
        scores = pool.score_many([(pair["response"], pair["answer"]) for pair in pairs])
    return hashlib.sha256(repr([(score.value, score.reason) for score in scores]).encode()).hexdigest()[:16]


if __name__ == "__main__":
    print(f"rank {os.environ.get('RANK', '-')} digest {digest()}", flush=True)
