"""What a machine lacks is told in one line for each part that cannot run, and wheels that were carried along are used."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))
from gpu_check import machine, wheels  # noqa: E402
from gpu_check.commands import Place, marked_tests  # noqa: E402
from gpu_check.errors import CheckError  # noqa: E402
from gpu_check.machine import Machine  # noqa: E402
from gpu_check.parts import PARTS, Part  # noqa: E402

PROJECT = Path(__file__).parents[2]
BY_NAME = {part.name: part for part in PARTS}


def found(total: float = 140.0, free: float = 139.0, missing: dict[str, str] | None = None, busy: str = "") -> Machine:
    gpu = {"name": "H200", "gpus": 1, "capability": "9.0", "total_gib": total, "free_gib": free, "cuda": "13.0"}
    return Machine("3.12", {"torch": "2.11"}, gpu, missing or {}, busy)


@pytest.mark.parametrize(
    ("part", "about", "says"),
    [
        ("kernels", {}, ""),
        ("kernels", {"missing": {"triton": "triton is not installed"}}, "triton is not installed"),
        ("head-8b", {"missing": {"triton": "triton is not installed"}}, ""),
        ("size-8b", {"total": 24.0, "free": 23.0}, "the GPU has 24 GiB, and this shape takes 54"),
        ("size-8b", {"free": 40.0}, "40 GiB of the GPU are free, and this shape takes 54"),
        ("head-8b", {"total": 24.0, "free": 23.0}, ""),
        ("head-8b", {"busy": "the GPU is busy"}, "the GPU is busy; --even-if-busy measures all the same"),
        ("tests", {"busy": "the GPU is busy"}, ""),
        ("transformer-engine", {"missing": {"transformer_engine.pytorch": "it does not import: x"}}, "it does not"),
    ],
)
def test_the_reason_against_a_part(part: str, about: dict[str, Any], says: str) -> None:
    reason = found(**about).reason_against(BY_NAME[part], smoke=False, even_if_busy=False)
    assert says in reason and bool(reason) == bool(says)


def test_a_busy_gpu_is_measured_where_that_is_wanted() -> None:
    assert not found(busy="the GPU is busy").reason_against(BY_NAME["head-8b"], smoke=False, even_if_busy=True)


@pytest.mark.parametrize(
    ("gpu", "processes", "says"),
    [
        ("512, 3\n", "", ""),
        ("60000, 0\n", "77, /usr/bin/python3, 59000\n", "58.6 GiB held and 0 % used by process 77, /usr/bin/python3"),
        ("300, 97\n", "", "0.3 GiB held and 97 % used"),
        ("", "", ""),
        ("[N/A], [N/A]\n", "", ""),
        ("Unable to determine the device handle\n", "", ""),
    ],
)
def test_who_else_uses_the_gpu(gpu: str, processes: str, says: str) -> None:
    words = machine.usage_in_words(gpu, processes)
    assert says in words and bool(words) == bool(says)


def test_nvidia_smi_is_asked_for_the_gpu_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--id=3*query-gpu*) echo "2048, 50";; *--id=3*) echo "9, other, 1";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert machine.others_on_gpu() == "the GPU is busy: 2.0 GiB held and 50 % used by process 9, other"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.others_on_gpu() == ""


def python_with(folder: Path, body: str) -> dict[str, str]:
    (folder / "broken_module.py").write_text(body)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1", ""),
        ("raise OSError('libx.so.13: undefined symbol')", "libx.so.13: undefined symbol"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_module_that_does_not_import_is_told_with_its_reason(tmp_path: Path, body: str, says: str) -> None:
    error = machine._import_error(sys.executable, "broken_module", python_with(tmp_path, body))
    assert says in error and bool(error) == bool(says)


def test_a_machine_without_torch_is_refused(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(CheckError, match="has no torch"):
        machine.look(str(bare / "bin" / "python"), PROJECT, PARTS, smoke=True, variables={"PYTHONPATH": ""})
    with pytest.raises(CheckError, match="cannot be run"):
        machine.look(str(tmp_path / "nothing"), PROJECT, PARTS, smoke=True, variables={})


def wheel(folder: Path, name: str, tag: str = "py3-none-any") -> None:
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as file:
        file.writestr(f"{name}.py", "VALUE = 7\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{about}/RECORD", "")


def test_wheels_fill_what_python_lacks(tmp_path: Path) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "packages"
    folder.mkdir()
    for name, tag in (("carried_along", "py3-none-any"), ("torch", "py3-none-any"), ("pydantic", "py3-none-any")):
        wheel(folder, name, tag)
    assert wheels.unpack(sys.executable, folder, target) == (["carried-along"], [])
    asked = [sys.executable, "-c", "import carried_along; print(carried_along.VALUE)"]
    assert subprocess.run(asked, env={"PYTHONPATH": str(target)}, capture_output=True, text=True).stdout == "7\n"
    wheel(folder, "of_another_python", "cp27-cp27m-win32")
    unpacked, problems = wheels.unpack(sys.executable, folder, target)
    assert unpacked == ["carried-along"]
    assert len(problems) == 1 and problems[0].startswith("of-another-python could not be unpacked")


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_a_folder_without_wheels_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "wheels")
    with pytest.raises(CheckError, match="wheel"):
        wheels.unpack(sys.executable, tmp_path / "wheels", tmp_path / "packages")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@pytest.mark.parametrize("smoke", [True, False])
def test_a_parts_program_is_there(part: Part, smoke: bool) -> None:
    command = part.command(Place("python", PROJECT, Path("/out"), smoke))
    assert command[0] == "python"
    assert command[1:3] == ["-m", "pytest"] or Path(command[1]).is_file()


def test_marked_tests_are_found_by_their_text() -> None:
    files = marked_tests(PROJECT, of_transformer_engine=False)
    assert {"tests/vocab_parallel/test_triton_tile.py", "tests/models/test_models_on_device.py"} <= set(files)
    assert not set(files) & set(marked_tests(PROJECT, of_transformer_engine=True))
