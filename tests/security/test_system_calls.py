"""A program may make the system calls of a computation, with the arguments of one, and no other.

Tried in this kernel, and for AArch64 by what its filter says of every number.
"""

from __future__ import annotations

import ctypes
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_programs import Trainer

from megatron_fork.rewards.filters import ABSENT, ALLOWED, DENIED, MACHINES, NOTIFIED, NUMBERS, Machine, assemble
from megatron_fork.rewards.system_calls import OTHERS, PROGRAM, THREADS, THREADS_ASKED_FOR, WORKER

X86_64, AARCH64 = MACHINES["x86_64"], MACHINES["aarch64"]
FILTERS = {machine: assemble(machine, PROGRAM, default=DENIED) for machine in MACHINES.values()}
machines = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), *, audit: int) -> int:
    """What the kernel's machine answers for one call; it knows the five steps that filters here are made of."""
    call = struct.pack("=IIQ6Q", number, audit, 0, *(value % 2**64 for value in (*arguments, *[0] * 6)[:6]))
    steps = list(struct.iter_unpack("HBBI", program))
    place, held = 0, 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        match code:
            case 0x20:
                (held,) = struct.unpack_from("=I", call, value)
            case 0x15:
                place += if_true if held == value else if_false
            case 0x35:
                place += if_true if held >= value else if_false
            case 0x45:
                place += if_true if held & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"step {code}")


def of_program(machine: Machine, name: str, *arguments: int) -> int:
    number = NUMBERS[name][machine.column]
    assert number is not None
    return verdict(FILTERS[machine], number, arguments, audit=machine.audit)


@machines
def test_every_call_has_its_verdict(machine: Machine) -> None:
    allowed = {NUMBERS[name][machine.column]: rule for name, rule in PROGRAM.items()}
    for number in range(600):
        found = verdict(FILTERS[machine], number, (-1,) * 6, audit=machine.audit)
        if number not in allowed:
            assert found == (DENIED if number < 424 else ABSENT), number
        elif not allowed[number].conditions:
            assert found == ALLOWED, number
        else:
            assert found == DENIED, number


@machines
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_only_its_own_tables_numbers(machine: Machine, number: int, audit: int) -> None:
    """Not the calls of 32-bit programs, which have other numbers, nor x32's."""
    if audit != machine.audit:
        assert verdict(FILTERS[machine], number, audit=audit) == DENIED
    assert verdict(FILTERS[machine], number | 0x40000000, audit=machine.audit) == DENIED


@machines
@given(st.integers(0, 2**64 - 1))
def test_the_arguments_that_matter(machine: Machine, word: int) -> None:
    low = word % 2**32
    assert (of_program(machine, "openat", 0, 0, word) == ALLOWED) == (not low & 0x643)
    assert (of_program(machine, "fcntl", 0, word) == ALLOWED) == (low in (0, 1, 2, 3, 4, 1030))
    assert (of_program(machine, "fcntl", 0, 4, word) == ALLOWED) == (not low & 0x2000)
    assert (of_program(machine, "prlimit64", word) == ALLOWED) == (low == 0)
    assert (of_program(machine, "prctl", word) == ALLOWED) == (low in (15, 16))
    assert (of_program(machine, "clone", word) == ALLOWED) == (low in THREADS)
    assert (of_program(machine, "ioctl", 0, word) == ALLOWED) == (
        low in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
    )
    assert (of_program(machine, "mmap", 0, 0, 0, word) == ALLOWED) == (not low & 0x42000)


@machines
def test_threads_ask_and_processes_do_not(machine: Machine) -> None:
    asking = assemble(machine, THREADS_ASKED_FOR, default=ALLOWED)
    number = NUMBERS["clone"][machine.column]
    assert verdict(asking, number, (THREADS[0],), audit=machine.audit) == NOTIFIED
    assert verdict(asking, number, (17,), audit=machine.audit) == ALLOWED


@machines
def test_a_worker_may_compute_and_not_reach_others(machine: Machine) -> None:
    worker = assemble(machine, WORKER | OTHERS, default=ALLOWED)
    runner = assemble(machine, WORKER, default=ALLOWED)

    def of(program: bytes, name: str, *arguments: int) -> int:
        return verdict(program, NUMBERS[name][machine.column], arguments, audit=machine.audit)

    assert of(worker, "clone", 17) == DENIED != of(runner, "clone", 17)
    assert of(worker, "clone", THREADS[0]) == of(worker, "read") == of(worker, "prlimit64", 0) == ALLOWED
    for program in (worker, runner):
        for name in ("process_vm_readv", "process_vm_writev", "shmget", "ptrace", "socket", "keyctl"):
            assert of(program, name) == DENIED, name
        assert of(program, "prlimit64", 4711) == of(program, "sched_setaffinity", 4711) == DENIED
        assert of(program, "fcntl", 0, 8, 4711) == DENIED
        assert of(program, "fcntl", 0, 6) == of(program, "fcntl", 0, 4, 0x800) == ALLOWED


def test_the_table_has_what_the_filters_name_and_no_more() -> None:
    assert NUMBERS.keys() == {*WORKER, *OTHERS, *PROGRAM, *THREADS_ASKED_FOR, "seccomp"}


def test_numbers_are_those_of_libseccomp() -> None:
    """An independent table of both architectures, of the calls that it knows."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    compared = 0
    for name, numbers in NUMBERS.items():
        for machine in MACHINES.values():
            theirs = library.seccomp_syscall_resolve_name_arch(machine.audit, name.encode())
            if theirs == -1:
                continue  # newer than this libseccomp
            assert (theirs if theirs >= 0 else None) == numbers[machine.column], (name, machine)
            compared += 1
    assert compared > 400


def test_all_others_are_refused_by_this_kernel(trainer: Trainer) -> None:
    """Every number that is not on the list, called by a program with arguments that could do no harm."""
    allowed = {NUMBERS[name][X86_64.column] for name in PROGRAM} - {None}
    returns_of_probes = {335, 336}  # which no filter sees, and which kill whoever is not at a probe
    program = f"""
worked = [number for number in range(480) if number not in {sorted(allowed | returns_of_probes)}
          and call(number, -1, -1, -1, -1, -1, -1) not in (-1, -38)]
print(worked or "refused")
"""
    value, reason = trainer.run(program)
    assert value == 1.0, reason


@pytest.mark.parametrize("number", ["0x40000000 | 39", "0x40000000 | 62", "-1"])
def test_x32_is_refused(trainer: Trainer, number: str) -> None:
    value, reason = trainer.run(f"report(call({number}, 0, 0))")
    assert value == 1.0, reason


def test_calls_of_32_bits_are_refused(trainer: Trainer) -> None:
    """`int 0x80` reaches the table of 32-bit programs from a 64-bit one; 20 is getpid there."""
    program = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000 cd80 4898 c3"))
found = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("done" if found == os.getpid() else "refused")
"""
    value, reason = trainer.run(program)
    assert value == 1.0, reason


def test_what_a_computation_needs(trainer: Trainer) -> None:
    """The standard library as far as programs of tasks go; what is refused is refused as an error that they can catch."""
    program = """
import array, bisect, cmath, collections, contextlib, copy, csv, dataclasses, datetime, decimal, enum, fractions, functools
import gc, hashlib, heapq, io, itertools, json, math, operator, queue, random, re, resource, select, signal, statistics
import string, struct, tempfile, textwrap, threading, time, traceback, typing, unicodedata, uuid, zlib, zoneinfo
from concurrent.futures import ThreadPoolExecutor
random.seed(); uuid.uuid4(); time.sleep(0.01); time.perf_counter(); datetime.datetime.now(zoneinfo.ZoneInfo("UTC"))
with ThreadPoolExecutor(8) as executor:
    assert sum(executor.map(lambda value: value * value, range(100))) == 328350
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
reading, writing = os.pipe(); os.write(writing, b"1"); assert select.select([reading], [], [], 1)[0]
assert len(bytearray(300 << 20)) and hashlib.sha256(b"").hexdigest() and os.cpu_count() is not False
assert sys.stdin.readline().strip() == "line" and not sys.stdin.isatty() and os.getcwd() == "/"
try:
    tempfile.TemporaryFile()
except (FileNotFoundError, PermissionError):
    print("refused")
"""
    value, reason = trainer.run(program, given="line\n")
    assert value == 1.0, reason


def test_what_is_refused_is_an_error_of_permission() -> None:
    assert DENIED & 0xFFFF == errno.EPERM
    assert ABSENT & 0xFFFF == errno.ENOSYS
