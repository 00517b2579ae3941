"""Programs judged by tests of standard input and output. Off by default: this runs what a model wrote.

It runs only inside a confined worker: each test is a Python process that has no network, changes no file, starts no process,
signals nobody, dies with the worker, and is bounded in time and memory. It can read what the user can read.
"""

from __future__ import annotations

import ctypes
import json
import re
import resource
import signal
import subprocess
import sys
from typing import Any

from megatron_fork.rewards.score import RewardError, Score, excerpt
from megatron_fork.rewards.system_calls import forbid_side_effects

FENCED = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_PROGRAM_BYTES = 100_000  # an argument of a command has at most 131,072
SECONDS_A_TEST = 4.0
PR_SET_PDEATHSIG = 1


class _Permission:
    """Whether this process is a confined worker; nothing else may run programs."""

    given = False


def permit_programs(holds: list[str]) -> None:
    """Called by a worker that is confined; raises RewardError where the kernel did not confine it."""
    if not any("seccomp" in line for line in holds):
        raise RewardError(
            "rewards.kind=code needs seccomp, which is not to be had here", hint="run it on Linux on x86-64"
        )
    _Permission.given = True


def verify(response: str, answer: str) -> Score:
    r"""Reward 1 if the last fenced program of the response passes every test.

    `answer` is JSON: `{"tests": [{"input": "1 2\n", "output": "3\n"}, ...], "seconds": 4}`; `seconds` is for each test.
    """
    if not _Permission.given:
        raise RewardError("kind 'code' runs programs and only does so in a worker", hint="use RewardPool")
    try:
        reference = json.loads(answer)
        tests = [(str(test["input"]), str(test["output"])) for test in reference["tests"]]
        seconds = float(reference.get("seconds", SECONDS_A_TEST))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Score(0.0, f"the reference answer {excerpt(answer)} has no tests: {type(error).__name__}", "error")
    if not tests:
        return Score(0.0, "the reference answer has no tests", "error")
    programs = FENCED.findall(response)
    if not programs:
        return Score(0.0, "no fenced program")
    if len(programs[-1].encode("utf-8", "replace")) > MAX_PROGRAM_BYTES or "\0" in programs[-1]:
        return Score(0.0, f"the program has more than {MAX_PROGRAM_BYTES} bytes, or a zero byte")
    for number, (given, expected) in enumerate(tests, start=1):
        failure = _run(programs[-1], given, expected, seconds)
        if failure:
            return Score(0.0, f"test {number} of {len(tests)}: {failure}")
    return Score(1.0, f"passes {len(tests)} tests")


def _run(program: str, given: str, expected: str, seconds: float) -> str:
    """What went wrong with one test; empty where nothing did."""

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if not forbid_side_effects(processes=False):
            raise OSError("no filter of system calls")

    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", program.encode("utf-8", "replace")],
        env={},
        preexec_fn=restrict,
        **options,
    ) as process:
        try:
            output, _ = process.communicate(given.encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not finished after {seconds:g} s"
        except MemoryError:
            return "its output does not fit in memory"
        finally:
            process.kill()
    if process.returncode:
        return f"ends with {process.returncode}"
    found = output.decode("utf-8", "replace")
    return "" if _lines(found) == _lines(expected) else f"prints {excerpt(found)}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
