"""How often intervals over problems contain the true mean, by problems, mean and samples, and how wide they are.

    python benchmarks/interval_coverage.py --out benchmarks/results/interval_coverage.json

Problems have pass rates of a Beta distribution with the given mean: most are nearly always or nearly never solved, as in real
sets. Beside the percentile bootstrap of `evaluate`: Student's t, the percentile bootstrap at a level that makes up for few
problems ("expanded"), and Wilson's interval of as many coin flips as there are problems.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from megatron_fork.evaluation import bootstrap_intervals

STUDENT = {30: 2.0452, 100: 1.9842, 500: 1.9647}
"""By problems, the 97.5th percentile of Student's t with one degree of freedom less."""
MEANS, SAMPLES = (0.02, 0.05, 0.2, 0.5, 0.9), (1, 16)
SPREAD = 1.5
"""a + b of the Beta distribution: below 2 its density is highest at 0 and 1."""
LEVEL = 0.95
Array = np.ndarray[Any, np.dtype[np.float64]]


def evaluations(problems: int, mean: float, samples: int, count: int, seed: int) -> Array:
    """`[count, problems]`: the share of right responses to each problem."""
    generator = np.random.default_rng([seed, problems, round(1000 * mean), samples])
    difficulty = generator.beta(mean * SPREAD, (1 - mean) * SPREAD, size=(count, problems))
    return generator.binomial(samples, difficulty) / samples


def intervals(shares: Array, resamples: int) -> dict[str, Array]:
    """`[count, 2]` of each kind."""
    problems = shares.shape[1]
    mean, error = shares.mean(axis=1), shares.std(axis=1, ddof=1) / math.sqrt(problems)
    quantile = STUDENT[problems]
    expanded = 2 * NormalDist().cdf(quantile * math.sqrt(problems / (problems - 1))) - 1
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (mean + z * z / (2 * problems)) / (1 + z * z / problems)
    half = z / (1 + z * z / problems) * np.sqrt(mean * (1 - mean) / problems + z * z / (4 * problems**2))
    return {
        "percentile": np.array(bootstrap_intervals(shares, seed=0, resamples=resamples, level=LEVEL)),
        "expanded": np.array(bootstrap_intervals(shares, seed=0, resamples=resamples, level=expanded)),
        "t": np.stack([mean - quantile * error, mean + quantile * error], axis=1),
        "wilson": np.stack([middle - half, middle + half], axis=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for problems in STUDENT:
        for mean in MEANS:
            for samples in SAMPLES:
                shares = evaluations(problems, mean, samples, asked.evaluations, asked.seed)
                row: dict[str, Any] = {"problems": problems, "mean": mean, "samples": samples}
                for name, of in intervals(shares, asked.resamples).items():
                    inside = (of[:, 0] <= mean + 1e-12) & (mean - 1e-12 <= of[:, 1])
                    row[name] = {"covers": float(inside.mean()), "width": round(float((of[:, 1] - of[:, 0]).mean()), 4)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    if asked.out:
        command = " ".join(["python", "benchmarks/interval_coverage.py", *sys.argv[1:]])
        record = {
            "command": command,
            "machine": platform.machine(),
            "evaluations": asked.evaluations,
            "resamples": asked.resamples,
            "rows": rows,
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
