r"""Accuracy on the labelled answers of `tests/rewards/answer_pairs.jsonl`, beside math-verify as it comes.

    python benchmarks/rewards_accuracy.py --out benchmarks/results/rewards_accuracy.json

math-verify is used as its documentation shows: both texts through `parse` with its defaults, the reference between dollar
signs, then `verify`. The categories "equation trick" and "modular trick" are a rule of this project (a relation is wrong where
the answer is a number), hence there is a second figure without them. False positives are listed by name.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.metadata
import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import math_verify

from megatron_fork.rewards import score

PAIRS = Path(__file__).parent.parent / "tests" / "rewards" / "answer_pairs.jsonl"
RULES = ("equation trick", "modular trick")


def ours(response: str, answer: str) -> bool:
    return score(response, answer).value > 0


def plain(response: str, answer: str) -> bool:
    reference = math_verify.parse(f"${answer}$", parsing_timeout=None)
    return bool(math_verify.verify(reference, math_verify.parse(response, parsing_timeout=None), timeout_seconds=None))


def judge(verifier: Callable[[str, str], bool], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    started = time.process_time()
    verdicts = [verifier(pair["response"], pair["answer"]) for pair in pairs]
    seconds = time.process_time() - started
    judged = list(zip(pairs, verdicts, strict=True))
    unruled = [(pair, verdict) for pair, verdict in judged if pair["category"] not in RULES]
    false_positives = [pair for pair, verdict in judged if verdict and not pair["right"]]
    false_negatives = [pair for pair, verdict in judged if pair["right"] and not verdict]
    return {
        "accuracy": sum(pair["right"] == verdict for pair, verdict in judged) / len(judged),
        "accuracy_without_rules": sum(pair["right"] == verdict for pair, verdict in unruled) / len(unruled),
        "cpu_ms_a_pair": 1e3 * seconds / len(pairs),
        "false_positives": len(false_positives),
        "false_negatives": len(false_negatives),
        "false_positives_by_category": dict(collections.Counter(pair["category"] for pair in false_positives)),
        "false_negatives_by_category": dict(collections.Counter(pair["category"] for pair in false_negatives)),
        "false_positive_list": [[pair["answer"], pair["response"]] for pair in false_positives],
        "false_negative_list": [[pair["answer"], pair["response"]] for pair in false_negatives],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "math_verify": importlib.metadata.version("math-verify"),
        "pairs": len(pairs),
        "right": sum(pair["right"] for pair in pairs),
        "megatron_fork": judge(ours, pairs),
        "plain_math_verify": judge(plain, pairs),
    }
    for name in ("megatron_fork", "plain_math_verify"):
        shown = {key: value for key, value in record[name].items() if not key.endswith("list")}
        print(name, json.dumps(shown, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
