"""A filter of system calls (seccomp, Linux): no network, no change to any file, no new process, no signal.

A process puts it on itself without any privilege and can never take it off; programs that it executes inherit it. The numbers
are those of the kernel's tables; only x86-64 has been run, AArch64 stands as its table says.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from typing import NamedTuple

# What a computation has no need of, by number: (x86-64, AArch64); None where an architecture has no such call.
FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "creat": (85, None),
    "truncate": (76, 45),
    "fallocate": (285, 47),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "mq_open": (240, 180),
}
OPENAT2, CLONE3 = 437, 435
# What only a process that minds others needs: to start them, to leave their group, to signal them.
OTHERS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}


class Machine(NamedTuple):
    """What differs between architectures: the column of the table, and calls whose arguments are looked at."""

    column: int
    audit: int
    clone: int
    open_flags: dict[int, int]
    """Number of a call that opens -> which argument holds its flags."""


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, 56, {2: 1, 257: 2}),
    "aarch64": Machine(1, 0xC00000B7, 220, {56: 2}),
}

# Opening for anything but reading: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND.
WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400
CLONE_THREAD = 0x10000
X32_CALLS = 0x40000000

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2


def forbid_side_effects(*, processes: bool) -> bool:
    """Filter this thread's calls from now on; `processes` leaves it fork and signals. False where that cannot be had."""
    machine = MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 2**32:
        return False
    program = b"".join(_program(machine, processes=processes))
    return _install(program)


def _program(machine: Machine, *, processes: bool) -> list[bytes]:
    denied = FAIL | errno.EPERM
    absent = FAIL | errno.ENOSYS  # the C library then falls back on a call whose flags can be seen
    steps = [
        _step(LOAD, 4),
        _step(JUMP_EQUAL, machine.audit, 1, 0),
        _step(RETURN, denied),
        _step(LOAD, 0),
    ]
    if machine.column == 0:
        steps += [_step(JUMP_AT_LEAST, X32_CALLS, 0, 1), _step(RETURN, denied)]
    table = FORBIDDEN if processes else FORBIDDEN | OTHERS
    for numbers in table.values():
        number = numbers[machine.column]
        if number is not None:
            steps += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, denied)]
    steps += [_step(JUMP_EQUAL, OPENAT2, 0, 1), _step(RETURN, absent)]
    for number, argument in machine.open_flags.items():
        steps += [
            _step(JUMP_EQUAL, number, 0, 4),
            _step(LOAD, 16 + 8 * argument),
            _step(JUMP_ANY_BIT, WRITING, 0, 1),
            _step(RETURN, denied),
            _step(RETURN, ALLOW),
        ]
    if not processes:
        steps += [
            _step(JUMP_EQUAL, CLONE3, 0, 1),
            _step(RETURN, absent),
            _step(JUMP_EQUAL, machine.clone, 0, 4),
            _step(LOAD, 16),
            _step(JUMP_ANY_BIT, CLONE_THREAD, 1, 0),
            _step(RETURN, denied),
            _step(RETURN, ALLOW),
        ]
    return [*steps, _step(RETURN, ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _install(program: bytes) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

    whole = Filter(len(program) // 8, ctypes.addressof(buffer))
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return library.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(whole), 0, 0) == 0
