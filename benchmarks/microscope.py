"""The microscope on a model's own answers to grade-school problems, and over the checkpoints of a run: docs/microscope.md.
The decoding experiment and the lenses on a run are in quickstart_lenses.py.

python benchmarks/smollm2.py MODEL                                         makes the model that the study was of
python benchmarks/microscope.py answers MODEL --work FOLDER --out FILE     MODEL: a Hugging Face folder with a chat template
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PROBLEMS = 56
FORM = 'Reason step by step, in a few short sentences. End with a line "Answer: NUMBER".'
JUDGED = ("data.template=chat", "rewards.kind=math")
SETTINGS = tuple(f"--setting={setting}" for setting in JUDGED)
MICRO_BATCHES = tuple(f"--setting=policy.tokens_per_{name}=2048" for name in ("micro_batch", "statistics_batch"))
FEW = 16
PLACES = (
    "evaluation.json",
    "entropy.json",
    "masks.json",
    "lenses.json",
    "evolution.json",
    "intervention.json",
    "bf16.json",
    "engine.json",
)
LEFT_OUT = ("provenance", "settings", "command", "examples", "models", "model", "tokenizer")
PAGE_BYTES = 400_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("answers", "run"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    {"answers": study_answers, "run": study_run}[asked.study](asked.model, asked.work)
    found = {
        str(file.relative_to(asked.work)): _numbers(json.loads(file.read_text()))
        for name in PLACES
        for file in sorted(asked.work.rglob(name))
    }
    asked.out.write_text(json.dumps(_rounded(found), indent=1, ensure_ascii=False) + "\n")


def study_answers(model: Path, work: Path) -> None:
    """56 problems, 4 answers each: every command of the microscope that needs no training."""
    problems, given = work / "problems.jsonl", work / "problems_as_responses.jsonl"
    responses, stated, few = work / "gsm_symbolic", work / "stated.parquet", work / "few.parquet"
    write_problems(problems, given)
    drawing = ("--samples=4", "--max-response-tokens=160", "--temperature=1", "--seed=0", "--entropy")
    _fork("evaluate", model, f"--set=gsm_symbolic={problems}", *JUDGED, *drawing, out=responses)
    _fork("analyze", "entropy", responses, out=work / "entropy")
    _fork("analyze", "report", responses, out=work / "report.html")
    check_page(work / "report.html")
    _fork("analyze", model, f"--responses={given}", "--minimum-count=20", out=work / "problems")
    reward_stated_answers(responses, stated)
    pq.write_table(pq.read_table(stated).slice(0, FEW), few, compression="zstd")
    compare_with_transformers(model, few, work / "engine.json")
    for other in ("scope=sequence", "tokens=random"):
        selections = ("--a=selection.scope=minibatch", f"--b=selection.{other}", f"--responses={FEW}", *MICRO_BATCHES)
        _fork("analyze", "compare-masks", stated, model, *selections, out=work / "masks" / other)
    _fork("analyze", "rescore", few, model, "--setting=policy.precision=bf16", out=work / "bf16.parquet")
    compare_scores(few, work / "bf16.parquet", work / "bf16.json")
    threshold = json.loads((work / "entropy" / "entropy.json").read_text())["groups"]["all"]["percentiles"]["80"]
    grid = ("--high=0.5,1", "--low=0.5,1", f"--threshold={threshold:.3g}", "--limit=16", "--samples=2", "--seed=0")
    drawn = ("--prompts", problems, "--max-response-tokens=160", *SETTINGS)
    _fork("analyze", "intervene", model, *drawn, *grid, out=work / "intervention")
    lenses = ("--lens=entropy,mi,variance", "--limit=16", "--token-budget=60000")
    _fork("analyze", "lenses", responses, model, *lenses, out=work / "lenses")


def write_problems(problems: Path, given: Path) -> None:
    """The problems as prompts, and their own words as responses to one prompt: text that a person's rules wrote."""
    import reasoning_gym

    made = [reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=PROBLEMS)[number] for number in range(PROBLEMS)]
    rows = [{"prompt": f"{each['question']}\n{FORM}", "answer": each["answer"]} for each in made]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asking = [{"role": "user", "content": "Write a word problem of grade-school arithmetic."}]
    rows = [{"prompt": asking, "response": each["question"]} for each in made]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_page(page: Path) -> None:
    """End with an error if the page is larger than one that can be committed, or names a place of this machine."""
    text = page.read_text()
    named = [place for place in (str(Path.cwd()), str(Path.home()), str(page.resolve().parent)) if place in text]
    if len(text.encode()) > PAGE_BYTES or named:
        raise SystemExit(f"{page} has {len(text.encode()):,} of {PAGE_BYTES:,} bytes and names {named}")


def compare_scores(first: Path, second: Path, target: Path) -> None:
    """How far the entropies of the same tokens are apart, and how many of the top 20 % are in both."""
    columns = [
        pc.list_flatten(pq.read_table(file, columns=["entropy"])["entropy"]).to_numpy() for file in (first, second)
    ]
    top = [entropy >= np.percentile(entropy, 80) for entropy in columns]
    found = {
        "tokens": len(columns[0]),
        "mean_difference": float(np.abs(columns[0] - columns[1]).mean()),
        "largest_difference": float(np.abs(columns[0] - columns[1]).max()),
        "top_20_in_both": float((top[0] & top[1]).sum() / top[0].sum()),
    }
    target.write_text(json.dumps(found))


def compare_with_transformers(model: Path, traces: Path, target: Path) -> None:
    """How far the log-probs that the engine wrote are from those of transformers over the whole response."""
    import torch
    from transformers import AutoModelForCausalLM

    if target.is_file():
        return
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    apart: list[float] = []
    for row in pq.read_table(traces, columns=["prompt_tokens", "tokens", "logprob"]).to_pylist():
        tokens_t = torch.tensor(row["tokens"])
        with torch.no_grad():
            logits_tv = network(torch.tensor([row["prompt_tokens"] + row["tokens"]])).logits[0, -len(tokens_t) - 1 : -1]
        logprob_t = logits_tv.float().log_softmax(-1).gather(1, tokens_t[:, None])[:, 0]
        apart += (logprob_t - torch.tensor(row["logprob"])).abs().tolist()
    target.write_text(json.dumps({"tokens": len(apart), "largest_difference": max(apart)}))


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
