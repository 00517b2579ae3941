"""Servers draw evaluations too: with the weights that the command sends, or with those that they have and keep."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run
from support.engine_models import new_model
from support.engine_servers import RunningServer, serving
from support.judging import EVEN

from megatron_fork.data import tokenizer_of_task
from megatron_fork.traces import open_traces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path, Path]]:
    """A vLLM server with one model, its folder, and the folder of another model."""
    folder = tmp_path_factory.mktemp("evaluating")
    for name, seed in (("served", 100), ("other", 101)):
        new_model(tied=True, seed=seed).save_pretrained(folder / name)
        tokenizer_of_task("reach").save_pretrained(folder / name)
    with serving("vllm", folder / "served", folder) as running:
        yield running, folder / "served", folder / "other"


def evaluated(model: Path, out: Path, url: str, *words: str) -> tuple[int, str]:
    prompts = out.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"from {n} to 7 :", "answer": "1"}) + "\n" for n in range(4)))
    engine = ("rollout.engine=vllm", f"rollout.servers=[{url}]", "rollout.sync=disk")
    return run("evaluate", str(model), f"--set=a={prompts}", "--samples=3", *EVEN, *engine, *words, f"--out={out}")


def test_weights_that_servers_keep_and_weights_that_are_sent(
    served: tuple[RunningServer, Path, Path], tmp_path: Path
) -> None:
    server, model, other = served
    kept, sent = tmp_path / "kept", tmp_path / "sent"
    code, output = evaluated(model, kept, server.url, "--engine-holds-model=another")
    assert code == 1 and "not another" in output, output
    code, output = evaluated(model, tmp_path / "first", server.url, f"--engine-holds-model={model}")
    assert code == 0, output
    assert open_traces(tmp_path / "first").responses == 12
    code, output = evaluated(other, sent, server.url)
    assert code == 0, output
    results = json.loads((sent / "evaluation.json").read_text())
    assert results["sets"]["a"]["responses"] == 12 and results["settings"]["engine"] == "vllm"
    rows = [row for part in open_traces(sent).parts() for row in part.table.to_pylist()]
    assert all(len(row["logprob"]) == len(row["tokens"]) for row in rows)
