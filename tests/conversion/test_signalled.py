"""A signal ends a conversion between two tensors, says that the same command goes on, and the bytes are the same then."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import finish, run, start
from support.tiny_qwen3 import family_config, hugging_face_model

from megatron_fork.conversion import to_megatron
from megatron_fork.errors import StopRequested

BEFORE = 5


@contextlib.contextmanager
def held_back(files: list[Path]) -> Iterator[Callable[[], bool]]:
    """New files that nobody else can open within the block; gives whether somebody waits for one of them.

    The system itself holds them back, by leases.
    """
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(file.open("x")) for file in files]
        for file in held:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # which tells of one who waits, and does nothing
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: any(fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK for file in held)


def begin(source: Path, out: Path) -> None:
    """A conversion of which so many tensors are written."""
    begun = iter(range(BEFORE))

    def stop_point() -> None:
        if next(begun, None) is None:
            raise StopRequested

    with pytest.raises(StopRequested):
        to_megatron(source, out, workers=1, stop_point=stop_point)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_says_that_the_same_command_goes_on(number: int, code: int, tmp_path: Path) -> None:
    """The real program, which gets the signal while it writes a tensor, however fast or slow it is."""
    source, whole, out, aside = (tmp_path / name for name in ("source", "whole", "out", "out.partial"))
    hugging_face_model(family_config("qwen3")).save_pretrained(source)
    to_megatron(source, whole)
    begin(source, out)
    files = [aside / file.relative_to(whole) for file in whole.rglob("*.distcp")]
    words = ("convert", "to-megatron", str(source), str(out), "--workers", "1")
    with held_back([file for file in files if not file.exists()]) as somebody_waits:
        program = start(*words)
        while program.poll() is None and not somebody_waits():
            time.sleep(0.01)
        os.kill(program.pid, number)
    found, output = finish(program)
    assert found == code, output
    told = [line for line in output.splitlines() if line.startswith("error") or line.startswith("  ")]
    assert told[0] == f"error: the conversion was interrupted; what it wrote is in {aside}"
    assert "the same command goes on from there" in told[1] and "Traceback" not in output
    found, output = run(*words)
    assert found == 0, output
    assert f"of which {BEFORE + 1} were there from an interrupted conversion" in output, output
    assert content(out) == content(whole)
