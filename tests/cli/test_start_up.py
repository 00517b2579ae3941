"""What can be told without torch and Megatron is told before they are imported, which takes seconds."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.commands import PROJECT, QUICKSTART, environment
from typer.testing import CliRunner

from megatron_fork.cli import commands, guard

# Runs the program, then says what it has imported; the program's own exit code stays.
WATCHED = """
import atexit, os, sys
leave = os._exit
def report(code=0):
    sys.stdout.flush()
    os.write(2, ("imported: " + " ".join(sorted({name.split(".")[0] for name in sys.modules}))).encode())
    leave(code)
os._exit = report
atexit.register(lambda: os.write(2, ("imported: " + " ".join(sorted({n.split(".")[0] for n in sys.modules}))).encode()))
from megatron_fork.cli import guard
from megatron_fork.cli.commands import main
guard._FIRST_RANK_SECONDS = 0.1
main()
"""
SLOW = {"torch", "megatron", "transformers", "pyarrow", "matplotlib", "sympy"}


def watched(*words: str, **variables: str) -> tuple[int, str, set[str]]:
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        env={**environment(), **variables},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    output, _, imported = (result.stdout + result.stderr).rpartition("imported: ")
    return result.returncode, output, set(imported.split())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, "train"),
        (["--version"], 0, "0."),
        (["version"], 0, "0."),
        (["train", "--help"], 0, "settings of the run"),
        (["train", str(QUICKSTART), "--print-config"], 0, "# Responses per prompt"),
        (["train", str(QUICKSTART), "selection.tokns=all"], 2, "did you mean selection.tokens?"),
        (["train", str(QUICKSTART), "train.steps=many"], 2, "train.steps=many"),
        (["train", str(QUICKSTART), "selection.ratio=2"], 2, "selection.ratio=2"),
        (["train", "absent.yaml"], 2, "absent.yaml"),
        (["sft", str(QUICKSTART), "sft.batch=0"], 2, "sft.batch=0"),
        (["sft", str(QUICKSTART), "sft.steps=0"], 2, "sft.steps=0: the command sft has nothing to do"),
        (["doctor", str(QUICKSTART), "sead=1"], 2, "did you mean seed?"),
        (["convert", "to-megatron", "a", "b", "--dtype", "int8"], 2, "--dtype int8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_nothing_slow_is_imported(words: list[str], code: int, told: str) -> None:
    found, output, imported = watched(*words)
    assert found == code and told in output
    assert "typer" in imported and not imported & SLOW


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "to-megatron", "~/absent", "~/out"],
        ["convert", "to-hf", "~/absent", "~/out"],
        ["convert", "verify", "~/absent", "~/out"],
        ["data", "dedupe", "~/absent", "~/out.jsonl"],
        ["data", "decontaminate", "gsm8k:~/absent", "~/out.jsonl", "--against=aime_2024:~/absent"],
        ["analyze", "~/absent"],
        ["train", "~/absent"],
        ["doctor", "~/absent"],
    ],
    ids=" ".join,
)
def test_the_home_of_every_path(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves `~` alone in quotes and behind `=` and `:`."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)  # which would end the tests
    done = CliRunner().invoke(commands.app, words, env={"HOME": str(tmp_path)})
    code, output = done.exit_code, done.output
    assert code in (1, 2) and f"{tmp_path}/absent" in output and "~" not in output, output
    assert "model.path" not in output, "that is a recipe's word"


def test_the_first_rank_tells_and_all_leave_alike() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with ThreadPoolExecutor() as ranks:
        (code, first, _), (other_code, other, _) = ranks.map(
            lambda rank: watched("train", str(QUICKSTART), "sead=1", RANK=rank, LOCAL_RANK=rank, **place), ("0", "1")
        )
    assert code == other_code == 2
    assert first.splitlines() == ["error: sead is not a field", "  did you mean seed?"] and not other


def test_the_first_rank_tells_before_torch_is_imported_to_tell_the_others(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import sys; sys.stderr.write('torch is imported\\n')\n")
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "15999"}
    path = f"{tmp_path}:{environment()['PYTHONPATH']}" if "PYTHONPATH" in environment() else str(tmp_path)
    _, output, _ = watched("train", str(QUICKSTART), "sead=1", PYTHONPATH=path, **ranks)
    told = output.splitlines()[:3]
    assert told == ["error: sead is not a field", "  did you mean seed?", "torch is imported"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_rank_alone_prints_the_recipe(rank: str) -> None:
    code, output, _ = watched("train", str(QUICKSTART), "--print-config", RANK=rank, WORLD_SIZE="2")
    assert (
        code == 0
        and output.startswith("# Seed of every random choice" if rank == "0" else "")
        and bool(output) == (rank == "0")
    )


@pytest.mark.parametrize("variable", ["MASTER_PORT", "WORLD_SIZE"])
def test_broken_variables_of_a_launcher_are_told_by_the_first_rank(variable: str) -> None:
    for rank in ("0", "1"):
        place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "15999", variable: "abc"}
        code, output, _ = watched("train", str(QUICKSTART), **place)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert code == 2 and errors == ([f"error: {variable}='abc' is not a number"] if rank == "0" else [])
