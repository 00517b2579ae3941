"""The quickstart at one precision, killed after its first checkpoint of RL and taken up again: what is lost, and what it takes.

    python benchmarks/killed_and_resumed.py --device cuda --precision bf16 --out benchmarks/results/resumed_h200.json

Triton's cache is an empty folder at the first start, so that compiling and tuning are within its first step, and the same
folder at the second. Seconds to a step are from the start of the process to its line in metrics.jsonl. Wrong is: no checkpoint,
a step lost or written twice, a run that does not resume, a metric that is not finite.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
# An entropy bonus gives every update a gradient, also where a short warm start leaves no prompt group with signal.
RECIPE = (
    *("run.checkpoint_every=2", "evaluation.every=0", "evaluation.samples=1", "data.held_out=16", "sft.steps=40"),
    *("rollout.dynamic_sampling=false", "objective.entropy_coef=0.01"),
)
SMALL = ("sft.steps=3", "train.prompts_per_step=4", "train.prompts_per_mini_batch=2", "rollout.samples=4")
# Half precision moves log-probs by more than the limit that float32 is held to.
HALF = ("rollout.mismatch_limit=1.0", "rollout.probe_limit=1.0")
MORE_STEPS = 3


class Run:
    """One start of `megatron-fork train`, with its output in a file."""

    def __init__(self, words: Sequence[str], folder: Path, kernels: Path, log: Path) -> None:
        self.metrics, self.latest, self.log = folder / "metrics.jsonl", folder / "checkpoints" / "LATEST", log
        self._lines_before = len(self.records())
        self.began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "megatron_fork",
            "train",
            str(PROJECT / "examples" / "quickstart.yaml"),
            *words,
        ]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**os.environ, **variables, "TRITON_CACHE_DIR": str(kernels)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def records(self) -> list[dict[str, Any]]:
        """Whole lines alone: the last may be half written."""
        text = self.metrics.read_text() if self.metrics.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def seconds_to(self, is_there: Any) -> float:
        """Until `is_there()`; raises where the run has ended before."""
        while not is_there():
            if self.process.poll() is not None and not is_there():
                raise RuntimeError(f"the run ended with {self.process.returncode}: {last_lines(self.log)}")
            time.sleep(0.02)
        return time.monotonic() - self.began

    def seconds_to_record(self, stages: Sequence[str]) -> float:
        """Until a record of this start that is of one of the stages."""
        return self.seconds_to(lambda: any(each["stage"] in stages for each in self.records()[self._lines_before :]))


def last_lines(log: Path) -> str:
    return " | ".join(line for line in log.read_text(errors="replace").splitlines()[-3:] if line.strip())


def measured(options: argparse.Namespace, scratch: Path, found: dict[str, Any]) -> list[str]:
    """What is wrong; figures go into `found` as soon as they are known."""
    folder, kernels = scratch / "run", scratch / "kernels"
    for each in (folder, kernels):
        shutil.rmtree(each, ignore_errors=True)
    words = [f"run.folder={folder}", f"policy.precision={options.precision}", *RECIPE]
    words += [*(HALF if options.precision == "bf16" else ()), *(SMALL if options.small else ())]
    first = Run([*words, "train.steps=400"], folder, kernels, scratch / "first.txt")
    try:
        found["first_step_seconds"] = first.seconds_to_record(("sft", "train"))
        found["first_rl_step_seconds"] = first.seconds_to_record(("train",))
        first.seconds_to(lambda: first.latest.is_file() and first.latest.read_text().strip())
    except RuntimeError as error:
        return [f"before the first checkpoint {error}"]
    finally:
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    step = int(first.latest.read_text().strip().removeprefix("step-"))
    again = Run([*words, f"train.steps={step + MORE_STEPS}"], folder, kernels, scratch / "second.txt")
    try:
        found["first_step_again_seconds"] = again.seconds_to_record(("train",))
        again.process.wait()
    except RuntimeError as error:
        return [f"after the resume {error}"]
    finally:
        again.process.kill()
        again.process.wait()
    return faults(again, step, found)


def faults(run: Run, step: int, found: dict[str, Any]) -> list[str]:
    """Of the whole run, by its second start's code and what stands in the folder."""
    if run.process.returncode:
        return [f"the resumed run ended with {run.process.returncode}: {last_lines(run.log)}"]
    wrong = [] if f"after step {step}" in run.log.read_text() else [f"it did not resume after step {step}"]
    records = run.records()
    steps = [record["step"] for record in records if record["stage"] == "train"]
    if steps != list(range(1, step + MORE_STEPS + 1)):
        wrong.append(f"steps were lost or written twice: {steps}")
    for record in records:
        broken = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
        wrong += [f"{name} of {record['stage']} step {record['step']} is not finite" for name in broken]
    found["steps"] = steps[-1] if steps else 0
    found["mismatch_max"] = max((record.get("mismatch/max") or 0.0) for record in records)
    for stage in ("sft", "train"):
        # A start's first step compiles.
        speeds = [record["tokens_per_second"] for record in records if record["stage"] == stage][1:]
        if speeds:
            found[f"{stage}_tokens_per_second"] = statistics.median(speeds)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="what the run is expected to use")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--small", action="store_true", help="seconds on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="its folder also holds the run and the kernels")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/killed_and_resumed.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {options.device}",
    }
    scratch = options.out.resolve().parent / f"resumed-{options.precision}"
    scratch.mkdir(parents=True, exist_ok=True)
    record["wrong"] = measured(options, scratch, record)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record), flush=True)
    for line in record["wrong"]:
        print(f"wrong: {line}", flush=True)
    raise SystemExit(bool(record["wrong"]))


if __name__ == "__main__":
    main()
