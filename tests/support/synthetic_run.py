"""A run folder with the shape of a real one, small, of invented numbers and the same for the same seed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

FORKING = [" however", " Alternatively", " wait", " since", " suppose", " so", " let", " thus", " maybe", "Let"]
FOLLOWING = [" of", "tion", ")", " =", "2", " the", "}", "\n", " is", " equals", "\\frac", "+", " x", "4", "7"]
CONFIG = """selection:
  tokens: forking
  ratio: 0.2
model: "qwen3 <tiny>"
"""


def write_json_lines(path: Path, objects: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")


def metrics_of_run(steps: int, *, seed: int = 0) -> list[dict]:
    """Return the lines of 20 SFT steps, `steps` RL steps and an evaluation before, midway and after."""
    noise = random.Random(seed)
    lines = [
        {"stage": "sft", "step": step, "loss": 2.2 * math.exp(-step / 6) + 0.4 + noise.gauss(0, 0.03)}
        for step in range(1, 21)
    ]
    for step in range(steps + 1):
        progress = step / steps
        if step % max(steps // 4, 1) == 0:
            rate = 0.22 + 0.4 * progress
            evaluation = {"pass_rate": rate, "pass_rate_se": 0.02, "greedy": rate + 0.05, "response_tokens": 120.0}
            lines.append({"stage": "evaluation", "step": step, **evaluation})
        if step:
            lines.append({"stage": "train", "step": step, **train_numbers(progress, noise)})
    return lines


def train_numbers(progress: float, noise: random.Random) -> dict[str, float]:
    rollout, update = 3.0 + noise.random(), 1.4 + 0.2 * noise.random()
    return {
        "loss": noise.gauss(0, 0.02),
        "gradient_norm": 0.4 + 0.3 * noise.random(),
        "rollout/pass_rate": 0.2 + 0.4 * progress + noise.gauss(0, 0.05),
        "entropy/mean": 0.35 - 0.1 * progress + noise.gauss(0, 0.01),
        "entropy/selected_mean": 1.4 - 0.2 * progress + noise.gauss(0, 0.03),
        "selection/threshold": 0.7 - 0.15 * progress + noise.gauss(0, 0.02),
        "selection/fraction": 0.2 + noise.gauss(0, 0.0005),
        "selection/overlap_old": 1 - 0.02 * noise.random(),
        "rollout/response_tokens": 120 + 20 * progress,
        "rollout/groups_sampled": 40.0,
        "rollout/groups_kept": 32.0,
        "rollout/groups_with_signal": 32.0,
        "learning_rate": 1e-6 * (1 - progress),
        "objective/clipped_low": 0.01 * noise.random(),
        "objective/clipped_high": 0.01 * noise.random(),
        "objective/k3": 1e-3 * noise.random(),
        "tokens_per_second": 9000 + 500 * noise.random(),
        "mismatch/max": 10 ** noise.gauss(-1, 0.2),
        "mismatch/mean": 10 ** noise.gauss(-2.5, 0.1),
        "mismatch/k3": 10 ** noise.gauss(-4.5, 0.1),
        "time/rollout": rollout,
        "time/statistics": 0.4,
        "time/update": update,
        "time/synchronise": 0.25,
        "time/step": rollout + update + 0.9,
    }


def trace_of_step(step: int, *, tokens: int = 90, seed: int = 0) -> dict:
    """Return one trajectory in which the tokens of `FORKING` have the high entropies and are selected."""
    noise = random.Random(f"{step} {seed}")
    trace: dict = {"tokens": [], "entropy": [], "selected": [], "logprob": []}
    for _ in range(tokens):
        forks = noise.random() < 0.2
        entropy = noise.uniform(0.7, 2.4) if forks else min(noise.expovariate(9), 0.69)
        trace["tokens"].append(noise.choice(FORKING if forks else FOLLOWING))
        trace["entropy"].append(entropy)
        trace["selected"].append(forks)
        trace["logprob"].append(-entropy * noise.random())
    return {
        "step": step,
        "prompt": "Let x + 3 = 10. What is 2x?\nPut the final answer in a box.",
        "answer": "14",
        **trace,
        "reward": float(noise.random() < 0.5),
        "advantage": None if step == 0 else noise.gauss(0, 1),
        "finish_reason": "stop",
    }


def write_run(folder: Path, *, steps: int = 40, finished: bool = True, transcripts: int = 3) -> Path:
    """Write a whole run folder and return it."""
    write_json_lines(folder / "metrics.jsonl", metrics_of_run(steps))
    (folder / "resolved.yaml").write_text(CONFIG)
    for step in sorted({0, steps // 2, steps}):
        traces = [trace_of_step(step, seed=seed) for seed in range(transcripts)]
        write_json_lines(folder / "traces" / f"step-{step:06d}.jsonl", traces)
    if finished:
        summary = {
            "pass_rate_before": 0.22,
            "pass_rate_before_se": 0.02,
            "pass_rate_after": 0.62,
            "pass_rate_after_se": 0.02,
            "greedy_before": 0.27,
            "greedy_after": 0.67,
            "wall_seconds": 4980.0,
            "seed": 7,
            "steps": steps,
            "parameters": 1_720_000_000,
            "world_size": 8,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
