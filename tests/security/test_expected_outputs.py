"""No program learns the output that is expected of it, nor anything else of the run; nor gets anything out in a reason."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path

import pytest
from support.hostile_programs import Trainer, children_of, eventually, running

# All forefathers, nearest first, as far as /proc shows them; GIVEN ones come from whoever told the program.
FOREFATHERS = """
import re
pids, pid = [GIVEN], os.getppid()
while pid > 1:
    pids.append(pid)
    try:
        pid = int(re.search(r"PPid:\\s+(\\d+)", open(f"/proc/{pid}/status").read())[1])
    except OSError:
        break
def spans(pid):
    try:
        for line in open(f"/proc/{pid}/maps"):
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and end - begin <= 64 << 20:
                yield begin, end - begin
    except OSError:
        pass
def search(read):
    for pid in pids:
        for begin, size in spans(pid):
            try:
                found = re.search(rb"expected-[0-9a-f]{32}", read(pid, begin, size))
            except OSError:
                break
            if found:
                print(found[0].decode())
                sys.exit()
"""
READERS = {
    "process_vm_readv": """
class Span(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]
def read(pid, begin, size):
    buffer = ctypes.create_string_buffer(size)
    here, there = Span(ctypes.addressof(buffer), size), Span(begin, size)
    if call(310, pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) < 0:
        raise OSError
    return buffer.raw
search(read)
""",
    "/proc/PID/mem": """
def read(pid, begin, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(begin)
        return memory.read(size)
search(read)
""",
}


@pytest.mark.parametrize("reader", READERS)
def test_not_in_memory_that_it_can_read(trainer: Trainer, reader: str) -> None:
    workers = children_of(trainer.process.pid)
    given = ", ".join(map(str, [*workers, *(runner for worker in workers for runner in children_of(worker))]))
    program = FOREFATHERS.replace("GIVEN", given) + READERS[reader]
    value, _ = trainer.run(program, expected="expected-" + secrets.token_hex(16))
    assert value == 0.0, "the program has read what is expected of it"


def test_not_in_its_own_memory(trainer: Trainer) -> None:
    """Nor in what it was given: arguments, environment, descriptors, or memory left by whoever started it."""
    program = """
def there(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False
print(sorted(set(os.environ) - {"LC_CTYPE"}), sys.argv, [each for each in range(64) if there(each)])
"""
    value, reason = trainer.run(program, expected="[] ['-c'] [0, 1, 2]")
    assert value == 1.0, reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into these processes")
def test_the_runner_has_not_got_it(trainer: Trainer) -> None:
    """Looked at from outside: while a program runs, neither it nor its parent holds what is expected, and the worker does."""
    expected = "expected-" + secrets.token_hex(16)
    marker = "marker-" + secrets.token_hex(8)
    trainer.begin(f"import time\nwhile True: time.sleep(0.1)  # {marker}", expected=expected)
    try:
        assert eventually(lambda: bool(running(marker)), 10.0)
        (program,) = running(marker)
        (worker,) = children_of(trainer.process.pid)
        assert _holds(worker, expected)  # else the search would prove nothing
        assert not _holds(program, expected)
        forefathers = [runner for runner in children_of(worker) if program in children_of(runner)]
        assert len(forefathers) == 1
        assert not _holds(forefathers[0], expected)
    finally:
        for pid in running(marker):
            os.kill(pid, signal.SIGKILL)
        assert trainer._answer() == [0.0, "test 1 of 1: it ends with an error"]


def _holds(pid: int, text: str) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and end - begin <= 64 << 20:
                with contextlib.suppress(OSError):  # it may be gone by now
                    memory.seek(begin)
                    if text.encode() in memory.read(end - begin):
                        return True
    return False


def test_the_environment_of_the_trainer(trainer: Trainer) -> None:
    """It may not be opened, nor come out in a reason."""
    program = f"""
found = ""
for pid in {sorted({trainer.process.pid} | children_of(trainer.process.pid))} + [os.getppid()]:
    for name in ("environ", "cmdline", "maps", "status", "fd/0", "root/etc/passwd", "cwd/README.md"):
        try:
            found += open(f"/proc/{{pid}}/{{name}}", "rb").read().decode("utf-8", "replace")
        except OSError:
            pass
print(found[found.find("API_KEY="):][:40] or "refused")
"""
    value, reason = trainer.run(program)
    assert trainer.secret not in reason
    assert value == 1.0, reason


def test_files_of_the_run(trainer: Trainer, tmp_path: Path) -> None:
    """The rows that responses are drawn for have the answers in them."""
    (tmp_path / "train.jsonl").write_text('{"answer": "3"}')
    paths = [
        str(tmp_path / "train.jsonl"),
        __file__,
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "/dev/shm",
        "/",
    ]
    program = f"""
seen = []
for path in [*{paths}, os.getcwd(), "/dev/mem", {str(Path.home())!r}, "/proc/1/root"]:
    try:
        seen.append((path, os.open(path, os.O_RDONLY)))
    except OSError:
        pass
print(seen or "refused")
"""
    value, reason = trainer.run(program)
    assert value == 1.0, reason


@pytest.mark.parametrize(
    "program",
    [
        "print(CHOSEN)",
        "sys.stderr.write(CHOSEN); sys.exit(77)",
        "raise ValueError(CHOSEN)",
        "os._exit(77)",
        "print(CHOSEN * 77)",
    ],
)
def test_reasons_say_nothing_that_a_program_chooses(trainer: Trainer, program: str) -> None:
    chosen = secrets.token_hex(8)
    value, reason = trainer.run(program.replace("CHOSEN", repr(chosen)))
    assert value == 0.0
    assert chosen not in reason
    assert "77" not in reason
    assert len(reason) < 100
