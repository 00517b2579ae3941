"""The state of servers is asked for as a run does, all at a time, and told without passwords."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from typing import ClassVar

import pytest
from rich.console import Console
from support.commands import QUICKSTART

from megatron_fork.cli.doctor import diagnose
from megatron_fork.config import load_config
from megatron_fork.errors import MegatronForkError
from megatron_fork.rollout import server_states

TOGETHER = 8


class Health(BaseHTTPRequestHandler):
    meeting = threading.Barrier(TOGETHER)
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/meet"):  # answers once all are asked, which must not be one after the other
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meeting.wait(60)
        if self.path.startswith("/never"):
            self.rfile.read(1)  # until the client hangs up
        refused = self.path.startswith("/keyed") and self.headers["Authorization"] != "Bearer a-key"
        self.send_response(401 if refused else 503 if self.path.startswith("/ill") else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while self.path.startswith("/endless"):
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def findings(*overrides: str) -> str:
    file = StringIO()
    diagnose(load_config(QUICKSTART, list(overrides)), Console(file=file, width=200), ranks=None)
    return file.getvalue()


def test_no_server_is_asked_before_the_recipe_is_checked(server: str) -> None:
    Health.asked.clear()
    words = ["rollout.engine=vllm", f"rollout.servers=[{server}]"]
    with pytest.raises(MegatronForkError, match=r"rollout\.stop_tokens"):
        findings(*words, "rollout.stop_tokens=[5000]")
    assert Health.asked == []
    findings(*words)
    assert Health.asked == ["/health"]


def test_the_state_of_every_server(server: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    meeting = [f"{server}/meet{number}" for number in range(TOGETHER)]
    assert set(server_states(meeting, seconds=60).values()) == {"healthy"}
    states = server_states([server, f"{server}/ill", closed, "http://[", f"{server}/never"], seconds=0.5)
    assert states[server] == "healthy"
    assert states[f"{server}/ill"] == "answers /health with 503"
    assert states[closed].startswith("cannot be reached") and states["http://["].startswith("cannot be reached")
    assert states[f"{server}/never"] == "no answer in 0.5 seconds"


def test_the_state_is_asked_for_as_a_run_does(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key, past any proxy, and without reading more than an answer of health may have."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("MEGATRON_FORK_API_KEY", "a-key")
    keyed, endless = f"{server}/keyed", f"{server}/endless"
    states = server_states([server, keyed, endless], seconds=10)
    assert states[server] == states[keyed] == "healthy"
    assert states[endless] == "cannot be reached: /health was answered with more than 4194304 bytes"


def test_doctor_tells_the_state_without_a_password(server: str) -> None:
    address = server.replace("//", "//me:secret@")
    told = findings("rollout.engine=vllm", f"rollout.servers=[{address}]")
    assert f"server {server.replace('//', '//***@')}: healthy" in told and "secret" not in told
