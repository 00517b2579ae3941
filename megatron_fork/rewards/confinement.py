"""What keeps a worker from doing anything but compute: limits, namespaces and a filter of system calls.

The limits hold everywhere. The others hold where the kernel lets an unprivileged process have them, which `confine` reports.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import signal
import sys

from megatron_fork.rewards import filters, landlock
from megatron_fork.rewards.privileges import die_with_parent, hide
from megatron_fork.rewards.score import RewardError
from megatron_fork.rewards.system_calls import forbid_side_effects

RECURSION_LIMIT = 3000
MAX_DIGITS = 4300
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000


def limit(memory_bytes: int) -> None:
    """Bound memory, recursion and digits, let no file grow, and leave signals of the scheduler or keyboard to the parent."""
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
    """Give up network, files and other processes, as far as this kernel allows; the names of what holds.

    From here on others without privileges cannot look into the process. It must have one thread.
    """
    holds = ["no file may grow"]
    if leave_networks():
        holds.append("no network (namespace)")
    hide()
    die_with_parent()  # again: what has changed above undoes it
    if forbid_side_effects(processes=False):
        holds.append("no network, no change to files (seccomp)")
        holds.append("no new processes, no signals (seccomp)")
    return holds


def leave_networks() -> bool:
    """Whether the kernel gave this process a network and System V objects of its own, with nothing in them."""
    return ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) == 0


def require_means_for_programs() -> None:
    """Raises RewardError where this machine cannot confine a program: before a worker is started."""
    missing = []
    if not filters.available():
        missing.append("filters of system calls (seccomp), on x86-64 or AArch64")
    if not landlock.version():
        missing.append("Landlock (Linux 5.13 or newer, and not switched off)")
    if missing:
        raise RewardError(
            f"rewards.kind=code runs programs that nobody has read, and this machine lacks {' and '.join(missing)}",
            hint="run it where these are, or choose another rewards.kind; the project's docs/security.md says what each is for",
        )
