"""The microscope on a model's own answers to grade-school problems, and over the checkpoints of a run: docs/microscope.md.
The decoding experiment and the lenses on a run are in quickstart_lenses.py.

python benchmarks/microscope.py answers MODEL --work FOLDER --out FILE     MODEL: a Hugging Face folder that reads ChatML
python benchmarks/microscope.py run RUN --work FOLDER --out FILE           RUN: a quickstart run with checkpoints

FOLDER gets traces, figures and report.html; FILE the numbers. What is in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEMPLATE = (
    "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n{{ question }}\nReason step by step, "
    'in a few short sentences. End with a line "Answer: NUMBER".<|im_end|>\n<|im_start|>assistant\n'
)
PROBLEMS = (
    *("data.source=reasoning_gym", "data.generator.task=gsm_symbolic", "data.generator.size=500", "data.held_out=56"),
    *(f"data.template={TEMPLATE}", "rewards.kind=reasoning_gym", "rollout.batch_size=56"),
)
MICRO_BATCHES = tuple(f"--setting=policy.tokens_per_{name}=2048" for name in ("micro_batch", "statistics_batch"))
PLACES = ("evaluation.json", "entropy.json", "masks.json", "lenses.json", "evolution.json")
LEFT_OUT = ("provenance", "settings", "command", "examples", "models", "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("answers", "run"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    {"answers": study_answers, "run": study_run}[asked.study](asked.model, asked.work)
    found = {
        str(file.relative_to(asked.work)): _numbers(json.loads(file.read_text()))
        for name in PLACES
        for file in sorted(asked.work.rglob(name))
    }
    asked.out.write_text(json.dumps(_rounded(found), indent=1, ensure_ascii=False) + "\n")


def study_answers(model: Path, work: Path) -> None:
    """56 problems, 4 answers each; entropies, masks and gradients, lenses."""
    responses, stated = work / "responses", work / "stated.parquet"
    drawing = ("--samples=4", "--max-response-tokens=192", "--temperature=1", "--seed=0", "--entropy")
    _fork("evaluate", model, *PROBLEMS, *drawing, out=responses)
    _fork("analyze", "entropy", responses, out=work / "entropy")
    _fork("analyze", "report", responses, out=work / "report.html")
    reward_stated_answers(responses, stated)
    for other in ("scope=sequence", "tokens=random"):
        selections = ("--a=selection.scope=minibatch", f"--b=selection.{other}", "--responses=16", *MICRO_BATCHES)
        _fork("analyze", "compare-masks", stated, model, *selections, out=work / "masks" / other)
    lenses = ("--lens=entropy,mi,variance", "--limit=8")
    _fork("analyze", "lenses", responses, model, *lenses, out=work / "lenses")


def study_run(run: Path, work: Path) -> None:
    """Entropies of the final model's responses under every checkpoint."""
    responses = work / "responses"
    _fork("evaluate", run, "--samples=4", "--entropy", out=responses)
    _fork("analyze", "entropy", responses, "--minimum-count=20", out=work / "entropy")
    _fork("analyze", "evolution", responses, "--run", run, out=work / "evolution")


def reward_stated_answers(evaluation: Path, target: Path) -> None:
    """Write the responses again, prompt by prompt, with reward 1 where the verifier found an answer at all.

    So that a model which is right nowhere has advantages, and gradients that can be compared.
    """
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(evaluation.glob("traces/*.parquet"))])
    rows = rows.sort_by([("prompt_id", "ascending"), ("sample", "ascending")])
    stated = pc.cast(pc.invert(pc.starts_with(rows["reason"], "neither ")), pa.float64())
    place = rows.schema.get_field_index("reward")
    pq.write_table(rows.set_column(place, rows.schema.field(place), stated), target, compression="zstd")


def _fork(*words: object, out: Path) -> None:
    if (
        (out / "evaluation.json").is_file()
        or out.is_file()
        or list(out.glob("*.svg"))
        or (out / "masks.json").is_file()
    ):
        return
    subprocess.run([sys.executable, "-m", "megatron_fork", *map(str, words), "--out", str(out)], check=True)


def _numbers(record: Any) -> Any:
    """Without what names this machine's places, and without texts of responses."""
    if isinstance(record, dict):
        return {key: _numbers(value) for key, value in record.items() if key not in LEFT_OUT}
    return [_numbers(value) for value in record] if isinstance(record, list) else record


def _rounded(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _rounded(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_rounded(value) for value in record]
    return float(f"{record:.5g}") if isinstance(record, float) else record


if __name__ == "__main__":
    main()
