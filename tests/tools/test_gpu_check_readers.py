"""Figures come from what the benchmarks write, whole or cut off; what is wrong is told apart from what is slow or missing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))
from gpu_check import readers  # noqa: E402
from gpu_check.figures import Figure, Reading  # noqa: E402
from gpu_check.parts import PARTS  # noqa: E402


def read(folder: Path, reader: Callable[[Path], Reading], data: dict[str, Any]) -> Reading:
    (folder / "found.json").write_text(json.dumps(data))
    return reader(folder)


def by_name(reading: Reading) -> dict[str, Figure]:
    assert len({figure.name for figure in reading.figures}) == len(reading.figures)
    return {figure.name: figure for figure in reading.figures}


def outcome(label: str, statistics: float, update: float, **more: Any) -> dict[str, Any]:
    """A contender of two equal rounds, in seconds."""
    rounds = [{"statistics": {"wall_s": statistics}, "update": {"wall_s": update}}] * 2
    return {"label": label, "rounds": rounds, "median": {"wall_s": statistics + update}, **more}


def head(tokens: int = 8192, share: float = 0.2, **contenders: Any) -> dict[str, Any]:
    shape = {"tokens": tokens, "width": 4096, "vocabulary": 151_936, "dtype": "bf16", "share": share}
    mine = outcome("megatron-fork", 0.016, 0.012, over_floor={"wall": 1.1})
    # d_weight is 1,187 MiB.
    mine["peaks_mebibytes"] = {"statistics": 500.0, "update": 1187.0 + 512.0 + tokens / 128}
    return {"shape": shape, "contenders": {"floor": outcome("floor", 0.013, 0.008), "ours": mine, **contenders}}


def test_head_against_floor_and_the_fastest_peer(tmp_path: Path) -> None:
    peers = {
        "trl-fused-rows": outcome("TRL, fused, handed the rows", 0.015, 0.014),
        "verl-fused": outcome("verl, fused", 0.05, 0.05),
        "fast-but-wrong": outcome("another", 0.001, 0.001, wrong=True),
        "liger": {"label": "Liger, fused", "unavailable": "ModuleNotFoundError: No module named 'cutlass'"},
    }
    shapes = [head(tokens, **peers) for tokens in (8192, 32768)]
    reading = read(tmp_path, readers.head, {"results": shapes})
    found = by_name(reading)
    at = "8,192 tokens, 20%: "
    assert found[at + "over the products alone"].verdict == "reached"
    peer = found[at + "in terms of the fastest peer"]
    assert peer.value == pytest.approx(0.028 / 0.029) and peer.note == "TRL, fused, handed the rows"
    assert found[at + "statistics"].value == pytest.approx(16.0)
    assert found[at + "peak beside inputs and weight's gradient"].value == pytest.approx(0.5625)
    # The hidden states' gradient grows with the tokens, the rest does not.
    (growth,) = [figure for name, figure in found.items() if "growth" in name]
    assert growth.value == pytest.approx(0.0, abs=1e-6)
    assert reading.wrong == []
    assert sum("Liger, fused could not" in note for note in reading.notes) == 1
    assert sum("another computes something else" in note for note in reading.notes) == 2


def test_head_that_computes_something_else_is_wrong(tmp_path: Path) -> None:
    result = head()
    result["contenders"]["ours"] |= {"wrong": True, "differences": {"entropy": 0.4}}
    assert "entropy" in read(tmp_path, readers.head, {"results": [result]}).wrong[0]


@pytest.mark.parametrize(("error", "is_wrong"), [("OutOfMemoryError: 9 GiB", False), ("CompilationError: x", True)])
def test_head_that_cannot_is_wrong_unless_the_gpu_is_too_small(tmp_path: Path, error: str, is_wrong: bool) -> None:
    result = head()
    result["contenders"]["ours"] = {"label": "megatron-fork", "unavailable": error}
    reading = read(tmp_path, readers.head, {"results": [result]})
    assert (bool(reading.wrong), bool(reading.notes)) == (is_wrong, not is_wrong)


def size(what: str, **fields: Any) -> dict[str, Any]:
    setting = {"shape": "8b", "optimizer": "none", "recompute": "full", "backend": "local", "what": what}
    measured = {"utilisation": 0.5, "tokens_per_second": 9000.0, "peak_over_held_gib": 6.3, "held_gib": 45.8}
    return {**setting, "response": 8192, "tokens": 8704, **measured, **fields}


def test_full_size_has_the_goal_of_its_layers(tmp_path: Path) -> None:
    results = [
        size("statistics"),
        size("update", ratio=0.2),
        size("update", ratio=0.2, backend="transformer_engine"),
        size("statistics", response=16384, tokens=16896),
        size("update", ratio=1.0, fits=False),
        {"shape": "8b", "backend": "local", "recompute": "none", "fits": False},
        size("longest", ratio=0.2, response=24576, at_limit=False),
    ]
    reading = read(tmp_path, readers.full_size, {"results": results})
    found = by_name(reading)
    used = ": of the dense bf16 peak"
    assert str(found[f"local layers, statistics, 8,704 tokens{used}"].goal) == "at least 0.55"
    assert found[f"local layers, update at 20%, 8,704 tokens{used}"].verdict == "reached"
    assert str(found[f"transformer_engine layers, update at 20%, 8,704 tokens{used}"].goal) == "at least 0.45"
    assert found[f"local layers, statistics, 16,896 tokens{used}"].goal is None
    assert found["local layers, update at 100%, 8,704 tokens"].words == "does not fit"
    assert found["local layers, longest at 20%: response that fits"].value == 24576
    assert reading.notes == ["8b with local layers does not fit this GPU"]


def test_peak_of_the_small_model_has_its_goal(tmp_path: Path) -> None:
    result = size("update", ratio=0.2, shape="0.6b", recompute="none", response=29696, tokens=30208)
    found = by_name(read(tmp_path, readers.full_size, {"results": [result]}))
    assert found["local layers, update at 20%, 30,208 tokens: peak"].goal.bound == 26.0


def test_first_steps_have_goals_and_faults_are_wrong(tmp_path: Path) -> None:
    data = {"first_step_seconds": 61.0, "first_step_again_seconds": 19.0, "wrong": ["steps were lost"]}
    reading = read(tmp_path, readers.resumed, data)
    assert [figure.verdict for figure in reading.figures] == ["missed", "reached"]
    assert reading.wrong == ["steps were lost"]


LOG = """
tests/a/test_x.py::test_one[qwen2, biases] PASSED                        [ 10%]
tests/a/test_x.py::test_one[both zeros] FAILED                           [ 20%]
tests/a/test_x.py::test_two SKIPPED (needs a GPU)                        [ 30%]
tests/b/test_y.py::test_three ERROR                                      [ 40%]
tests/b/test_y.py::test_four
"""


def test_tests_are_counted_up_to_a_stop(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(LOG)
    reading = readers.tests(tmp_path)
    assert [figure.value for figure in reading.figures] == [1, 1]
    assert reading.wrong == [
        "tests/a/test_x.py::test_one[both zeros] does not pass",
        "tests/b/test_y.py::test_three does not pass",
    ]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_that_left_nothing_has_no_figures_and_is_not_wrong(part: Any, tmp_path: Path) -> None:
    reading = part.read(tmp_path)
    assert not reading.wrong
    assert all(figure.value in (None, 0) for figure in reading.figures)
