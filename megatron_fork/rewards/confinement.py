"""Limits, rights and networks that a worker gives up, so that it can only compute, and those of the process that runs programs.

The limits hold everywhere. The rest holds if the kernel allows it to an unprivileged process; `confine` reports what holds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import struct
import sys
import sysconfig
from pathlib import Path

from megatron_fork.rewards import filters, landlock
from megatron_fork.rewards.filters import PR_SET_NO_NEW_PRIVS
from megatron_fork.rewards.score import RewardError
from megatron_fork.rewards.system_calls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, forbid_side_effects

RECURSION_LIMIT = 3000
MAX_DIGITS = 4300
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
NOBODY = 65534
CAPABILITY_VERSION = 0x20080522
PIDFD_OPEN = 434  # on all architectures; not every Python was built on a system that has it
MAX_FILES = 64


def limit(memory_bytes: int) -> None:
    """Bound memory, recursion and digits, let no file grow, and ignore signals of the scheduler and keyboard."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.set_int_max_str_digits(MAX_DIGITS)
    sys.dont_write_bytecode = True
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with an error
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)


def confine() -> list[str]:
    """Give up network, files and other processes, as far as this kernel allows; returns the names of what holds.

    Afterwards other unprivileged processes cannot read this one. It must have one thread.
    """
    holds = ["no file may grow"]
    if leave_networks():
        holds.append("no network (namespace)")
    hide()
    die_with_parent()  # again: the changes above undo it
    if forbid_side_effects(processes=False):
        holds.append("no network, no change to files (seccomp)")
        holds.append("no new processes, no signals (seccomp)")
    return holds


def leave_networks() -> bool:
    """Whether the kernel gave this process a network and System V objects of its own, with nothing in them."""
    return ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) == 0


def require_means_for_programs() -> None:
    """Raises RewardError if this machine cannot confine a program; called before a worker is started."""
    missing = []
    if not filters.available():
        missing.append("filters of system calls (seccomp), on x86-64 or AArch64")
    if not landlock.version():
        missing.append("Landlock (Linux 5.13 or newer, and not switched off)")
    if missing:
        raise RewardError(
            f"rewards.kind=code runs programs that nobody has read, and this machine lacks {' and '.join(missing)}",
            hint="use a machine that has them, or another rewards.kind; the project's docs/security.md says what each is for",
        )


def become_nobody(interpreter: Path) -> bool:
    """Change from root to a user who owns nothing, if that user can read Python. False also if this is not root."""
    if os.geteuid() != 0 or not _can_nobody_run(interpreter):
        return False
    _change_user()
    return True


def _can_nobody_run(interpreter: Path) -> bool:
    """Tries it in a child process, since it cannot be undone."""
    child = os.fork()
    if child == 0:
        try:
            _change_user()
            library = Path(sysconfig.get_paths()["stdlib"]) / "os.py"
            os._exit(not (os.access(interpreter, os.X_OK) and os.access(library, os.R_OK)))
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _change_user() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """Drop all capabilities for good: nothing that is executed from now on gains any. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), struct.pack("=6I", *[0] * 6)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or library.capset(header, none) != 0:
        raise OSError("capabilities could not be dropped")


def bound_descriptors() -> None:
    """Bound open files, each of which may hold kernel memory, memory that cannot be swapped, and message queues."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))


def hide() -> None:
    """Let no process without the capability to trace read this one's memory or environment."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends. A change of user or capabilities would undo it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def descriptor_of(child: int) -> int:
    """A descriptor that is readable once this child has ended, with all its threads. Raises OSError."""
    descriptor = int(ctypes.CDLL(None, use_errno=True).syscall(PIDFD_OPEN, child, 0))
    if descriptor < 0:
        raise OSError("the kernel gives no descriptor of a process")
    return descriptor
