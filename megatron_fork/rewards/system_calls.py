"""Which system calls a worker, and a program that a model wrote, may make.

A worker runs verifiers that somebody chose: calls that reach beyond a computation are denied. A program is code that nobody has
read: it may only make the calls of a Python that computes, with the arguments of one.

A program needs permission for each new thread, and gets it a bounded number of times: a thread costs kernel memory that no
limit of a process counts. The kernel stops the caller and asks (seccomp's notifications, Linux 5.5 and newer).
"""

from __future__ import annotations

import errno
import fcntl
import struct

from megatron_fork.rewards.filters import (
    ABSENT,
    ALLOWED,
    DENIED,
    NOTIFIED,
    Only,
    Rule,
    Without,
    assemble,
    install,
    install_notifying,
    this_machine,
)

# Opening for anything but reading: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND.
WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400
CLONE_THREAD = 0x10000
# The flags with which glibc and musl start a thread; any other use of clone makes a process or a namespace.
THREADS = (0x3D0F00, 0x7D0F00)
F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETFL = 8, 10, 15, 4
O_ASYNC = 0x2000
FIOASYNC, FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCSETD, TIOCLINUX = 0x5452, 0x8901, 0x8902, 0x5412, 0x5423, 0x541C
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_PTRACER = 1, 4, 0x59616D61
MAP_LOCKED, MAP_HUGETLB = 0x2000, 0x40000

MAX_THREADS = 64
# _IOWR('!', 0, 80) and _IOWR('!', 1, 24), the same on all architectures; a question begins with its number.
RECEIVE, ANSWER = 0xC0502100, 0xC0182101
QUESTION_BYTES = 80
NUMBER = struct.Struct("=Q")
REPLY = struct.Struct("=QqiI")
GO_ON = 1

OPENING = {"open": Rule(ALLOWED, (Without(1, WRITING),)), "openat": Rule(ALLOWED, (Without(2, WRITING),))}
OWN_PROCESS = Rule(ALLOWED, (Only(0, (0,)),))

_OUTSIDE = """
socket connect bind listen socketpair io_uring_setup io_uring_enter io_uring_register
ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp move_pages migrate_pages ioprio_set
bpf perf_event_open userfaultfd
unshare setns mount umount2 pivot_root chroot fsopen fsmount fsconfig fspick move_mount open_tree mount_setattr
creat truncate fallocate rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat
mknod mknodat chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat
utime utimes futimesat utimensat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat removexattrat file_setattr
mq_open mq_unlink shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semtimedop semctl add_key request_key keyctl
name_to_handle_at open_by_handle_at fanotify_init
kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff sethostname setdomainname
settimeofday clock_settime adjtimex clock_adjtime acct quotactl quotactl_fd syslog iopl ioperm modify_ldt personality vhangup
"""
# What no worker needs: everything that lasts, is shared, or acts on another process.
WORKER: dict[str, Rule] = {
    **{name: Rule(DENIED) for name in _OUTSIDE.split()},
    **OPENING,
    "openat2": Rule(ABSENT),
    "prlimit64": OWN_PROCESS,
    "setpriority": Rule(ALLOWED, (Only(0, (0,)), Only(1, (0,)))),
    "sched_setaffinity": OWN_PROCESS,
    "sched_setparam": OWN_PROCESS,
    "sched_setscheduler": OWN_PROCESS,
    "sched_setattr": OWN_PROCESS,
    "fcntl": Rule(DENIED, (Only(1, (F_SETOWN, F_SETSIG, F_SETOWN_EX)),), otherwise=ALLOWED),
    "ioctl": Rule(
        DENIED, (Only(1, (FIOASYNC, FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCSETD, TIOCLINUX)),), otherwise=ALLOWED
    ),
}
# What only a process with children needs: to start them, to signal them, and to make them die with it.
OTHERS: dict[str, Rule] = {
    **{
        name: Rule(DENIED)
        for name in "fork vfork setpgid setsid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open "
        "pidfd_send_signal".split()
    },
    "prctl": Rule(DENIED, (Only(0, (PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_PTRACER)),), otherwise=ALLOWED),
    "clone3": Rule(ABSENT),
    "clone": Rule(DENIED, (Without(0, CLONE_THREAD),), otherwise=ALLOWED),
}

_COMPUTING = """
read write readv writev pread64 close close_range stat fstat lstat newfstatat statx poll ppoll select pselect6 lseek
mprotect munmap mremap brk rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
access faccessat faccessat2 pipe dup dup2 dup3 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
getitimer setitimer alarm pause getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid
getpgrp getpgid getsid getcwd chdir fchdir readlink readlinkat getdents getdents64 uname sysinfo getrlimit setrlimit getrusage
umask futex set_tid_address set_robust_list rseq exit exit_group execve getrandom sched_yield sched_getaffinity sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu getpriority fadvise64 statfs fstatfs restart_syscall
"""
# All calls that a program may make. `execve` is there because the program is started under this filter; a filter cannot see
# what is executed and which files are opened (see `landlock.py`).
PROGRAM: dict[str, Rule] = {
    **{name: Rule(ALLOWED) for name in _COMPUTING.split()},
    **OPENING,
    "mmap": Rule(ALLOWED, (Without(3, MAP_LOCKED | MAP_HUGETLB),)),
    # Advice that frees, splits or joins pages of its own memory; not advice that poisons or shares them.
    "madvise": Rule(ALLOWED, (Only(2, (0, 1, 2, 3, 4, 8, 14, 15, 16, 17)),)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; signals about a descriptor could go to anybody.
    "fcntl": Rule(ALLOWED, (Only(1, (0, 1, 2, 3, F_SETFL, 1030)), Without(2, O_ASYNC))),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": Rule(ALLOWED, (Only(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),
    "pipe2": Rule(ALLOWED, (Without(1, ~(0x800 | 0x80000) & 0xFFFFFFFF),)),
    "prlimit64": OWN_PROCESS,
    # PR_SET_NAME, PR_GET_NAME; with others it could outlive its parent.
    "prctl": Rule(ALLOWED, (Only(0, (15, 16)),)),
    # ARCH_SET_FS, ARCH_GET_FS: the address of a thread's own variables.
    "arch_prctl": Rule(ALLOWED, (Only(0, (0x1002, 0x1003)),)),
    "clone": Rule(ALLOWED, (Only(0, THREADS),)),
}
THREADS_ASKED_FOR: dict[str, Rule] = {"clone": Rule(ALLOWED, (Without(0, CLONE_THREAD),), otherwise=NOTIFIED)}


def forbid_side_effects(*, processes: bool) -> bool:
    """Filter this process's calls from now on; `processes`: allow fork and signals. False if the kernel cannot do that."""
    machine = this_machine()
    rules = WORKER if processes else WORKER | OTHERS
    return machine is not None and install(assemble(machine, rules, default=ALLOWED))


def program_filter(*, threads: bool) -> bytes:
    """The filter for a program, which the process that becomes it installs; `threads`: allow them, since they are counted.

    Raises OSError on a machine without filters.
    """
    machine = this_machine()
    if machine is None:
        raise OSError("no filter of system calls")
    return assemble(machine, PROGRAM if threads else PROGRAM | {"clone": Rule(DENIED)}, default=DENIED)


def ask_about_threads() -> int | None:
    """Make every new thread of this process and its children wait for permission; returns the descriptor of the requests."""
    machine = this_machine()
    return None if machine is None else install_notifying(assemble(machine, THREADS_ASKED_FOR, default=ALLOWED))


class ThreadCount:
    """Counts the threads that a program may still start; `descriptor` is readable when one asks.

    Only the count matters: nothing else of the request is read, since the program could change it meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.left = MAX_THREADS

    def answer(self) -> None:
        """Answer one request: allow it while threads are left, else EAGAIN, as at any limit of threads."""
        question = bytearray(QUESTION_BYTES)
        try:
            fcntl.ioctl(self.descriptor, RECEIVE, question)
            (number,) = NUMBER.unpack_from(question)
            if self.left > 0:
                self.left -= 1
                fcntl.ioctl(self.descriptor, ANSWER, REPLY.pack(number, 0, 0, GO_ON))
            else:
                fcntl.ioctl(self.descriptor, ANSWER, REPLY.pack(number, 0, -errno.EAGAIN, 0))
        except FileNotFoundError:
            return  # the program has been killed
