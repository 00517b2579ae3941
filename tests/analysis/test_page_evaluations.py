"""A page over an evaluation has its numbers with their intervals, as they were written; results that are none are named."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hostile_page import HOSTILE, Elements
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import write_page
from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation import estimate_rows
from megatron_fork.traces import write_traces


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "se": 0.01, "interval": [low, high]}


def results(*sets: str) -> dict[str, Any]:
    numbers = {
        "problems": 1234,
        "samples": 4,
        "avg": {"k": 4, **estimate(0.125, 0.0625, 0.1875)},
        "pass": {"1": estimate(0.125, 0.0625, 0.1875), "4": estimate(0.5, 0.25, 0.75)},
        "maj": {"4": estimate(0.1, 0.05, 0.3)},
    }
    return {"version": 1, "sets": dict.fromkeys(sets, numbers), "interval": "95% percentile bootstrap over problems"}


def evaluation(folder: Path, found: object) -> Path:
    (folder / "traces").mkdir(parents=True)
    write_traces(folder / "traces" / "part-00000.parquet", traced_responses(4, 20), ORIGIN)
    (folder / "evaluation.json").write_text(json.dumps(found))
    return folder


def texts(page: Path) -> list[str]:
    return [text.strip() for text in Elements(page.read_text(encoding="utf-8")).text if text.strip()]


def test_every_number_of_every_set_is_there_with_its_interval(tmp_path: Path) -> None:
    found = results("aime", "amc")
    page = write_page([evaluation(tmp_path / "first", found)], tmp_path / "page.html")
    shown = texts(page)
    for name in ("aime", "amc"):
        place = shown.index(f"{name}: 1,234 problems, 4 samples each")
        rows = [word for row in estimate_rows(found["sets"][name]) for word in row]
        assert shown[place + 1 : place + 4 + len(rows)] == ["%", "interval", *rows, f"{found['interval']}."]
    assert "12.5" in shown and "6.2 to 18.8" in shown and "pass@4" in shown


def test_several_evaluations_are_told_apart_and_traces_alone_have_none(tmp_path: Path) -> None:
    places = [evaluation(tmp_path / name, results("aime")) for name in ("base", "trained")]
    shown = texts(write_page(places, tmp_path / "page.html"))
    assert {"base: aime: 1,234 problems, 4 samples each", "trained: aime: 1,234 problems, 4 samples each"} <= set(shown)
    alone = texts(write_page([places[0] / "traces"], tmp_path / "page.html"))
    assert not any("samples each" in text for text in alone)


def test_a_sets_name_stays_text(tmp_path: Path) -> None:
    tame = write_page([evaluation(tmp_path / "tame", results("a"))], tmp_path / "tame.html")
    page = write_page([evaluation(tmp_path / "hostile", results(HOSTILE[0]))], tmp_path / "page.html")
    assert Elements(page.read_text()).tags == Elements(tame.read_text()).tags


def mutilated(value: Any) -> Iterator[Any]:
    """The value with each of its parts, at any depth, left out or made nonsense, one at a time."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        for nonsense in (None, "no", [], {"no": 1}):
            changed = copy.deepcopy(value)
            changed[key] = nonsense
            yield changed
        if isinstance(value, dict):
            yield {name: each for name, each in value.items() if name != key}
        for inner in mutilated(value[key]):
            yield {**value, key: inner} if isinstance(value, dict) else [*value[:key], inner, *value[key + 1 :]]


def test_damaged_results_are_named_or_shown(tmp_path: Path) -> None:
    """No part that is missing, or of another kind, ends in anything but a page or one line that names the file."""
    from megatron_fork.analysis.page.evaluations import estimates_at

    place, refused = evaluation(tmp_path / "damaged", results("aime")), 0
    for changed in [*mutilated(results("aime")), [], 1, None]:
        (place / "evaluation.json").write_text(json.dumps(changed))
        try:
            estimates_at([place])
        except EvaluationError as error:
            refused += 1
            assert str(place / "evaluation.json") in error.message and error.hint
    assert refused > 50
    (place / "evaluation.json").write_text("{")
    with pytest.raises(EvaluationError, match="cannot be read"):
        write_page([place], tmp_path / "page.html")
