r"""How many attacks of hostile programs hold off, by kind: `tests/security` against this package, and against another checkout.

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
        "held": {commit_of(package): {kind: attack(package, kind) for kind in KINDS} for package in packages},
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
