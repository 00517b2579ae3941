"""Log-probs that servers give to tokens which there already are equal those of the statistics pass; entropies are left out."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import run, trace_rows
from support.engine_models import new_model
from support.engine_servers import ENGINES, RunningServer, serving
from support.trace_files import ORIGIN, TOKENIZER, VOCABULARY, made_up

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import RolloutConfig, ScoringServers
from megatron_fork.traces import write_traces

pytestmark = pytest.mark.slow
GONE = "http://127.0.0.1:9"
"""Nothing listens there: the other server scores everything."""


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp(request.param)
    new_model(tied=True, seed=100).save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    with serving(request.param, folder / "model", folder) as running:
        yield running


def rescore(traces: Path, server: RunningServer, out: Path, *words: str) -> tuple[int, str]:
    at_server = (
        f"--engine-holds-model={server.model}",
        f"--setting=rollout.engine={server.engine}",
        f"--setting=rollout.servers=[{GONE},{server.url}]",
    )
    return run("analyze", "rescore", str(traces), str(server.model), *words, *at_server, f"--out={out}")


def test_log_probs_are_those_of_the_statistics_pass(served: RunningServer, tmp_path: Path) -> None:
    rows = [*made_up(40), *made_up(1, seed=3)]
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, 110).tolist()  # several blocks of a cache
    rows.append(replace(rows[0], sample=9, tokens=tokens, token_texts=None, entropy=None, response="long"))
    rows.append(replace(rows[0], sample=10, tokens=[VOCABULARY - 1, VOCABULARY - 2], token_texts=None, entropy=None))
    write_traces(tmp_path / "in.parquet", rows, ORIGIN)
    code, output = rescore(tmp_path / "in.parquet", served, tmp_path / "served.parquet")
    assert code == 0 and f"without entropies: {served.engine} servers report none" in output, output
    assert f"{GONE} does not answer" in output, output
    code, output = run(
        *("analyze", "rescore", str(tmp_path / "in.parquet"), str(served.model), f"--out={tmp_path / 'pass.parquet'}")
    )
    assert code == 0, output
    found, expected = trace_rows(tmp_path / "served.parquet"), trace_rows(tmp_path / "pass.parquet")
    assert len(found) == len(expected) == len(rows)
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["logprob"], other["logprob"], rtol=0, atol=1e-4)
        assert row["entropy"] is None and other["entropy"] is not None
        scores = {"logprob": None, "entropy": None}
        assert row | scores == other | scores
    code, output = run("analyze", "entropy", str(tmp_path / "served.parquet"))
    assert code == 1 and "has entropies" in output, output


def test_what_a_server_cannot_score_is_named(served: RunningServer, tmp_path: Path) -> None:
    write_traces(tmp_path / "warm.parquet", made_up(4), replace(ORIGIN, temperature=0.6))
    code, output = rescore(tmp_path / "warm.parquet", served, tmp_path / "out.parquet")
    assert code == 2 and "temperature 0.6" in output and not (tmp_path / "out.parquet").exists(), output
    config = RolloutConfig(engine=served.engine, servers=[served.url])
    longest = json.loads((served.model / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(RolloutError, match=r"does not score a sequence of .* tokens"):
        ScoringServers(config, str(served.model), VOCABULARY).logprobs([[5] * (longest + 7)], [1])
    with pytest.raises(RolloutError, match="not another"):
        ScoringServers(config, "another", VOCABULARY).logprobs([[5, 6]], [1])
    found = ScoringServers(config, str(served.model), VOCABULARY).logprobs([[5, 6, 7], [5], []], [1, 1, 0])
    assert [len(each) for each in found] == [2, 0, 0] and all(value < 0 for value in found[0])
