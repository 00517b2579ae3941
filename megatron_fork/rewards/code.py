"""Judges programs by tests of standard input and output. Off by default: this runs what a model wrote.

The worker that calls `verify` judges. A process that it forked earlier runs the programs (`runner.py`) and never gets an
expected output. Each test is a Python process that has no network, opens only Python's own files, starts and signals no
process, dies with the worker, and is bounded in time, memory and threads.
"""

from __future__ import annotations

import json
import re

from megatron_fork.rewards.runner import FAILED, FINISHED, LATE, TOO_LONG, Programs
from megatron_fork.rewards.score import RewardError, Score, excerpt

FENCED = re.compile(r"```(?:python|py|python3)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_PROGRAM_BYTES = 100_000  # an argument of a command has at most 131,072
SECONDS_A_TEST = 4.0
MAX_SECONDS = 86_400.0
FAILURES = {
    FINISHED: "its output is not the expected one",
    FAILED: "it ends with an error",
    LATE: "not finished after {seconds:g} s",
    TOO_LONG: "its output is too long",
}


class _Permission:
    """The runner of this process if it is a confined worker; no other process may run programs."""

    programs: Programs | None = None


def permit_programs() -> list[str]:
    """Called by a worker before it sees an answer; returns what confines its programs. Raises RewardError if nothing does."""
    _Permission.programs = Programs()
    return _Permission.programs.holds


def verify(response: str, answer: str) -> Score:
    r"""Reward 1 if the last fenced program of the response passes every test.

    `answer` is JSON: `{"tests": [{"input": "1 2\n", "output": "3\n"}, ...], "seconds": 4}`; `seconds` is for each test.
    """
    programs = _Permission.programs
    if programs is None:
        raise RewardError("kind 'code' runs programs and only does so in a worker", hint="use RewardPool")
    try:
        reference = json.loads(answer)
        tests = [(str(test["input"]), str(test["output"])) for test in reference["tests"]]
        seconds = float(reference.get("seconds", SECONDS_A_TEST))
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError("seconds")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Score(0.0, f"the reference answer {excerpt(answer)} has no tests: {type(error).__name__}", "error")
    if not tests:
        return Score(0.0, "the reference answer has no tests", "error")
    fenced = FENCED.findall(response)
    if not fenced:
        return Score(0.0, "no fenced program")
    program = fenced[-1].replace("\r\n", "\n")
    if len(program.encode("utf-8", "replace")) > MAX_PROGRAM_BYTES or "\0" in program:
        return Score(0.0, f"the program has more than {MAX_PROGRAM_BYTES} bytes, or a zero byte")
    for number, (given, expected) in enumerate(tests, start=1):
        ending, output = programs.run(program, given, seconds)
        if ending != FINISHED or _lines(output) != _lines(expected):
            # Without the program's output or exit status: reasons end up in files that others read.
            return Score(0.0, f"test {number} of {len(tests)}: {FAILURES[ending].format(seconds=seconds)}")
    return Score(1.0, f"passes {len(tests)} tests")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
