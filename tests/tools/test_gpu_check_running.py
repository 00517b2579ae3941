"""A command ends with all that it has started: at its end, at its limit, and when the check is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"

# A process of its own, as the check is: it takes in what its commands leave.
DRIVER = """
import sys
sys.path.append(sys.argv[1])
from pathlib import Path
from gpu_check import running
running.adopt_orphans()
try:
    with running.signals_stop():
        print(running.run(sys.argv[3:], float(sys.argv[2]), Path("log.txt"), {"GIVEN": "1"}, Path.cwd()), flush=True)
except running.Stopped as stop:
    print(f"stopped by {stop}", flush=True)
"""
# A child of the group, one that has left session and group, and one whose parent has ended before.
FAMILY = """
sleep 300 & echo $! >>pids
setsid sleep 300 & echo $! >>pids
(setsid sh -c 'echo $$ >>pids; exec sleep 300' &)
echo begun >>begun
"""


def driver(folder: Path, limit: float, script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(TOOLS), str(limit), "bash", "-c", script]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def living(folder: Path) -> list[int]:
    """Of the processes that the script has named, also those whose end nobody has taken note of."""
    return [pid for pid in map(int, (folder / "pids").read_text().split()) if Path(f"/proc/{pid}").is_dir()]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.is_file():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_exit_code_and_output_are_the_commands(tmp_path: Path) -> None:
    process = driver(tmp_path, 60, "echo $GIVEN; echo two >&2; exit 7")
    assert process.communicate()[0] == "7\n"
    assert (tmp_path / "log.txt").read_text() == "1\ntwo\n"


def test_what_a_command_leaves_ends_with_it(tmp_path: Path) -> None:
    assert driver(tmp_path, 60, FAMILY + "sleep 0.3; exit 0").communicate()[0] == "0\n"
    assert len((tmp_path / "pids").read_text().split()) == 3
    assert living(tmp_path) == []


def test_at_its_limit_a_command_ends_with_all_that_it_started(tmp_path: Path) -> None:
    # Asked to end, it does not.
    process = driver(tmp_path, 1.0, "trap '' TERM\n" + FAMILY + "while true; do sleep 1; done")
    assert process.communicate()[0] == "None\n"
    assert living(tmp_path) == []


def test_a_signal_ends_the_command_and_a_second_one_does_no_harm(tmp_path: Path) -> None:
    process = driver(tmp_path, 300, "trap '' TERM\n" + FAMILY + "sleep 300")
    wait_for(tmp_path / "begun")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "stopped by SIGTERM\n"
    assert living(tmp_path) == []


def test_processes_that_were_there_before_stay(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "300"])
    try:
        driver(tmp_path, 60, FAMILY).communicate()
        assert other.poll() is None
        os.kill(other.pid, 0)
    finally:
        other.kill()
        other.wait()
