"""Filters of system calls (seccomp, Linux): assembles rules into the kernel's bytecode, and installs it on this process.

A process installs a filter on itself without any privilege and can never remove it; programs that it executes inherit it. If
there are several filters, the strictest verdict counts. A filter sees numbers, not what pointers point to.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from typing import NamedTuple

ALLOWED, NOTIFIED, FAILS = 0x7FFF0000, 0x7FC00000, 0x00050000
DENIED = FAILS | errno.EPERM
ABSENT = FAILS | errno.ENOSYS  # the C library then falls back on a call whose arguments can be seen
# From this number on both architectures use the same numbers, and a C library first checks whether a call exists.
FIRST_NEW_CALL = 424
X32_CALLS = 0x40000000

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
SET_MODE_FILTER, NEW_LISTENER = 1, 8

# Calls by name with their numbers on x86-64 and AArch64, from the kernel's tables; `-` if an architecture has no such call.
# Only calls that a filter names are here. libseccomp knows names too, but not those that are newer than the system's copy of
# it: version 2.5.4 of Debian 12 lacks setxattrat, removexattrat and file_setattr. Without it there would be no filter, and
# pyseccomp, which calls it from Python, was last released in January 2021. The tests compare this table with libseccomp's.
TABLE = """
access 21 -, acct 163 89, add_key 248 217, adjtimex 159 171, alarm 37 -, arch_prctl 158 -, bind 49 200, bpf 321 280,
brk 12 214, chdir 80 49, chmod 90 -, chown 92 -, chroot 161 51, clock_adjtime 305 266, clock_getres 229 114,
clock_gettime 228 113, clock_nanosleep 230 115, clock_settime 227 112, clone 56 220, clone3 435 435, close 3 57,
close_range 436 436, connect 42 203, creat 85 -, delete_module 176 106, dup 32 23, dup2 33 -, dup3 292 24,
execve 59 221, exit 60 93, exit_group 231 94, faccessat 269 48, faccessat2 439 439, fadvise64 221 223,
fallocate 285 47, fanotify_init 300 262, fchdir 81 50, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452,
fchown 93 55, fchownat 260 54, fcntl 72 25, file_setattr 469 469, finit_module 313 273, fork 57 -,
fremovexattr 199 16, fsconfig 431 431, fsetxattr 190 7, fsmount 432 432, fsopen 430 430, fspick 433 433, fstat 5 80,
fstatfs 138 44, futex 202 98, futimesat 261 -, getcpu 309 168, getcwd 79 17, getdents 78 -, getdents64 217 61,
getegid 108 177, geteuid 107 175, getgid 104 176, getgroups 115 158, getitimer 36 102, getpgid 121 155,
getpgrp 111 -, getpid 39 172, getppid 110 173, getpriority 140 141, getrandom 318 278, getresgid 120 150,
getresuid 118 148, getrlimit 97 163, getrusage 98 165, getsid 124 156, gettid 186 178, gettimeofday 96 169,
getuid 102 174, init_module 175 105, io_uring_enter 426 426, io_uring_register 427 427, io_uring_setup 425 425,
ioctl 16 29, ioperm 173 -, iopl 172 -, ioprio_set 251 30, kcmp 312 272, kexec_file_load 320 294, kexec_load 246 104,
keyctl 250 219, kill 62 129, lchown 94 -, link 86 -, linkat 265 37, listen 50 201, lremovexattr 198 15, lseek 8 62,
lsetxattr 189 6, lstat 6 -, madvise 28 233, migrate_pages 256 238, mkdir 83 -, mkdirat 258 34, mknod 133 -,
mknodat 259 33, mmap 9 222, modify_ldt 154 -, mount 165 40, mount_setattr 442 442, move_mount 429 429,
move_pages 279 239, mprotect 10 226, mq_open 240 180, mq_unlink 241 181, mremap 25 216, msgctl 71 187, msgget 68 186,
msgrcv 70 188, msgsnd 69 189, munmap 11 215, name_to_handle_at 303 264, nanosleep 35 101, newfstatat 262 79,
open 2 -, open_by_handle_at 304 265, open_tree 428 428, openat 257 56, openat2 437 437, pause 34 -,
perf_event_open 298 241, personality 135 92, pidfd_getfd 438 438, pidfd_open 434 434, pidfd_send_signal 424 424,
pipe 22 -, pipe2 293 59, pivot_root 155 41, poll 7 -, ppoll 271 73, prctl 157 167, pread64 17 67, prlimit64 302 261,
process_madvise 440 440, process_mrelease 448 448, process_vm_readv 310 270, process_vm_writev 311 271,
pselect6 270 72, ptrace 101 117, quotactl 179 60, quotactl_fd 443 443, read 0 63, readlink 89 -, readlinkat 267 78,
readv 19 65, reboot 169 142, removexattr 197 14, removexattrat 466 466, rename 82 -, renameat 264 38,
renameat2 316 276, request_key 249 218, restart_syscall 219 128, rmdir 84 -, rseq 334 293, rt_sigaction 13 134,
rt_sigpending 127 136, rt_sigprocmask 14 135, rt_sigqueueinfo 129 138, rt_sigreturn 15 139, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, rt_tgsigqueueinfo 297 240, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_setaffinity 203 122,
sched_setattr 314 274, sched_setparam 142 118, sched_setscheduler 144 119, sched_yield 24 124, seccomp 317 277,
select 23 -, semctl 66 191, semget 64 190, semop 65 193, semtimedop 220 192, set_robust_list 273 99,
set_tid_address 218 96, setdomainname 171 162, sethostname 170 161, setitimer 38 103, setns 308 268, setpgid 109 154,
setpriority 141 140, setrlimit 160 164, setsid 112 157, settimeofday 164 170, setxattr 188 5, setxattrat 463 463,
shmat 30 196, shmctl 31 195, shmget 29 194, sigaltstack 131 132, socket 41 198, socketpair 53 199, stat 4 -,
statfs 137 43, statx 332 291, swapoff 168 225, swapon 167 224, symlink 88 -, symlinkat 266 36, sysinfo 99 179,
syslog 103 116, tgkill 234 131, time 201 -, times 100 153, tkill 200 130, truncate 76 45, umask 95 166,
umount2 166 39, uname 63 160, unlink 87 -, unlinkat 263 35, unshare 272 97, userfaultfd 323 282, utime 132 -,
utimensat 280 88, utimes 235 -, vfork 58 -, vhangup 153 58, write 1 64, writev 20 66
"""


NUMBERS: dict[str, tuple[int | None, int | None]] = {
    name: (None if x86 == "-" else int(x86), None if arm == "-" else int(arm))
    for name, x86, arm in (entry.split() for entry in TABLE.split(","))
}


class Only(NamedTuple):
    """An argument has one of these values."""

    argument: int
    values: tuple[int, ...]


class Without(NamedTuple):
    """An argument has none of these bits."""

    argument: int
    bits: int


class Rule(NamedTuple):
    """The verdict on a call if all conditions on its arguments (their low 32 bits) hold, and the verdict otherwise."""

    verdict: int
    conditions: tuple[Only | Without, ...] = ()
    otherwise: int = DENIED


class Machine(NamedTuple):
    """What differs between architectures: the column in the table of numbers, and the identifier that a filter sees."""

    column: int
    audit: int


MACHINES = {"x86_64": Machine(0, 0xC000003E), "aarch64": Machine(1, 0xC00000B7)}


def this_machine() -> Machine | None:
    """This architecture; None if filters cannot be written for it."""
    return MACHINES.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None


def available() -> bool:
    """Whether this kernel takes filters: given a null pointer, it then fails with EFAULT."""
    if this_machine() is None:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_SECCOMP, MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def assemble(machine: Machine, rules: dict[str, Rule], *, default: int) -> bytes:
    """The filter that judges every call by its rule, and a call without a rule by `default`.

    If `default` is DENIED, calls from FIRST_NEW_CALL on are reported as absent instead. Calls of another architecture and of
    x32, whose numbers mean other calls, are denied.
    """
    steps = [
        _step(LOAD, 4),
        _step(JUMP_EQUAL, machine.audit, 1, 0),
        _step(RETURN, DENIED),
        _step(LOAD, 0),
        _step(JUMP_AT_LEAST, X32_CALLS, 0, 1),
        _step(RETURN, DENIED),
    ]
    for name, rule in rules.items():
        number = NUMBERS[name][machine.column]
        if number is not None:
            body = _judge(rule)
            steps += [_step(JUMP_EQUAL, number, 0, len(body)), *body]
    if default == DENIED:
        steps += [_step(JUMP_AT_LEAST, FIRST_NEW_CALL, 0, 1), _step(RETURN, ABSENT)]
    return b"".join([*steps, _step(RETURN, default)])


def _judge(rule: Rule) -> list[bytes]:
    steps = []
    for condition in rule.conditions:
        steps.append(_step(LOAD, 16 + 8 * condition.argument))
        if isinstance(condition, Only):
            last = len(condition.values)
            steps += [
                _step(JUMP_EQUAL, value & 0xFFFFFFFF, last - place, 0) for place, value in enumerate(condition.values)
            ]
        else:
            steps.append(_step(JUMP_ANY_BIT, condition.bits, 0, 1))
        steps.append(_step(RETURN, rule.otherwise))
    return [*steps, _step(RETURN, rule.verdict)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install(program: bytes) -> bool:
    """Install a filter on this thread; False if the kernel refuses it."""
    library = ctypes.CDLL(None, use_errno=True)
    whole = _Filter(len(program) // 8, program)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return library.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(whole), 0, 0) == 0


def install_notifying(program: bytes) -> int | None:
    """Install a filter on this thread that asks about calls; returns the descriptor of the questions, or None if refused."""
    library = ctypes.CDLL(None, use_errno=True)
    machine = this_machine()
    whole = _Filter(len(program) // 8, program)
    if machine is None or library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return None
    number = NUMBERS["seccomp"][machine.column]
    listener = library.syscall(number, SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(whole))
    return None if listener < 0 else int(listener)
