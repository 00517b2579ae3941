"""Servers of both engines draw evaluations: with the weights that the command sends, or with those that they have and keep."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run
from support.engine_models import new_model
from support.engine_servers import ENGINES, RunningServer, serving
from support.judging import EVEN

from megatron_fork.data import tokenizer_of_task
from megatron_fork.traces import open_traces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=ENGINES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Path, Path]]:
    """A server with one model, its folder, and the folder of another model."""
    folder = tmp_path_factory.mktemp("evaluating")
    for name, seed in (("served", 100), ("other", 101)):
        new_model(tied=True, seed=seed).save_pretrained(folder / name)
        tokenizer_of_task("reach").save_pretrained(folder / name)
    with serving(request.param, folder / "served", folder) as running:
        yield running, folder / "served", folder / "other"


def evaluated(model: Path, out: Path, server: RunningServer, *words: str, samples: int = 3) -> tuple[int, str]:
    prompts = out.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"from {n} to 7 :", "answer": "1"}) + "\n" for n in range(4)))
    engine = (f"rollout.engine={server.engine}", f"rollout.servers=[{server.url}]", "rollout.sync=disk")
    words = (f"--set=a={prompts}", f"--samples={samples}", *EVEN, *engine, *words, f"--out={out}")
    return run("evaluate", str(model), *words, limit=300.0)


def test_weights_that_servers_keep_and_weights_that_are_sent(
    served: tuple[RunningServer, Path, Path], tmp_path: Path
) -> None:
    server, model, other = served
    kept, sent = tmp_path / "kept", tmp_path / "sent"
    code, output = evaluated(model, kept, server, "--engine-holds-model=another")
    assert code == 1 and "not another" in output, output
    code, output = evaluated(model, tmp_path / "first", server, f"--engine-holds-model={model}")
    assert code == 0, output
    assert open_traces(tmp_path / "first").responses == 12
    code, output = evaluated(other, sent, server)
    assert code == 0, output
    results = json.loads((sent / "evaluation.json").read_text())
    assert results["sets"]["a"]["responses"] == 12 and results["settings"]["engine"] == server.engine
    rows = [row for part in open_traces(sent).parts() for row in part.table.to_pylist()]
    assert all(len(row["logprob"]) == len(row["tokens"]) for row in rows)


def test_at_temperature_0_it_draws_what_the_embedded_engine_draws(
    served: tuple[RunningServer, Path, Path], tmp_path: Path
) -> None:
    server, model, _ = served
    drawn = []
    for name, more in (("servers", ()), ("embedded", ("rollout.engine=embedded", "rollout.servers=[]"))):
        code, output = evaluated(model, tmp_path / name, server, "--temperature=0", *more, samples=1)
        assert code == 0, output
        rows = [row for part in open_traces(tmp_path / name).parts() for row in part.table.to_pylist()]
        drawn.append(sorted((row["prompt_id"], row["tokens"], row["finish_reason"]) for row in rows))
    assert drawn[0] == drawn[1] and len(drawn[0]) == 4
