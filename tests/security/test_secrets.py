"""Keys and passwords stand on no command line, in no message and in no file of a run."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART, run

from megatron_fork.config import load_config, to_yaml
from megatron_fork.errors import KEY_VARIABLE, ConfigError, masked
from megatron_fork.recipe.description import described
from megatron_fork.run.folder import RunFolder
from megatron_fork.run.provenance import provenance

PROJECT = Path(__file__).parent.parent.parent
KEY = "key-5f0c2be41d"
PASSWORD = "correct-horse-9912"
words = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_.~!$*+,;:=%"), min_size=4)


@settings(deadline=None)
@given(user=words, password=words, before=st.text(), after=st.text())
def test_a_login_is_masked_wherever_it_stands(user: str, password: str, before: str, after: str) -> None:
    said = masked(f"{before} https://{user}:{password}@node7:8000/v1 {after}")
    assert f"{user}:{password}" not in said
    assert "@node7:8000/v1" in said


@pytest.mark.parametrize("password", ["pass/word", "pa?ss", "#hash", "quo'te", 'dou"ble', "a@b/c", "it's:@/"])
def test_a_login_that_makes_its_address_none_is_masked_all_the_same(tmp_path: Path, password: str) -> None:
    """Where a password has characters that an address escapes, the error is about the address."""
    said = masked(f"rollout.servers: ['http://me:{password}@node7:8000', 'http://b:80']")
    assert said == "rollout.servers: ['http://***@node7:8000', 'http://b:80']"
    recipe = servers_recipe(tmp_path, "http://a:9")
    code, said = run("train", str(recipe), f'rollout.servers=["http://me:{password}@node7:8000", "ftp://b"]')
    assert code != 0
    assert f"me:{password}" not in said


def test_a_login_is_masked_as_a_header_has_it_and_alone(tmp_path: Path) -> None:
    """A server may quote what it was sent, or say that a password is wrong."""
    for password, sent in ((PASSWORD, PASSWORD), ("p%40ss%2Fw%C3%B6rd", "p@ss/w\xf6rd")):
        load_config(servers_recipe(tmp_path, f"http://someone:{password}@127.0.0.1:9"))
        header = base64.b64encode(f"someone:{sent}".encode()).decode()
        said = masked(f"401: Authorization: Basic {header}, {sent} is wrong, {sent!r} {json.dumps(sent)} {password}")
        assert said == "401: Authorization: Basic ***, *** is wrong, '***' \"***\" ***"


@pytest.mark.parametrize("key", ["two\nlines", "with\"quotes'", "back\\slash", "tr\xe4iling ", "a b&c=d"])
def test_a_key_is_masked_as_python_json_and_addresses_write_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    for written in (key, repr(key), json.dumps(key), quote(key, safe=""), str([key]), key.strip()):
        assert masked(f"<{written}>").strip("<>[]'\" ") == "***"


def test_a_variable_is_masked_apart_from_the_text_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_PASSWORD", "of-the-node")
    load_config(servers_recipe(tmp_path, "http://me:${oc.env:NODE_PASSWORD}@127.0.0.1:9"))
    assert masked("it said of-the-node") == "it said ***"
    monkeypatch.setenv("JOB_TOKEN", "[[of-the-job")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {QUICKSTART}\ndata: {{prompt_prefix: '${{oc.decode:${{oc.env:JOB_TOKEN}}}}'}}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(recipe)
    assert "of-the-job" not in masked(raised.value.message)


def test_a_command_line_is_kept_without_its_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["megatron-fork", "train", "rollout.servers=[http://me:quo'te@a:9]"])
    command = provenance("")["command"]
    assert "quo" not in command and "http://***@a:9" in command


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_a_defect_shows_no_key(where: str) -> None:
    """What is not the user's to mend ends in a traceback of Python's own, which may quote anything."""
    raises = f"raise RuntimeError('sent ' + os.environ['{KEY_VARIABLE}'])"
    work = (
        raises
        if where == "here"
        else f"thread = threading.Thread(target=fails); thread.start(); thread.join(); {raises}"
    )
    program = (
        "import os, threading\nfrom megatron_fork.cli.guard import guarded\n"
        f"def fails():\n    {raises}\ndef work():\n    {work}\nguarded(work, debug=False)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {KEY_VARIABLE: KEY, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert KEY not in ended.stderr
    assert ended.stderr.count("RuntimeError: sent ***") == (1 if where == "here" else 2)


@pytest.mark.slow
def test_wandb_keeps_no_login_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    typed = ["megatron-fork", "train", f"rollout.servers=[http://me:{PASSWORD}@a:9]"]
    monkeypatch.setattr(sys, "argv", typed)
    # Another process of wandb keeps the command line, and on a busy machine not before a run that ends at once has ended.
    for attempt in range(8):
        folder = RunFolder(tmp_path / f"run{attempt}", writes=True, wandb_project="forking", resolved="seed: 3\n")
        folder.begin()
        folder.close()
        kept = b"".join(path.read_bytes() for path in folder.path.rglob("*") if path.is_file())
        assert PASSWORD.encode() not in kept
        if b"@a:9" in kept:
            break
    assert b"rollout.servers=[http://***@a:9]" in kept
    assert sys.argv == typed


@pytest.mark.parametrize("name", ["token", "api_key", "X-Amz-Signature", "password", "access_token"])
def test_keys_among_parameters_are_masked(name: str) -> None:
    assert masked(f"http://host/a?x=1&{name}=abcdef&y=2 it said") == f"http://host/a?x=1&{name}=***&y=2 it said"


@pytest.mark.parametrize(
    "text", ["a@b.c", "http://host:80/a@b", "no secret", "s3://bucket/key=1", "x: http://a:1, b@c"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def servers_recipe(folder: Path, address: str) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"base: {QUICKSTART}\nrun: {{folder: {folder / 'run'}}}\n"
        f"rollout:\n  engine: vllm\n  servers: ['{address}']\n"
        "  remote: {patience_seconds: 3}\nsft: {steps: 0}\ntrain: {steps: 1}\n"
    )
    return recipe


def test_a_login_in_a_recipe_is_used_and_not_written(tmp_path: Path) -> None:
    address = f"http://someone:{PASSWORD}@127.0.0.1:9"
    config = load_config(servers_recipe(tmp_path, address))
    assert config.rollout.servers == [address]
    for written in (to_yaml(config), described(config)):
        assert PASSWORD not in written
        assert "http://***@127.0.0.1:9" in written
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    with pytest.raises(ConfigError, match=r"rollout\.servers=http://\*\*\*@127\.0\.0\.1:9 has lost its login"):
        load_config(again)


def test_a_login_on_the_command_line_is_no_further_written(tmp_path: Path) -> None:
    recipe = servers_recipe(tmp_path, "http://a:9")
    code, said = run("train", str(recipe), f"rollout.servers=[http://me:{PASSWORD}@127.0.0.1:9]")
    assert code != 0
    assert PASSWORD not in said
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert "http://***@127.0.0.1:9" in (tmp_path / "run" / "resolved.yaml").read_text()
    assert not [path for path in files if PASSWORD in path.read_text(errors="replace")]


@pytest.mark.parametrize(
    "wrong", ["rollout: {servers: ['ftp://me:%s@a']}", "train: {steps: '%s'}", "model: 'x://%s@a'"]
)
def test_errors_of_a_recipe_show_no_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("SOME_TOKEN", PASSWORD)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {QUICKSTART}\n{wrong % '${oc.env:SOME_TOKEN}'}\n")
    code, said = run("train", str(recipe))
    assert code != 0
    assert PASSWORD not in said
    assert "error: " in said


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with an error that quotes all that it was sent."""

    def answer(self) -> None:
        text = f"{self.path} {self.headers}".encode()
        self.send_response(500)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_a_server_that_quotes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: str, debug: list[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("SERVER_LOGIN", f"http://someone:{PASSWORD}@{echo}")
    recipe = servers_recipe(tmp_path, "${oc.env:SERVER_LOGIN}")
    code, said = run("train", str(recipe), *debug)
    assert code != 0
    assert "error: rollout.servers" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != recipe]
    assert any(path.name == "resolved.yaml" for path in files)
    for text in (said, *(path.read_text(errors="replace") for path in files)):
        assert KEY not in text
        assert PASSWORD not in text
    assert "${oc.env:SERVER_LOGIN}" in (tmp_path / "run" / "resolved.yaml").read_text()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_servers_are_started_with_no_key_on_their_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """With a Python in the engine's place that tells how it was started."""
    python = tmp_path / f".venv-{engine}" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ntr "\\0" "\\n" </proc/$$/cmdline\necho "VLLM_API_KEY=$VLLM_API_KEY"\n')
    python.chmod(0o755)
    environment = os.environ | {"MEGATRON_FORK_ENGINES": str(tmp_path), KEY_VARIABLE: KEY}
    # As `scripts/serve_engine.sh` and jobs do, in that Python.
    start = f"import sys; sys.executable = {str(python)!r}; from megatron_fork.serving.start import main; main()"
    started = subprocess.run(
        [sys.executable, "-c", start, engine, "model", "--port", "8011"],
        env=environment | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    command, _, variable = started.stdout.partition("VLLM_API_KEY=")
    assert "--port" in command
    assert KEY not in command
    assert variable.strip() == KEY


def test_sglang_is_given_the_key_within_its_process(tmp_path: Path) -> None:
    """With a module in its place that tells its arguments."""
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(
        "import sys\nprint(__name__, sys.argv[1:])\nprint(open('/proc/self/cmdline').read())\n"
    )
    command = [sys.executable, "-m", "megatron_fork.serving.sglang_server", "--port", "1"]
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{tmp_path}", KEY_VARIABLE: KEY}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == f"__main__ ['--port', '1', '--api-key', '{KEY}']"
    assert KEY not in told[1]
