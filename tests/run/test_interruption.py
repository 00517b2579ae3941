"""One request to stop, however often it arrives, lets the run save; a second request ends the process at once."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fork.run.interruption import StoppedAtOnce, StopRequest


def test_one_request_may_arrive_twice() -> None:
    with StopRequest() as stop:
        assert not stop.agreed(None)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(None)
        assert stop.received == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_request_ends_at_once() -> None:
    program = (
        "import time\n"
        "from megatron_fork.run.interruption import StopRequest\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    process.stdout.close()


def test_a_terminal_that_goes_away_asks_to_save(tmp_path: Path) -> None:
    """As when an SSH session ends: what is printed on the way is lost, and nothing else."""
    saved = tmp_path / "saved"
    program = (
        "import pathlib, sys, time\n"
        "from megatron_fork.run.interruption import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not stop.agreed(None) and time.monotonic() < deadline:\n"
        "        time.sleep(0.05)\n"
        "    print('saving', flush=True)\n"
        "    print('saving', file=sys.stderr, flush=True)\n"
        f"    pathlib.Path({str(saved)!r}).write_text(f'{{stop.received}} {{stop.by_user}}')\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert saved.read_text() == f"{int(signal.SIGHUP)} False"


def test_programs_of_the_tests_hear_every_signal() -> None:
    """However the tests were started: what `nohup` or a shell's `&` ignores would be ignored by all that they start."""
    program = "import signal; print(*(signal.getsignal(each) == signal.SIG_IGN for each in (1, 2, 10, 15)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed(None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_where_nothing_is_to_be_saved_a_signal_ends_it_there(sent: int) -> None:
    with StopRequest() as stop, pytest.raises(StoppedAtOnce), stop.at_once():
        os.kill(os.getpid(), sent)
        raise AssertionError("it went on")
    assert stop.by_user == (sent == signal.SIGINT)


def test_what_is_to_be_saved_is_saved_first() -> None:
    done = []
    with StopRequest() as stop, pytest.raises(StoppedAtOnce), stop.at_once():
        with stop.remembered():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(stop.agreed(None))
        done.append("it went on")
    assert done == [True]


def test_a_request_that_came_before_ends_what_begins() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedAtOnce), stop.at_once():
            raise AssertionError("it began")


def test_what_fails_by_itself_is_not_hidden_by_a_request() -> None:
    with StopRequest() as stop, pytest.raises(ValueError, match="by itself"), stop.at_once(), stop.remembered():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("by itself")


@pytest.mark.parametrize("saves", [False, True])
def test_a_fork_says_nothing(saves: bool) -> None:
    """Ctrl-C reaches what a run has forked: a checkpoint's writer goes on, what nobody needs ends without a word."""
    with StopRequest() as stop, stop.at_once(), stop.remembered() if saves else stop.at_once():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (7 if saves else -signal.SIGINT)
