r"""Checks per second by workers and kind of answer, and what of them a training step waits for.

    python benchmarks/rewards_throughput.py --out benchmarks/results/rewards_throughput.json

kinds    integers, fractions, polynomials, and integers at the end of responses of 29k tokens (about 87,000 characters), all
         different, through a warm pool; `workers` 0 is the calling process, without a pool
overlap  one share of a step: responses that take `--generate` seconds together to come, scored after the last of them
         (`score_many`) or as they come (`stream`); "waited" is the time from the last response to the last score
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from megatron_fork.rewards import RewardPool, RewardsConfig

Pair = tuple[str, str]
LONG_RESPONSE = "Let us check the next case, which is the same. " * 1850


def pairs(kind: str, count: int) -> list[Pair]:
    make = {
        "integers": lambda n: (rf"so \boxed{{{n:,}}}", str(n)),
        "fractions": lambda n: (rf"so \boxed{{\frac{{{3 * n}}}{{{3 * n + 21}}}}}", rf"\frac{{{n}}}{{{n + 7}}}"),
        "polynomials": lambda n: (rf"so \boxed{{{n} + {n}x + x^2}}", f"x^2+{n}x+{n}"),
        "29k-token responses": lambda n: (rf"{LONG_RESPONSE}\boxed{{{n}}}", str(n)),
    }[kind]
    return [make(n) for n in range(1, count + 1)]


def kinds(workers: list[int]) -> list[dict[str, Any]]:
    rows = []
    for kind, count in (("integers", 4000), ("fractions", 4000), ("polynomials", 300), ("29k-token responses", 1000)):
        jobs = pairs(kind, count)
        for number in workers:
            with RewardPool(RewardsConfig(workers=number, timeout_seconds=60.0)) as pool:
                pool.warm()
                pool.score_many(jobs[:20])
                began, cpu = time.perf_counter(), time.process_time()
                scores = pool.score_many(jobs)
                seconds, own = time.perf_counter() - began, time.process_time() - cpu
            assert sum(score.value for score in scores) == count
            rows.append(
                {
                    "kind": kind,
                    "workers": number,
                    "checks": count,
                    "checks_per_second": count / seconds,
                    "ms_a_check_in_the_caller": 1e3 * own / count,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def overlap(generate_seconds: float) -> list[dict[str, Any]]:
    """256 responses, polynomials as the dearest kind, that come one after the other."""
    jobs = pairs("polynomials", 256)
    pause = generate_seconds / len(jobs)
    rows = []
    for name in ("score_many", "stream"):
        with RewardPool(RewardsConfig(timeout_seconds=60.0)) as pool:
            pool.warm()
            began = time.perf_counter()
            with pool.stream() as stream:
                for job in jobs:
                    time.sleep(pause)
                    if name == "stream":
                        stream.submit(*job)
                last = time.perf_counter()
                scores = stream.results() if name == "stream" else pool.score_many(jobs)
            done = time.perf_counter()
        assert len(scores) == len(jobs)
        rows.append(
            {"how": name, "generated_in": last - began, "waited": done - last, "share": (done - last) / (done - began)}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generate", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}",
        "kinds": kinds(arguments.workers),
        "overlap": overlap(arguments.generate),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
