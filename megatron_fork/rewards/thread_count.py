"""Leave for new threads, a bounded number of times: a thread costs memory of the kernel's that no limit of a process counts.

The kernel stops whoever makes a thread and asks here (seccomp's notifications, Linux 5.5 and newer). Only the count matters,
hence nothing is read that the program could change meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import struct

MAX_THREADS = 64
# _IOWR('!', 0, 80) and _IOWR('!', 1, 24), the same on all architectures; a question begins with its number.
RECEIVE, ANSWER = 0xC0502100, 0xC0182101
QUESTION_BYTES = 80
NUMBER = struct.Struct("=Q")
REPLY = struct.Struct("=QqiI")
GO_ON = 1


class ThreadCount:
    """Threads that a program may still start; `descriptor` is readable when one asks."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.left = MAX_THREADS

    def answer(self) -> None:
        """One question: go on while threads are left, else "try again later", as at any limit of threads."""
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
            return  # whoever asked has been killed
