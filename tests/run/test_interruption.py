"""One request to stop, however often it arrives, lets the run save; a second request ends the process at once."""

import os
import signal
import subprocess
import sys
import time

from megatron_fork.interruption import StopRequest


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
        "from megatron_fork.interruption import StopRequest\n"
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
