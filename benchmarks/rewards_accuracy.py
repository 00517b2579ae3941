r"""Accuracy of `kind=math` on labelled answers, beside math-verify as it comes (`kind=math_verify`), and what an answer costs.

    python benchmarks/rewards_accuracy.py --out benchmarks/results/rewards_accuracy.json

Three sets: the pairs of `tests/rewards/answer_pairs.jsonl`, the cases of `answer_cases.jsonl` beside them, most of which
fooled an earlier verifier, and answers made by `tests/support/answers_generated.py`. A false positive is a wrong answer
that is rewarded. Cost is CPU time in this process, on the pairs, after one warm pass over them.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from megatron_fork.rewards import RewardPool, RewardsConfig, score

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.answers_generated import sample

TESTS = Path(__file__).parent.parent / "tests" / "rewards"
KINDS = ("math", "math_verify")
GENERATED = 3000
SHOWN = 40


def labelled(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TESTS / name).read_text("utf-8").splitlines()]


def generated() -> list[dict[str, Any]]:
    made = sample(GENERATED, seed=0)
    return [
        {"kind": kind, "answer": answer, "response": response, "right": right} for kind, answer, response, right in made
    ]


def verdicts_of(kind: str, cases: list[dict[str, Any]]) -> list[bool]:
    """By a worker, since math-verify may compute for ever; what it is killed at is not right."""
    with RewardPool(RewardsConfig(kind=kind, timeout_seconds=5.0)) as pool:
        return [result.value > 0 for result in pool.score_many([(case["response"], case["answer"]) for case in cases])]


def costs_of(kind: str, cases: list[dict[str, Any]]) -> dict[str, float]:
    """CPU milliseconds of an answer in this process."""
    costs = []
    for case in cases:
        began = time.process_time()
        score(case["response"], case["answer"], kind=kind)
        costs.append(1e3 * (time.process_time() - began))
    costs.sort()
    return {
        "cpu_ms_mean": sum(costs) / len(costs),
        "cpu_ms_median": costs[len(costs) // 2],
        "cpu_ms_p99": costs[int(0.99 * len(costs))],
    }


def figures(cases: list[dict[str, Any]], verdicts: list[bool]) -> dict[str, Any]:
    positives = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict and not case["right"]]
    negatives = [case for case, verdict in zip(cases, verdicts, strict=True) if case["right"] and not verdict]
    rights = sum(case["right"] for case in cases)
    return {
        "answers": len(cases),
        "right": rights,
        "accuracy": 1 - (len(positives) + len(negatives)) / len(cases),
        "false_positives": len(positives),
        "false_positive_share": len(positives) / (len(cases) - rights),
        "false_negatives": len(negatives),
        "false_negative_share": len(negatives) / rights,
        "false_positives_by_kind": dict(collections.Counter(kind_of(case) for case in positives)),
        "false_negatives_by_kind": dict(collections.Counter(kind_of(case) for case in negatives)),
        "false_positive_list": [[case["answer"], case["response"]] for case in positives[:SHOWN]],
        "false_negative_list": [[case["answer"], case["response"]] for case in negatives[:SHOWN]],
    }


def kind_of(case: dict[str, Any]) -> str:
    return str(case.get("category") or case["kind"])


def difference(cases: list[dict[str, Any]], ours: list[bool], theirs: list[bool], which: bool) -> list[list[Any]]:
    """What one of the two calls right and the other does not, with the label."""
    return [
        [case["answer"], case["response"], case["right"]]
        for case, one, other in zip(cases, ours, theirs, strict=True)
        if one != other and one == which
    ][:SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sets = {"pairs": labelled("answer_pairs.jsonl"), "cases": labelled("answer_cases.jsonl"), "generated": generated()}
    record: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}",
        "math_verify": importlib.metadata.version("math-verify"),
    }
    for kind in KINDS:
        costs_of(kind, sets["pairs"])  # warm
        record[f"cost_{kind}"] = costs_of(kind, sets["pairs"])
        print(kind, json.dumps(record[f"cost_{kind}"]))
    for name, cases in sets.items():
        verdicts = [verdicts_of(kind, cases) for kind in KINDS]
        record[name] = {kind: figures(cases, found) for kind, found in zip(KINDS, verdicts, strict=True)}
        record[name]["only_math_calls_right"] = difference(cases, verdicts[0], verdicts[1], True)
        record[name]["only_math_verify_calls_right"] = difference(cases, verdicts[0], verdicts[1], False)
        for kind in KINDS:
            shown = {key: value for key, value in record[name][kind].items() if not key.endswith(("list", "kind"))}
            print(name, kind, json.dumps(shown))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
