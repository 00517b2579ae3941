"""A real browser opens the report without a console message and builds every transcript."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.hostile_page import HOSTILE, hostile_trace
from support.synthetic_run import write_json_lines, write_run

from megatron_fork.analysis import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs `chromium` on PATH"),
]


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document as the browser built it, and its console messages."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_report_opens_clean_with_all_transcripts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_json_lines(folder / "traces" / "step-000001.jsonl", [hostile_trace(1, HOSTILE * 3)])
    document, console = opened(write_report(folder), tmp_path / "profile")
    assert console == []
    assert document.count('<div class="response">') == 10
    assert document.count("<svg ") == 17
    assert "What is 2x?" in document
    assert "alert(1)&lt;/script&gt;" in document


def test_console_messages_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!DOCTYPE html><title>broken</title><script>absent()</script>")
    _, console = opened(page, tmp_path / "profile")
    assert console
