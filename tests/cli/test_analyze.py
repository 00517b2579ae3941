"""`analyze` takes a command, or a folder without one; a folder that is named like a command is given by its path."""

from pathlib import Path

import pytest
from support.synthetic_run import write_run
from typer.testing import CliRunner

from megatron_fork.cli import app

runner = CliRunner()


def test_a_run_folder_needs_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "entropy", steps=2)
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["analyze", "./entropy"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "entropy" / "report.html").is_file()


def test_options_may_stand_before_the_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=2)
    assert runner.invoke(app, ["analyze", "--debug", str(tmp_path / "run")]).exit_code == 0


def test_a_mistyped_command_is_told_with_those_that_there_are() -> None:
    result = runner.invoke(app, ["analyze", "entorpy", "traces"])
    assert result.exit_code == 2 and "no command 'entorpy': there are" in result.output
    assert "of-folder" not in result.output and "Traceback" not in result.output


def test_help_lists_the_commands() -> None:
    result = runner.invoke(app, ["analyze", "--help"])
    assert result.exit_code == 0 and "of-folder" not in result.output
