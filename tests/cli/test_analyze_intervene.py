"""`analyze intervene`: cells of temperatures with paired random numbers, resumable, within a budget."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import trace_rows
from support.engine_models import STOP, new_model, weights_of
from support.judging import EVEN
from support.trace_files import save_model
from typer.testing import CliRunner

from megatron_fork.analysis import PAPER_TEMPERATURES, Cell, Intervention, cell_result, cells_of, intervention_record
from megatron_fork.cli import app, guard
from megatron_fork.errors import RolloutError
from megatron_fork.evaluation import bootstrap_interval
from megatron_fork.experience import Prompt
from megatron_fork.rollout import Completion, EmbeddedEngine, Request
from megatron_fork.run import check_follows
from megatron_fork.traces import open_traces

SETTINGS = [word for setting in EVEN for word in ("--setting", setting)]


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and prompts with answers."""
    folder = tmp_path_factory.mktemp("intervene")
    save_model(folder / "model")
    rows = [{"prompt": f"from {n} to {n + 7} :", "answer": str(n)} for n in range(3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(place: Path, *words: object) -> tuple[int, str]:
    given = ["intervene", place / "model", "--prompts", place / "prompts.jsonl", "--samples", 2, *SETTINGS, *words]
    result = CliRunner().invoke(app, ["analyze", *map(str, given)])
    return result.exit_code, result.output


def test_the_papers_lines_hold_one_temperature_at_one() -> None:
    cells = cells_of([1.0], [1.0], paper=True)
    assert cells[0] == Cell(1.0, 1.0) and len(cells) == len(set(cells)) == 2 * len(PAPER_TEMPERATURES) - 1
    assert all(1.0 in (cell.high, cell.low) for cell in cells)
    assert set(cells_of([0.0, 2.0], [0.5, 1.0], paper=False)) == {
        Cell(high, low) for high in (0.0, 2.0) for low in (0.5, 1.0)
    }


def test_cells_differ_only_where_they_say(place: Path, tmp_path: Path) -> None:
    """At (0, 0) all samples of a prompt are equal; with no entropy above the threshold, the temperature above it is idle."""
    words = ("--high", "0,1", "--low", "0,1", "--out", tmp_path)
    code, output = call(place, *words, "--threshold", 99)
    assert code == 0, output
    assert "4 cells x 3 prompts x 2 samples: 24 responses, 0 are there; at most 480 tokens to draw" in output

    def drawn(high: int, low: int) -> list[list[int]]:
        rows = trace_rows(tmp_path / "cells" / f"high-{high}_low-{low}")
        return [row["tokens"] for row in sorted(rows, key=lambda row: (row["prompt_id"], row["sample"]))]

    assert drawn(0, 1) == drawn(1, 1) and drawn(0, 0) == drawn(1, 0)
    assert drawn(0, 0)[::2] == drawn(0, 0)[1::2] and drawn(1, 1)[::2] != drawn(1, 1)[1::2]
    rows = trace_rows(tmp_path / "cells" / "high-0_low-0")
    assert all(value == 0.0 for row in rows for value in row["logprob"])
    record = json.loads((tmp_path / "intervention.json").read_text())
    everything = [row for cell in (tmp_path / "cells").iterdir() for row in trace_rows(cell)]
    assert record["drawn_tokens"] == sum(len(row["tokens"]) for row in everything)
    assert {path.suffix for path in tmp_path.glob("intervention_*")} == {".svg", ".png"}
    # A second call draws nothing; other cells may be asked for, other settings may not.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/traces/*")}
    code, output = call(place, *words, "--threshold", 99)
    assert code == 0 and "24 are there; at most 0 tokens to draw" in output
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/traces/*")}
    code, output = call(place, "--high", "0.5", "--low", 1, "--threshold", 98, "--out", tmp_path)
    assert code == 1 and "threshold=99.0, not 98.0" in " ".join(output.split())
    code, output = call(place, *words, "--threshold", 99, "--setting", "rewards.timeout_seconds=7")
    assert code == 1 and "rewards.timeout_seconds=5.0, not 7.0" in " ".join(output.split())


def test_results_are_paired_means_over_prompts(place: Path, tmp_path: Path) -> None:
    code, output = call(place, "--high", "1,2", "--low", "1", "--threshold", 2, "--out", tmp_path)
    assert code == 0, output
    record = json.loads((tmp_path / "intervention.json").read_text())
    means = []
    for cell in ("high-1_low-1", "high-2_low-1"):
        by_prompt: dict[str, list[float]] = {}
        for row in trace_rows(tmp_path / "cells" / cell):
            by_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
        means.append([np.mean(by_prompt[prompt]) for prompt in sorted(by_prompt)])
    plain, hot = record["cells"]
    assert plain["accuracy"] == pytest.approx(np.mean(means[0])) and hot["accuracy"] == pytest.approx(np.mean(means[1]))
    apart = np.subtract(means[1], means[0])
    assert plain["difference"] is None and hot["difference"] == pytest.approx(np.mean(apart))
    assert hot["difference_interval"] == pytest.approx(bootstrap_interval(apart, seed=0))
    result = cell_result(Cell(2.0, 1.0), open_traces(tmp_path / "cells" / "high-2_low-1"), seed=0)
    alone = Intervention([result], [Cell(1.0, 1.0)], 2.0, 0, {})
    assert (
        intervention_record(alone)["cells"][0]["difference"] is None
    )  # without the plain cell nothing to compare with


def test_a_budget_leaves_out_what_might_exceed_it(place: Path, tmp_path: Path) -> None:
    code, output = call(place, "--high", "0,1", "--low", 1, "--token-budget", 130, "--out", tmp_path)
    assert code == 0 and "left out, since they might have exceeded the token budget: (0, 1)" in output, output
    record = json.loads((tmp_path / "intervention.json").read_text())
    assert record["drawn_tokens"] <= 130 and record["left_out"] == [{"high": 0.0, "low": 1.0}]
    assert [cell["high"] for cell in record["cells"]] == [1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--high", "hot"), "--high=hot is not a list of temperatures"),
        (("--low", "-1"), "--low=-1 is not a list of temperatures"),
        (("--threshold", "inf"), "--threshold=inf is not finite"),
        (("--setting", "rollout.temperature=0.7"), "rollout.temperature=0.7 with analyze intervene"),
    ],
)
def test_what_cannot_be_is_told(place: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    code, output = call(place, *words, "--out", tmp_path / "out")
    assert code in (1, 2) and message in " ".join(output.split()) and "Traceback" not in output


class Deaf(EmbeddedEngine):
    """Draws as a server that was started without the processor for the temperature by entropy."""

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        return {"http://deaf": list(self.generate([replace(each, entropy_temperature=None) for each in requests]))}


def test_a_server_that_does_not_follow_is_noticed() -> None:
    model = new_model(tied=True, seed=1)
    engine = Deaf(
        model.config, stop_tokens=(STOP,), pad_token=0, batch_size=8, device=torch.device("cpu"), dtype=torch.float32
    )
    engine.update_weights(weights_of(model), 0)
    with pytest.raises(RolloutError, match="http://deaf does not follow the temperature by entropy"):
        check_follows(engine, [Prompt(0, "", (3, 4), "")], None)
