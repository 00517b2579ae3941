r"""How many attacks of hostile programs are held off, by kind, and what that costs.

`tests/security` is run against this package, and against another checkout:

    git worktree add --detach /elsewhere COMMIT
    python benchmarks/attacks.py --before /elsewhere --out benchmarks/results/attacks.json

Each attack is a test that passes where the attack fails. It starts a trainer of its own, from `--before` for the one column and
from this checkout for the other, on the machine as it is and as in a container that refuses namespaces.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
KINDS = (
    "indirect_signals other_processes expected_outputs memory_outside_limits outliving machines_that_cannot_confine"
).split()
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) (tests/security/\S+?::.*?)(?: - .*)?$", re.MULTILINE)


def attack(package: Path, kind: str) -> dict[str, list[int]]:
    """[attacks that failed, attacks] by machine: `as found`, `no namespaces`, and `either` where a test does not say."""
    command = f"{sys.executable} -m pytest tests/security/test_{kind}.py -q -rA --tb=no -p no:cacheprovider"
    environment = os.environ | {"PYTHONPATH": str(package), "COLUMNS": "1000"}
    run = subprocess.run(shlex.split(command), cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for outcome, name in OUTCOME.findall(run.stdout):
        machine = next((each for each in ("as found", "no namespaces") if each in name), "either")
        counts[machine][0] += outcome == "PASSED"
        counts[machine][1] += 1
    if not counts:
        raise SystemExit(run.stdout + run.stderr)
    return dict(counts)


# Prints the median time of a program that only prints, in ms.
TRIVIAL = """
import json, statistics, time
from megatron_fork.rewards import RewardsConfig, RewardPool
times = []
with RewardPool(RewardsConfig(kind="code", allow_code=True, timeout_seconds=30.0)) as pool:
    pool.warm()
    for _ in range(50):
        began = time.perf_counter()
        tests = {"tests": [{"input": "", "output": "3"}]}
        assert pool.score_many([("```python\\nprint(3)\\n```", json.dumps(tests))])[0].value == 1.0
        times.append(time.perf_counter() - began)
print(1000 * statistics.median(times))
"""
ROUNDS = 5


def times_of_a_program(packages: list[Path]) -> dict[str, float]:
    """The median of the rounds' medians, in ms; the checkouts take turns."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(ROUNDS):
        for package in packages:
            environment = os.environ | {"PYTHONPATH": str(package)}
            run = subprocess.run(
                [sys.executable, "-P", "-c", TRIVIAL], env=environment, capture_output=True, check=True
            )
            found[commit_of(package)].append(float(run.stdout))
    return {commit: statistics.median(times) for commit, times in found.items()}


def commit_of(package: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(package), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    packages = ([arguments.before.resolve()] if arguments.before else []) + [HERE]
    record: dict[str, Any] = {
        "command": "python benchmarks/attacks.py --before CHECKOUT",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, Linux {platform.release()}, uid {os.getuid()}, Python {platform.python_version()}",
        "milliseconds_of_a_trivial_program": times_of_a_program(packages),
        "held": {commit_of(package): {kind: attack(package, kind) for kind in KINDS} for package in packages},
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
