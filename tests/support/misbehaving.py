"""Verifiers that try what a worker must not do; each is right exactly when it was stopped. `rewards.kind: misbehaving:NAME`."""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def stopped(action) -> tuple[float, str]:
    try:
        action()
    except OSError as error:
        return 1.0, type(error).__name__
    return 0.0, "it was done"


def writes(response: str, answer: str):
    return stopped(lambda: Path(answer).write_text("mine"))


def appends(response: str, answer: str):
    def action():
        with Path(answer).open("a") as file:
            file.write("mine")

    return stopped(action)


def removes(response: str, answer: str):
    return stopped(lambda: Path(answer).unlink())


def renames(response: str, answer: str):
    return stopped(lambda: Path(answer).rename(answer + ".moved"))


def makes_a_folder(response: str, answer: str):
    return stopped(lambda: Path(answer + ".folder").mkdir())


def changes_mode(response: str, answer: str):
    return stopped(lambda: Path(answer).chmod(0o777))


def connects(response: str, answer: str):
    return stopped(lambda: socket.create_connection(("127.0.0.1", int(response)), timeout=5))


def listens(response: str, answer: str):
    return stopped(lambda: socket.create_server(("127.0.0.1", 0)))


def starts_a_program(response: str, answer: str):
    return stopped(lambda: subprocess.run([sys.executable, "-c", ""], check=True))


def forks(response: str, answer: str):
    def action():
        if os.fork() == 0:
            os._exit(0)

    return stopped(action)


def kills_its_parent(response: str, answer: str):
    return stopped(lambda: os.kill(os.getppid(), signal.SIGTERM))


def owns_a_pipe_for_its_parent(response: str, answer: str):
    return stopped(lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid()))


def limits_its_parent(response: str, answer: str):
    return stopped(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE))


def places_its_parent(response: str, answer: str):
    return stopped(lambda: os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0)))


def of_the_library(name: str, *given):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*given) < 0:
        raise OSError(ctypes.get_errno(), name)


def reads_its_parents_memory(response: str, answer: str):
    return stopped(lambda: of_the_library("process_vm_readv", os.getppid(), None, 0, None, 0, 0))


def leaves_memory_behind(response: str, answer: str):
    return stopped(lambda: of_the_library("shmget", 0, 4096, 0o1600))


def outlives_its_parent(response: str, answer: str):
    return stopped(lambda: of_the_library("prctl", 1, 0, 0, 0, 0))


def reads(response: str, answer: str):
    """Allowed: right exactly when it worked."""
    return Path(answer).read_text() == response


def raises(response: str, answer: str):
    raise LookupError("on every response")


def eats_memory(response: str, answer: str):
    return len(bytearray(64 << 30)) > 0


def recurses(response: str, answer: str):
    return recurses(response, answer)


def counts_digits(response: str, answer: str):
    return int("9" * 100_000) > 0


def dies(response: str, answer: str):
    if response == "die":
        os._exit(3)
    return response == answer


def sleeps(response: str, answer: str):
    time.sleep(float(response))
    return response == answer


def returns_text(response: str, answer: str):
    return "very good"


def returns_nan(response: str, answer: str):
    return float("nan")


def half(response: str, answer: str):
    return 0.5, "half\nright"


def equal_text(response: str, answer: str):
    return response == answer


def fails_in_every_way(response: str, answer: str):
    if response == "die":
        os._exit(3)
    if response == "sleep":
        time.sleep(60)
    if response == "raise":
        raise LookupError("on this response")
    return response == answer


def judges_most(response: str, answer: str):
    """Of responses of any text about one in four is none that it can read."""
    letters = sum(map(ord, response))
    if letters % 4 == 0:
        raise LookupError("on this response")
    return letters % 2, "an odd number"
