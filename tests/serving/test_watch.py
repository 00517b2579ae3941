"""Whichever process of a server ends or hangs, the watch ends with all of them; its exit code says whether it was healthy."""

import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.engine_servers import free_port
from support.slurm import waited_for

from megatron_fork.serving.watch import HEALTHY_BEFORE, NEVER_HEALTHY, is_healthy, watch

# A server of two processes: the child writes its number, is healthy as long as `way` says, and outlives its parent.
SERVER = textwrap.dedent("""
    import http.server, os, subprocess, sys, time
    folder, port, way = sys.argv[1:]
    if way == "no start":
        sys.exit(7)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(f"{folder}/helper", "w").write(str(helper.pid))
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if way == "silent" and time.monotonic() - began > 1:
                time.sleep(600)
            if way == "killed" and time.monotonic() - began > 1:
                os.kill(os.getpid(), 9)
            self.send_response(200)
            self.end_headers()
        def log_message(self, *words):
            pass
    began = time.monotonic()
    http.server.HTTPServer(("127.0.0.1", int(port)), Answer).serve_forever()
""")


def command(folder: Path, port: int, way: str) -> list[str]:
    return [sys.executable, "-c", SERVER, str(folder), str(port), way]


def is_gone(number: int) -> bool:
    """Whether there is no such process, or one that only waits to be reaped."""
    try:
        return Path("/proc", str(number), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("way", "code"), [("no start", NEVER_HEALTHY), ("killed", HEALTHY_BEFORE), ("silent", HEALTHY_BEFORE)]
)
def test_all_processes_of_a_server_end_with_the_first(tmp_path: Path, way: str, code: int) -> None:
    port = free_port()
    assert watch(command(tmp_path, port, way), "127.0.0.1", port, silence_seconds=1.0) == code
    if way != "no start":
        helper = int((tmp_path / "helper").read_text())
        waited_for(lambda: is_gone(helper), 30, "the end of the server's second process")


def test_a_signal_to_the_watch_ends_the_server(tmp_path: Path) -> None:
    port = free_port()
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {shlex.join(command(tmp_path, port, 'good'))}\n")
    python.chmod(0o755)
    program = f"import sys; sys.executable = {str(python)!r}; from megatron_fork.serving.watch import main; main()"
    watching = subprocess.Popen([sys.executable, "-c", program, "vllm", "model", "--port", str(port)])
    waited_for(lambda: is_healthy("127.0.0.1", port), 60, "a healthy server")
    watching.terminate()
    assert watching.wait(60) == 0
    helper = int((tmp_path / "helper").read_text())
    waited_for(lambda: is_gone(helper), 30, "the end of the server's second process")
    assert not is_healthy("127.0.0.1", port)
