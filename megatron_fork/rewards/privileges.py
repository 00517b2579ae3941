"""What a process gives up before it runs programs: its user where that is root, capabilities, being looked into."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sysconfig
from pathlib import Path

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION = 0x20080522
PIDFD_OPEN = 434  # on all architectures; not every Python was built where the system had it
MAX_FILES = 64


def become_nobody(interpreter: Path) -> bool:
    """Leave root for a user who owns nothing, where there is one who can read Python. False also where this is not root."""
    if os.geteuid() != 0 or not _can_nobody_run(interpreter):
        return False
    _change_user()
    return True


def _can_nobody_run(interpreter: Path) -> bool:
    """Tried in a child: there is no way back from it."""
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
    """All of them, and for ever: nothing that is executed from now on gains any. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), struct.pack("=6I", *[0] * 6)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or library.capset(header, none) != 0:
        raise OSError("capabilities could not be dropped")


def bound_descriptors() -> None:
    """Open files, each of which may hold memory of the kernel's; memory that cannot be swapped; messages."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))


def hide() -> None:
    """No process without the capability to trace may read this one's memory or environment."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends. A change of user or capabilities would undo it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def descriptor_of(child: int) -> int:
    """A descriptor that is readable once this child has ended, with all its threads. Raises OSError."""
    descriptor = int(ctypes.CDLL(None, use_errno=True).syscall(PIDFD_OPEN, child, 0))
    if descriptor < 0:
        raise OSError("no descriptor of a process")
    return descriptor
