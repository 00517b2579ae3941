"""Programs are run only where that is allowed, pass by their output alone, and can do nothing but compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_fork.errors import ConfigError
from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, score

ADD = json.dumps({"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "10 -4\n", "output": "6"}], "seconds": 10})
SLOW = json.dumps({"tests": [{"input": "", "output": "done"}], "seconds": 2})


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(RewardsConfig(kind="code", allow_code=True, timeout_seconds=30.0, workers=2)) as pool:
        pool.warm()
        yield pool


def program(text: str) -> str:
    return f"First ```python\nwrong\n``` then\n```python\n{text}\n```\nDone."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", 1.0),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), '  ')\nprint()", 1.0),
        ("print(3)", 0.0),
        ("a, b = map(int, input().split())\nprint(a - b)", 0.0),
        ("raise SystemExit(1)", 0.0),
        ("this is no Python", 0.0),
    ],
)
def test_programs_pass_by_their_output(pool: RewardPool, text: str, value: float) -> None:
    result = pool.score_many([(program(text), ADD)])[0]
    assert result.value == value, result.reason


@pytest.mark.parametrize(
    "action",
    [
        "open(PATH, 'w').write('mine')",
        "os.unlink(PATH)",
        "os.mkdir(PATH + '.d')",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket()",
        "os.fork()",
        "subprocess.run(['true'])",
        "os.kill(os.getppid(), 9)",
        "os.setsid()",
    ],
)
def test_programs_can_only_compute(pool: RewardPool, action: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    text = (
        f"import os, socket, subprocess\nPATH = {str(tmp_path / 'file')!r}\n"
        f"try:\n    {action}\n    print('it worked')\nexcept PermissionError:\n    print('done')"
    )
    result = pool.score_many(
        [(program(text), json.dumps({"tests": [{"input": "", "output": "done"}], "seconds": 20}))]
    )[0]
    assert result.value == 1.0, result.reason
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "text",
    ["while True: pass", "import time\ntime.sleep(1000)", "x = 'x' * (100 << 30)", "while True: print('x' * 100000)"],
)
def test_programs_are_bounded(pool: RewardPool, text: str) -> None:
    result = pool.score_many([(program(text), SLOW), (program("print('done')"), SLOW)])
    assert result[0].value == 0.0, result[0].reason


@pytest.mark.parametrize("end", ["\n", "\r\n", " \t\r\n"])
@pytest.mark.parametrize("language", ["python", "py", "Python3", ""])
def test_whatever_ends_lines(pool: RewardPool, language: str, end: str) -> None:
    lines = ["a, b = map(int, input().split())", "if True:", "    print(a + b)"]
    result = pool.score_many([(end.join(["Here:", f"```{language}", *lines, "```", "."]), ADD)])[0]
    assert result.value == 1.0, result.reason


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-1", "0", "null", "1e999", "1e300"])
def test_a_limit_that_is_none(pool: RewardPool, seconds: str) -> None:
    answer = f'{{"tests": [{{"input": "", "output": "3"}}], "seconds": {seconds}}}'
    result = pool.score_many([(program("print(3)"), answer)])[0]
    assert result.value == 0.0
    assert "has no tests" in result.reason


def test_time_is_that_of_all_programs_of_a_job() -> None:
    tests = {"tests": [{"input": "", "output": ""}] * 6, "seconds": 10}
    text = "import time\nwhile time.process_time() < 0.5: pass"
    with RewardPool(RewardsConfig(kind="code", allow_code=True, timeout_seconds=1.0)) as pool:
        result = pool.score_many([(program(text), json.dumps(tests))])[0]
    assert result.reason == "verifier timed out after 1 s"


def test_no_program_and_no_tests(pool: RewardPool) -> None:
    assert pool.score_many([("print(3)", ADD)])[0].reason == "no fenced program"
    for answer in ("", "{}", "[]", '{"tests": []}', '{"tests": [1]}'):
        assert pool.score_many([(program("print(3)"), answer)])[0].value == 0.0


@pytest.mark.parametrize("settings", [{}, {"allow_code": True, "workers": 0}, {"allow_code": True, "confined": False}])
def test_it_is_off_by_default(settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.kind=code runs what the model wrote") as caught:
        RewardsConfig(kind="code", **settings)
    assert "allow_code" in caught.value.hint


def test_it_does_not_run_in_the_calling_process() -> None:
    with pytest.raises(RewardError, match="only does so in a worker"):
        score(program("print(3)"), ADD, kind="code")
