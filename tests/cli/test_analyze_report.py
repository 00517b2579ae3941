"""`analyze report` writes the page where it is told to, or beside what it is about."""

from pathlib import Path

import pytest
from support.commands import run
from support.synthetic_run import write_run
from support.synthetic_traces import ORIGIN, traced_responses
from typer.testing import CliRunner

from megatron_fork.cli import app
from megatron_fork.traces import write_traces


def report(*words: str | Path) -> str:
    result = CliRunner().invoke(app, ["analyze", "report", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    write_traces(tmp_path / "traces.parquet", traced_responses(4, 20), ORIGIN)
    return tmp_path / "traces.parquet"


def test_of_a_file_it_is_beside_it(traces: Path) -> None:
    assert f"report {traces.with_suffix('.html')}" in report(traces)
    assert "80 tokens of 4 responses" in traces.with_suffix(".html").read_text()


def test_of_a_folder_it_is_inside(tmp_path: Path, traces: Path) -> None:
    report(tmp_path)
    assert (tmp_path / "report.html").is_file()


def test_of_a_run_it_is_the_runs_report(tmp_path: Path) -> None:
    from megatron_fork.analysis import write_report

    folder = write_run(tmp_path / "run", steps=2)
    report(folder)
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first


def test_of_several_places_with_figures(tmp_path: Path, traces: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    output = report(folder, traces, "--out", tmp_path / "both.html", "--figures", tmp_path / "figures")
    assert f"report {tmp_path / 'both.html'}" in output
    assert "890 tokens of 13 responses" in (tmp_path / "both.html").read_text()
    assert (tmp_path / "figures" / "distribution-column.svg").is_file()


@pytest.mark.parametrize("place", ["absent", "bad.parquet"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "bad.parquet").write_text("PAR1 no")
    code, output = run("analyze", "report", str(tmp_path / place))
    error, hint = output.splitlines()
    assert code != 0 and error.startswith(f"error: {tmp_path / place}") and hint
