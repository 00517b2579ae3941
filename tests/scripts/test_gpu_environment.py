"""What a machine lacks for Transformer Engine's build is one line with the way out, before anything is fetched or compiled.

The environment to add to, the driver and the compiler are stand-ins that say what the script asks them.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_environment.sh"
PYTHON = """#!/bin/sh
case "$*" in
*sysconfig*) echo "{cuda} 2.11.0 {packages}" ;;
*"-m pip"*) echo "pip $*" >>"{packages}/pip" ;;
"- "*) shift; for pin; do [ -n "{installed}" ] || echo "$pin"; done ;;
esac
"""


def added(
    tmp_path: Path, *words: str, cuda: str = "13", driver: str = "580.65.06", lacks: str = "", installed: bool = False
) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of the error output, and what pip was asked for."""
    packages = tmp_path / "site"
    include = packages / "nvidia" / "of_a_wheel" / "include"
    include.mkdir(parents=True)
    for header in ("cuda_runtime.h", "cudnn.h"):
        if header != lacks:
            (include / header).touch()
    stand_ins = {
        "python": PYTHON.format(cuda=cuda, packages=packages, installed="yes" if installed else ""),
        "nvidia-smi": f"#!/bin/sh\necho {driver}\n",
        "compiler": "#!/bin/sh\n",
    }
    for name, text in stand_ins.items():
        if name != lacks:
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "CXX": "compiler",
        "CUDA_HOME": "/nowhere",
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    asked = packages / "pip"
    return done.returncode, done.stderr.splitlines(), asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"driver": "570.1", "cuda": "13"}, "the driver 570 is too old for CUDA 13"),
        ({"driver": "510.47", "cuda": "12"}, "the driver 510 is too old for CUDA 12"),
        ({"driver": "No devices were found"}, "no GPU is found"),
        ({"lacks": "compiler"}, "no C++ compiler"),
        ({"lacks": "cudnn.h"}, "no headers of CUDA and cuDNN"),
        ({"cuda": "11"}, "torch 2.11.0 is built for CUDA 11"),
        ({"cuda": "0"}, "torch 2.11.0 is built for CUDA 0"),
    ],
)
def test_what_is_lacking_stops_it_first(tmp_path: Path, fields: dict[str, str], told: str) -> None:
    code, errors, asked = added(tmp_path, **fields)  # type: ignore[arg-type]
    assert code == 1 and len(errors) == 2 and errors[0].startswith(f"error: {told}") and not asked


@pytest.mark.parametrize("words", [("--jobs", "0"), ("--jobs", "many"), ("--fast",)])
def test_words_that_it_does_not_know(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, errors, asked = added(tmp_path, *words)
    assert code == 1 and len(errors) == 2 and words[0] in errors[0] and not asked


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_packages_are_those_of_torchs_cuda(tmp_path: Path, cuda: str) -> None:
    code, errors, (wheels, tools, built) = added(tmp_path, "--jobs", "2", cuda=cuda)
    assert code == 0, errors
    other = {"12": "13", "13": "12"}[cuda]
    assert f"transformer-engine-cu{cuda}==" in wheels and f"cu{other}" not in wheels
    assert ("nvidia-cublas" in wheels) == (cuda == "13") and "ninja" in tools
    assert "transformer-engine-torch==" in built and "--no-build-isolation" in built and "flash-attn" not in built
    assert "--no-deps" in wheels and "--no-deps" in built


def test_flash_attention_is_compiled_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "nvcc").chmod(0o755)
    code, errors, asked = added(tmp_path, "--flash-attn")
    assert code == 0 and "flash-attn==" in asked[-1], errors


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    assert added(tmp_path, installed=True)[::2] == (0, [])
