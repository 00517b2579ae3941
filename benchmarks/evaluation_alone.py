"""What an evaluation does beside the engine, without an engine: seconds of the processor, of all threads, for short responses.

    python benchmarks/evaluation_alone.py --out benchmarks/results/evaluation_alone.json

4,096 responses of 32 to 46 tokens, as the quickstart's model draws them, are there already; they are judged, written and
counted. Other work on the machine changes these seconds less than those of `evaluation.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_fork.data import tokenizer_of_task
from megatron_fork.evaluation import COLUMNS, Drawing, EvaluationFolder, Problem, Wanted, gather, powers, results_of_set
from megatron_fork.experience import Prompt, VersionSpan, logprob_array, token_array
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import Completion, InProcessEngine, Request, RolloutConfig
from megatron_fork.traces import Origin, TokenTexts, open_traces

PROBLEMS, SAMPLES = 256, 16


class Drawn(InProcessEngine):
    """Has every response from the start."""

    def __init__(self) -> None:
        numbers = random.Random(0)
        self.completions = []
        for number in range(PROBLEMS * SAMPLES):
            tokens = token_array(numbers.randrange(5, 130) for _ in range(numbers.randint(32, 46)))
            logprob = logprob_array(-numbers.random() for _ in tokens)
            span = (VersionSpan(0, 0, len(tokens)),)
            self.completions.append(Completion(number, tokens, logprob, "length", span))

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        return (self.completions[request.number] for request in requests)

    def update_weights(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """It has none."""


def measured(engine: Drawn, problems: Sequence[Problem], folder: EvaluationFolder) -> dict[str, float]:
    config = RolloutConfig(batch_size=512, max_response_tokens=46)
    wanted = [Wanted(problem, sample) for problem in problems for sample in range(SAMPLES)]
    texts = TokenTexts(tokenizer_of_task("reach"))
    with RewardPool(RewardsConfig(kind="reach", workers=0)) as pool:
        began = time.process_time()
        Drawing(engine, config, {"set": pool}, texts, None, 0, "evaluation", folder.keep).draw(wanted)
        drawn = time.process_time()
        outcomes = gather(open_traces(*folder.parts()).parts(COLUMNS), kinds={"set": "reach"})
        results_of_set(problems, outcomes, pool, samples=SAMPLES, ks=powers(SAMPLES), seed=0)
    return {"judging_and_writing": drawn - began, "counting": time.process_time() - drawn}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    engine = Drawn()
    problems = [
        Problem("set", f"{n:x}", Prompt(n, f"from {n % 9} to 5 :", (5, 6, 7), f"{n % 9} 5")) for n in range(PROBLEMS)
    ]
    rounds = []
    gc.freeze()  # as every command does that uses a model
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measured(engine, problems, EvaluationFolder(Path(folder), 0, Origin())))
    totals = sorted(sum(each.values()) for each in rounds)
    found = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "responses": len(engine.completions),
        "tokens": sum(len(each.tokens) for each in engine.completions),
        "rounds": rounds,
        "milliseconds_a_response": {
            "median": 1000 * totals[len(totals) // 2] / len(engine.completions),
            "least": 1000 * totals[0] / len(engine.completions),
        },
    }
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
