"""A Transformer Engine that cannot be used does not end a program that does without it: Megatron is kept from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import torch
if {gpu}: torch.cuda.is_available = lambda: True
{first}
import megatron_fork
import megatron.core.extensions.transformer_engine as theirs
from megatron_fork.models import ComputeConfig, choose_backend
print(theirs.HAVE_TE, choose_backend(ComputeConfig()))
"""


def used(folder: Path, *, gpu: bool, first: str = "") -> str:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[2])])
    command = [sys.executable, "-W", "ignore", "-c", USE.format(gpu=gpu, first=first)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("of_package", "of_extension"),
    [
        ("raise OSError('libcublasLt.so.13: undefined symbol: of_another_version')", "pass"),
        ("raise ImportError('built for\\n another torch')", "raise ImportError('built for another torch')"),
    ],
)
def test_a_broken_installation_is_a_reason_and_not_the_end(tmp_path: Path, of_package: str, of_extension: str) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(of_package)
    (tmp_path / "transformer_engine_torch.py").write_text(of_extension)
    seen = used(tmp_path, gpu=True)
    assert seen.startswith("False") and "backend='local'" in seen
    assert "installed but cannot be imported" in seen and "another" in seen


def test_without_a_gpu_it_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("print('imported')")
    assert used(tmp_path, gpu=False) == "False Chosen(backend='local', reason='no GPU is visible')\n"


def test_a_program_that_imports_megatron_first_gets_local_layers_without_a_gpu(tmp_path: Path) -> None:
    assert "backend='local', reason='no GPU is visible'" in used(tmp_path, gpu=False, first="import megatron")
