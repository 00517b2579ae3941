"""What an evaluation adds to the engine's own time: judging, writing traces, counting, intervals, majorities.

    python benchmarks/evaluation.py --model RUN/model --out benchmarks/results/evaluation.json

`RUN` is a run of examples/quickstart.yaml, whose model draws thousands of tokens a second on one core: a large model is slower,
and what is added to it a smaller share. The embedded engine draws nothing while its responses are judged and written.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from megatron_fork import run
from megatron_fork.evaluation import held_out_set


def measured(model: Path, prompts: int, samples: int, batch: int) -> dict[str, float]:
    """Seconds of one evaluation by what they went to."""
    words = [
        *("data.source=reach", f"data.held_out={prompts}", "rewards.kind=reach", "rewards.workers=0"),
        *("rollout.max_response_tokens=46", f"rollout.batch_size={batch}", "rollout.mismatch_limit=.inf"),
    ]
    config = run.config_of(model, words)
    chosen = replace(held_out_set(config.evaluation, config.data), samples=samples)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run.evaluate_model(config, run.Asked([chosen], out), run.Display(speaks=False))
        results = json.loads((out / "evaluation.json").read_text())
    tokens = results["sets"]["held_out"]["response_tokens"]["mean"] * prompts * samples
    return {**results["provenance"]["seconds"], "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run.quiet_libraries()
    rounds = [measured(given.model, given.prompts, given.samples, given.batch) for _ in range(given.rounds)]
    shares = sorted((each["drawing"] + each["counting"]) / each["engine"] - 1 for each in rounds)
    found = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "prompts": given.prompts,
        "samples": given.samples,
        "rounds": rounds,
        "added_to_the_engine": {"median": shares[len(shares) // 2], "largest": shares[-1]},
        "tokens_per_second_of_the_engine": max(each["tokens"] / each["engine"] for each in rounds),
    }
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
