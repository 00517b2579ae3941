"""A vLLM server draws the cells of an intervention, at temperature 0 the same as the embedded engine."""

import json
from pathlib import Path

import pytest
from support.commands import run, trace_rows
from support.engine_models import new_model
from support.engine_servers import serving
from support.judging import EVEN

from megatron_fork.data import tokenizer_of_task

pytestmark = pytest.mark.slow


def test_a_vllm_server_draws_the_cells(tmp_path: Path) -> None:
    model = tmp_path / "model"
    new_model(tied=True, seed=100).save_pretrained(model)
    tokenizer_of_task("reach").save_pretrained(model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"from {n} to 7 :", "answer": "1"}) + "\n" for n in range(4)))
    settings = [f"--setting={each}" for each in EVEN]
    words = ["--high=0,1", "--low=0,1", "--threshold=4.3", "--samples=2", f"--prompts={prompts}", *settings]
    with serving("vllm", model, tmp_path) as server:
        served = ["rollout.engine=vllm", f"rollout.servers=[{server.url}]", "rollout.sync=disk"]
        for name, more in (("embedded", []), ("vllm", [f"--setting={each}" for each in served])):
            code, output = run(
                "analyze", "intervene", str(model), *words, *more, f"--out={tmp_path / name}", limit=300.0
            )
            assert code == 0, output
    cold, cells = [], ("high-0_low-0", "high-0_low-1", "high-1_low-0", "high-1_low-1")
    for name in ("embedded", "vllm"):
        drawn = {cell: trace_rows(tmp_path / name / "cells" / cell) for cell in cells}
        assert all(len(rows) == 8 for rows in drawn.values())
        cold.append({(row["prompt_id"], row["sample"]): row["tokens"] for row in drawn["high-0_low-0"]})
        assert all(abs(value) < 1e-4 for row in drawn["high-0_low-0"] for value in row["logprob"])
    assert cold[0] == cold[1]
