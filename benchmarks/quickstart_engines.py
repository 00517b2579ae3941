"""The quickstart trained through each engine, from one warm start: the pass rate must not hang on who draws.

    bash scripts/engine_environment.sh vllm && bash scripts/engine_environment.sh sglang
    python benchmarks/quickstart_engines.py --out benchmarks/results/quickstart_engines.json
    python benchmarks/quickstart_engines.py --engines embedded --seeds 1 2 --out benchmarks/results/quickstart_seeds.json

The second says how far apart runs are that differ in their random numbers alone.

Real servers on this machine; trainer and server have one thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from served import serving, steps_of, train, warm_start, write


def row_of(engine: str, sync: str, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    steps = steps_of(folder)
    return {
        "engine": engine,
        "sync": "copied" if engine == "embedded" else sync,
        "steps": len(steps),
        "pass_rate_before": summary["pass_rate_before"],
        "pass_rate_after": summary["pass_rate_after"],
        "pass_rate_after_se": summary["pass_rate_after_se"],
        "greedy_after": summary["greedy_after"],
        "largest_mismatch": max(step["mismatch/max"] for step in steps),
        "seconds_a_step": round(statistics.median(step["time/step"] for step in steps), 3),
        "of_which_rollout": round(statistics.median(step["time/rollout"] for step in steps), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="*", default=["embedded", "vllm", "sglang"])
    parser.add_argument("--sync", choices=["disk", "gloo"], default="gloo")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of the runs; the warm start's is 0")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="quickstart_engines") as scratch:
        start = [*warm_start(Path(scratch, "warm")), "evaluation.every=0"]
        for engine in arguments.engines:
            for seed in arguments.seeds:
                folder, words = Path(scratch, f"{engine}-{seed}"), [*start, f"seed={seed}"]
                if engine == "embedded":
                    summary = train(folder, *words)
                else:
                    with serving(engine, Path(scratch, "warm", "warm_start"), Path(scratch)) as (server,):
                        remote = [f"rollout.engine={engine}", f"rollout.servers=[{server.url}]"]
                        summary = train(folder, *words, *remote, f"rollout.sync={arguments.sync}")
                rows.append({"seed": seed, **row_of(engine, arguments.sync, folder, summary)})
                print(json.dumps(rows[-1]), flush=True)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
