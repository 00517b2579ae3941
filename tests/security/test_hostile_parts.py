"""The files of a step that was begun are read as data; what a run would not have written there is one line."""

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import trajectories

from megatron_fork.errors import CheckpointError
from megatron_fork.rollout import PartialResponse, PromptGroup, RolloutCounts
from megatron_fork.run import step_files
from megatron_fork.run.state import PartialRecord, PartialStep

DRAWN = trajectories(kept=True)
TWO = torch.tensor([1, 2], dtype=torch.int32)
RECORD: PartialRecord = {
    **PartialStep(RolloutCounts(drawn=6), DRAWN, {"rollout/pass_rate": 0.5}).record(),  # type: ignore[typeddict-item]
    "metrics": {"loss": 1.0},
}


def read(folder: Path) -> PartialStep:
    step = PartialStep(RolloutCounts(drawn=6))
    step_files.read_step(folder, RECORD, step)
    return step


def parts() -> list[dict[str, Any]]:
    names = ("advantage_t", "rollout_logprob_t", "entropy_t")
    return [step_files._plain(each, {name: torch.ones(len(each.response)) for name in names}) for each in DRAWN]


def write(folder: Path, content: object) -> None:
    torch.save(content, folder / "part-00000.pt")


def test_parts_come_back(tmp_path: Path) -> None:
    middle = len(DRAWN) // 2
    torch.save(parts()[:middle], tmp_path / "part-00001.pt")
    torch.save(parts()[middle:], tmp_path / "part-00000.pt")
    found = read(tmp_path)
    assert found.trajectories == DRAWN and set(found.result.columns) == {each.number for each in DRAWN}


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("content", [None, 5, {}, [5], [{}], [[]], [{"trajectory": {}, "columns": {}}], "text"])
def test_what_is_no_list_of_parts(content: object, tmp_path: Path) -> None:
    write(tmp_path, content)
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02" + b"(" * 5000, b"text" * 100])
def test_what_is_no_file_of_torch(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "part-00000.pt").write_bytes(content)
    assert "part-00000.pt is not part of a partial step" in refused(tmp_path)


def test_nothing_is_executed(tmp_path: Path) -> None:
    write(tmp_path, [Marker(tmp_path / "executed")])
    refused(tmp_path)
    torch.save([Marker(tmp_path / "executed")], tmp_path / "groups.pt")
    with pytest.raises(CheckpointError, match=r"groups\.pt is not part"):
        step_files.read_groups(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_missing_and_repeated_trajectories(tmp_path: Path) -> None:
    write(tmp_path, parts()[:-1])
    assert f"not the {len(DRAWN)} of the partial step" in refused(tmp_path)
    write(tmp_path, [*parts()[:-1], parts()[0]])
    assert f"not the {len(DRAWN)} of the partial step" in refused(tmp_path)
    (tmp_path / "part-00000.pt").unlink()
    assert f"holds 0 trajectories in 0 parts, not the {len(DRAWN)}" in refused(tmp_path)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a column is short": lambda part: part["columns"].update(entropy_t=part["columns"]["entropy_t"][:-1]),
    "a column has two dimensions": lambda part: part["columns"].update(entropy_t=part["columns"]["entropy_t"][None]),
    "a column is a list": lambda part: part["columns"].update(entropy_t=part["columns"]["entropy_t"].tolist()),
    "a column is missing": lambda part: part["columns"].pop("advantage_t"),
    "a column is unknown": lambda part: part["columns"].update(other_t=part["columns"]["entropy_t"]),
    "columns are none": lambda part: part.update(columns=None),
    **{
        f"{name}={value!r}": lambda part, name=name, value=value: part["trajectory"].update({name: value})
        for name, values in {
            "response": [None, torch.ones(2, 2), torch.ones(3, dtype=torch.int32), [2**40], "text"],
            "rollout_logprob": [None, torch.zeros(1), "text"],
            "number": [None, -1, 1.5, "0", 10**30, True],
            "weight_version": [None, -1, "x"],
            "reward": [None, math.nan, math.inf, "x"],
            "advantage": [math.nan, None],
            "versions": [None, 5, [(0, 0)], [(0, 0, 10**13)], [(0, 5, 2)], [("a", "b", "c")], [(-1, 0, 1)]],
            "prompt": [None, 5, {}, {"index": 0, "text": "", "tokens": None, "answer": ""}],
            "kept": [5, "text", (TWO,), (TWO, TWO), (TWO, None), (-TWO, torch.tensor([2])), (TWO, torch.tensor([2]))],
            "unheard_of": [1],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_no_run_writes(change: str, tmp_path: Path) -> None:
    content = copy.deepcopy(parts())
    CHANGES[change](content[1])
    write(tmp_path, content)
    refused(tmp_path)


def test_groups_come_back_or_are_refused(tmp_path: Path) -> None:
    group = PromptGroup(
        3,
        DRAWN[0].prompt,
        1,
        answers={0: DRAWN[0]},
        begun={1: PartialResponse(DRAWN[1].response, DRAWN[1].rollout_logprob)},
    )
    step_files.write_groups(tmp_path, [group])
    (found,) = step_files.read_groups(tmp_path)
    assert found.answers == group.answers and list(found.begun[1].tokens) == list(DRAWN[1].response)
    plain = torch.load(tmp_path / "groups.pt", weights_only=True)
    for name in list(plain[0]):
        for value in (None, [5], {"a": 5}, "text"):
            changed = copy.deepcopy(plain)
            changed[0][name] = value
            torch.save(changed, tmp_path / "groups.pt")
            with pytest.raises(CheckpointError, match=r"groups\.pt is not part"):
                step_files.read_groups(tmp_path)
