r"""200 hostile responses among 2,000 good ones: what they score, what they cost, how many workers they kill.

    python benchmarks/rewards_attack.py --out benchmarks/results/rewards_attack.json

The good ones are right: integers, fractions, polynomials and expressions, a quarter each. The hostile ones are of twelve sorts,
from towers of powers to a megabyte of braces; all are wrong. Both runs use the same warm pool settings, the second has the
hostile ones strewn in at random. `--good` and `--hostile` make it smaller, `--kind` takes another verifier.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.hostile_answers import attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=2000)
    parser.add_argument("--hostile", type=int, default=200)
    parser.add_argument("--kind", default="math")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}",
        **attack(
            arguments.good,
            arguments.hostile,
            workers=arguments.workers,
            timeout_seconds=arguments.timeout,
            kind=arguments.kind,
        ),
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
