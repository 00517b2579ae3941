"""What a part found survives whatever ends the check: files are whole at every moment, and are read back as they were."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))
from gpu_check.errors import CheckError  # noqa: E402
from gpu_check.figures import Figure, Goal, Reading, shortened  # noqa: E402
from gpu_check.results import FINAL, PASSED, SKIPPED, STOPPED, WRONG, PartResult, Results  # noqa: E402
from gpu_check.summary import markdown, part_lines  # noqa: E402

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
figures = st.builds(
    Figure,
    name=words,
    value=st.none() | numbers | words,
    unit=st.sampled_from(["", "s", "GB/s"]),
    goal=st.none() | st.builds(Goal, st.sampled_from([1.15, 60.0, 0.42]), st.booleans()),
    note=st.just("") | words,
)
results = st.builds(
    PartResult,
    part=words,
    result=st.sampled_from([*FINAL, STOPPED, SKIPPED]),
    seconds=st.integers(0, 600).map(float),
    limit_seconds=st.integers(0, 600).map(float),
    exit_code=st.none() | st.integers(-9, 255),
    reason=st.just("") | words,
    reading=st.builds(Reading, st.lists(figures, max_size=4), st.lists(words, max_size=2), st.lists(words, max_size=2)),
)
ABOUT = {
    "started": "today",
    "commit": "abc",
    "machine": {"gpu": None, "packages": {"torch": "2.13.0"}, "python": "3.12"},
}


@given(result=results)
def test_a_result_is_read_back_as_it_was(result: PartResult) -> None:
    assert PartResult.of_data(json.loads(json.dumps(result.as_data()))) == result


@given(found=st.lists(results, max_size=3))
def test_every_result_can_be_told(found: list[PartResult]) -> None:
    text = markdown(ABOUT, found)
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|--")]
    assert len(rows) == 2 + len(found) + sum(len(each.reading.figures) for each in found)
    assert all(len(list(part_lines(each))) >= 1 for each in found)


def test_a_later_result_of_a_part_takes_the_place_of_the_first(tmp_path: Path) -> None:
    kept = Results.opened(tmp_path, ABOUT, fixed=("commit",))
    kept.add(PartResult("head", STOPPED))
    kept.add(PartResult("head", PASSED, reading=Reading([Figure("x", 1.0)])))
    again = Results.opened(tmp_path, ABOUT, fixed=("commit",))
    assert again.parts == kept.parts and again.parts["head"].result == PASSED
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"about": {"commit": "other"}, "parts": []}', "of another commit: 'other', here 'abc'"),
        ("", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"about": {}', "cannot be read"),
        ('{"about": {"commit": "abc"}, "parts": [{"part": "head"}]}', "cannot be read"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CheckError, match=says):
        Results.opened(tmp_path, ABOUT, fixed=("commit",))
    assert (tmp_path / "results.json").read_text() == text


WRITER = """
import sys
sys.path.append(sys.argv[1])
from pathlib import Path
from gpu_check.results import PartResult, Results
kept = Results(Path(sys.argv[2]), {})
number = 0
while True:
    kept.add(PartResult(f"part {number % 50}", "passed", reason="x" * 2000))
    number += 1
"""


def test_a_kill_while_results_are_written_leaves_them_whole(tmp_path: Path) -> None:
    for wait in (0.0, 0.05, 0.1, 0.15):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(TOOLS), str(tmp_path)])
        while not (tmp_path / "results.json").is_file():
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data = json.loads((tmp_path / "results.json").read_text())
        assert data["parts"] and all(each["result"] == "passed" for each in data["parts"])


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal(1.15), 1.15, "reached"),
        (Goal(1.15), 1.16, "missed"),
        (Goal(0.55, at_most=False), 0.55, "reached"),
        (Goal(0.55, at_most=False), 0.54, "missed"),
        (Goal(1.0), math.nan, "missed"),
        (Goal(1.0, at_most=False), math.nan, "missed"),
        (Goal(1.0), None, ""),
        (Goal(1.0), "unknown", ""),
        (None, 5.0, ""),
    ],
)
def test_a_goal_is_reached_or_missed_only_by_a_number(
    goal: Goal | None, value: float | str | None, verdict: str
) -> None:
    assert Figure("x", value, goal=goal).verdict == verdict


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (8192, "8,192"), (1.7312, "1.73"), (12345.6, "12,346"), (0.000366, "0.000366"), (math.inf, "inf")],
)
def test_figures_are_short(value: float, shown: str) -> None:
    assert shortened(value) == shown


def test_wrong_is_told_before_figures() -> None:
    result = PartResult("head", WRONG, 3, 5, reading=Reading([Figure("x", 1.0, goal=Goal(2.0))], ["it is not so"]))
    assert list(part_lines(result)) == [
        "head: wrong, 3 of 5 s",
        "  WRONG: it is not so",
        "  x: 1 (goal at most 2: reached)",
    ]
