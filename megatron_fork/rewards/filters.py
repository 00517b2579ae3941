"""Filters of system calls (seccomp, Linux): from rules by name to the kernel's small machine, and onto this process.

A process puts a filter on itself without any privilege and can never take it off; programs that it executes inherit it. Several
filters add up: the strictest verdict counts. A filter sees numbers, not what pointers point to.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from typing import NamedTuple

from megatron_fork.rewards.call_numbers import NUMBERS

ALLOWED, NOTIFIED, FAILS = 0x7FFF0000, 0x7FC00000, 0x00050000
DENIED = FAILS | errno.EPERM
ABSENT = FAILS | errno.ENOSYS  # the C library then falls back on a call whose arguments can be seen
# From this number on both architectures count alike, and a C library asks first whether a call is there.
FIRST_NEW_CALL = 424
X32_CALLS = 0x40000000

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
SET_MODE_FILTER, NEW_LISTENER = 1, 8


class Only(NamedTuple):
    """An argument has one of these values."""

    argument: int
    values: tuple[int, ...]


class Without(NamedTuple):
    """An argument has none of these bits."""

    argument: int
    bits: int


class Rule(NamedTuple):
    """The verdict on a call where all conditions on its arguments hold (their low 32 bits), and where they do not."""

    verdict: int
    conditions: tuple[Only | Without, ...] = ()
    otherwise: int = DENIED


class Machine(NamedTuple):
    """What differs between architectures: the column of the table of numbers and the name that a filter sees."""

    column: int
    audit: int


MACHINES = {"x86_64": Machine(0, 0xC000003E), "aarch64": Machine(1, 0xC00000B7)}


def this_machine() -> Machine | None:
    """None where filters cannot be written for it."""
    return MACHINES.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None


def available() -> bool:
    """Whether this kernel takes filters: it then looks for one where none is, and complains of that."""
    if this_machine() is None:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_SECCOMP, MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def assemble(machine: Machine, rules: dict[str, Rule], *, default: int) -> bytes:
    """The filter that judges every call by its rule, and a call without a rule by `default`.

    Where `default` is to deny, calls newer than FIRST_NEW_CALL are absent instead. Calls of another architecture and of x32,
    whose numbers mean others, are denied.
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
    """Put a filter on this thread; False where the kernel does not take it."""
    library = ctypes.CDLL(None, use_errno=True)
    whole = _Filter(len(program) // 8, program)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return library.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(whole), 0, 0) == 0


def install_notifying(program: bytes) -> int | None:
    """Put a filter on this thread that asks about calls; the descriptor that the questions come through, None without one."""
    library = ctypes.CDLL(None, use_errno=True)
    machine = this_machine()
    whole = _Filter(len(program) // 8, program)
    if machine is None or library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return None
    number = NUMBERS["seccomp"][machine.column]
    listener = library.syscall(number, SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(whole))
    return None if listener < 0 else int(listener)
