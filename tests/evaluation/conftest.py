"""A small model and files of prompts that its tokenizer reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the quickstart's size."""
    folder = tmp_path_factory.mktemp("small") / "run"
    code, output = run("sft", str(QUICKSTART), *TINY, f"run.folder={folder}")
    assert code == 0, output
    return folder / "warm_start"


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of `count` questions."""

    def write(name: str, count: int, *, answers: bool = True, first: int = 0) -> Path:
        rows = [{"prompt": f"from {first + n} to {n + 7} :"} for n in range(count)]
        if answers:
            rows = [{**row, "answer": str(n)} for n, row in enumerate(rows)]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
