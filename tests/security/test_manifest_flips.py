"""A manifest that is not what was written is refused by one line, or means the same: whichever bit of it is flipped."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_fork.checkpoint import folder as folders
from megatron_fork.checkpoint import latest, manifest
from megatron_fork.errors import CheckpointError
from megatron_fork.run.state import RunState, checked, state_of

STEP = 7
PROGRESS: dict[str, Any] = {
    "step": STEP,
    "prompts_drawn": 112,
    "seconds": 41.25,
    "before": {"pass_rate": 0.25, "greedy": math.nan},
    "after": None,
    "steps_without_signal": 2,
    "owes_evaluation": True,
    "partial": {
        "counts": {
            "drawn": 16,
            "judged": 2,
            "kept": 1,
            "rounds": 1,
            "reward": 1.5,
            "failures": {"responses": 4, "example": "late"},
        },
        "trajectories": 2,
        "rollout_metrics": {"rollout/pass_rate": 0.5},
        "metrics": {"loss": -0.125},
        "updates": [{"loss": -0.25, "gradient_norm": 1e-3}],
    },
}
# As a run with a critic writes whose last updates were not applied.
SKIPPING: dict[str, Any] = {
    **PROGRESS,
    "skipped_in_a_row": {"policy": 2, "critic": 1},
    "signal": {"judged": 40.5, "kept": 12.25},
    "partial": {**PROGRESS["partial"], "critic_updates": [{"critic/skipped": 1.0}]},
}
# As the version before wrote a step of which some updates were made, and one whose rollouts were being collected.
_FORMER = {name: value for name, value in PROGRESS.items() if name != "partial"} | {"unfinished": None, "drawing": None}
FORMER_UNFINISHED: dict[str, Any] = {
    **_FORMER,
    "unfinished": {
        "rollout_metrics": {"rollout/pass_rate": 0.5},
        "prompts_drawn": 16,
        "trajectories": 2,
        "metrics": {"loss": -0.125},
        "updates": [{"loss": -0.25, "gradient_norm": 1e-3}],
    },
}
FORMER_DRAWING: dict[str, Any] = {
    **_FORMER,
    "drawing": {"drawn": 3, "judged": 2, "rounds": 1, "reward": 1.5, "failures": {"responses": 4, "example": "late"}},
}


def read(record: dict[str, Any]) -> RunState:
    return state_of(checked(record, "here"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    aside = folders.begin(tmp_path, STEP, ["policy"])
    for name in ("__0_0.distcp", "common.pt"):
        (aside / "policy" / name).write_bytes(name.encode() * 9)
    files = folders.flush_and_describe(aside, folders.file_names(aside))
    return folders.publish(aside, files, run="this", progress=PROGRESS)


def meaning(folder: Path) -> str:
    return repr(manifest.read(folder, "this"))


def test_every_flip_is_refused_or_means_the_same(saved: Path) -> None:
    file, before = saved / "manifest.json", meaning(saved)
    whole = file.read_bytes()
    bits = range(8 * len(whole))
    chosen = [*bits[: 8 * 400], *random.Random(0).sample(bits[8 * 400 :], 800)]
    accepted = 0
    for bit in chosen:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            found = meaning(saved)
        except CheckpointError as error:
            assert "\n" not in error.message
            continue
        assert found == before, bit
        accepted += 1
    assert accepted < len(chosen) / 10  # blanks that became other blanks
    file.write_bytes(whole)
    assert meaning(saved) == before


def sealed(folder: Path, **fields: Any) -> None:
    """A manifest that somebody wrote with its checksum."""
    files, progress = manifest.read(folder, "this")
    record = {"name": folder.name, "run": "this", "progress": progress, "files": files, **fields}
    (folder / "manifest.json").write_text(manifest.written(**record))


@pytest.mark.parametrize("step", [10**12, STEP + 1, -STEP, float(STEP), str(STEP), True, None, [STEP]])
def test_the_step_is_the_folders(step: Any, saved: Path) -> None:
    sealed(saved, progress={**PROGRESS, "step": step})
    with pytest.raises(CheckpointError, match=r"manifest\.json has progress\.step="):
        latest(saved.parent, run="this")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], r"files=\[\]"),
        ({"../other": {"bytes": 1, "sha256": "0" * 64}}, "names the file ../other"),
        ({"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "names the file /etc/passwd"),
        ({"a": {"bytes": -1, "sha256": "0" * 64}}, "describes the file a"),
        ({"a": {"bytes": 1, "sha256": "0"}}, "describes the file a"),
        ({"a": 5}, "describes the file a as 5"),
    ],
)
def test_files_are_names_and_sizes_of_the_folder(files: Any, named: str, saved: Path) -> None:
    sealed(saved, files=files)
    with pytest.raises(CheckpointError, match=named):
        latest(saved.parent, run="this")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{}", '{"format": 3}', "[" * 100_000, '{"a":' * 100_000, "\xff", '{"a":1,"a":1}']
)
def test_what_is_no_manifest_is_one_line(text: str, saved: Path) -> None:
    (saved / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: ") as caught:
        latest(saved.parent, run="this")
    assert "\n" not in caught.value.message and len(caught.value.message) < 500


def test_a_manifest_of_another_format_names_the_way_out(saved: Path) -> None:
    record = json.loads((saved / "manifest.json").read_text())
    del record["sha256"]
    (saved / "manifest.json").write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(CheckpointError, match="has format=2, this version reads format=3: continue with the version"):
        latest(saved.parent, run="this")


def places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a record, containers included."""
    below = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [*([path] if path else []), *(place for key, value in below for place in places(value, (*path, key)))]


def changed(record: dict[str, Any], place: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The record with each of `HOSTILE` at one place."""
    for value in HOSTILE:
        copy = json.loads(json.dumps(record))
        *before, last = place
        holder = copy
        for key in before:
            holder = holder[key]
        holder[last] = value
        yield copy


HOSTILE = [None, True, -5, 10**13, 2.5, math.nan, math.inf, "12", [], [1], {}, {"a": "b"}]


@pytest.mark.parametrize("place", places(PROGRESS), ids=lambda place: ".".join(map(str, place)))
def test_progress_is_what_a_run_writes_or_is_refused_by_its_field(place: tuple[Any, ...]) -> None:
    expected = read(PROGRESS)
    assert (expected.step, expected.prompts_drawn) == (STEP, 112)
    for record in changed(PROGRESS, place):
        try:
            found = read(record)
        except CheckpointError as error:
            assert "\n" not in error.message and error.message.startswith(f"here has progress.{place[0]}")
            assert error.hint
            continue
        # What is accepted has the types and the range of what runs write.
        for count in (found.step, found.prompts_drawn):
            assert type(count) is int and 0 <= count <= 10**12
        assert math.isfinite(found.seconds) and found.seconds >= 0


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"progress\.under_way, which this version does not know"):
        read({**PROGRESS, "under_way": []})


@pytest.mark.parametrize("written", [PROGRESS, SKIPPING], ids=["usual", "skipping"])
def test_what_a_run_writes_comes_back(written: dict[str, Any]) -> None:
    failures = {"responses": 4, "error": 0, "timed_out": 0, "died": 0, "example": "late"}
    # Its columns lie in files: until they are read nothing of them is there to be written.
    partial = {**written["partial"], "trajectories": None, "metrics": None}
    expected = {**written, "partial": {**partial, "counts": {**partial["counts"], "failures": failures}}}
    found = checked(read(written).record(), "here")
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("former", [FORMER_UNFINISHED, FORMER_DRAWING], ids=["unfinished", "drawing"])
def test_the_record_of_the_version_before_is_read(former: dict[str, Any]) -> None:
    state = read(former)
    assert (state.step, state.prompts_drawn, state.steps_without_signal) == (STEP, 112, 2)
    assert state.partial is not None
    if former is FORMER_UNFINISHED:
        assert state.partial.counts.drawn == 16 and state.partial.rollout_metrics == {"rollout/pass_rate": 0.5}
        assert state.partial.result.metrics == {"loss": -0.125} and len(state.partial.result.updates) == 1
        assert checked(former, "here")["partial"]["trajectories"] == 2
    else:
        counts = state.partial.counts
        assert (counts.drawn, counts.judged, counts.reward, counts.failures.example) == (3, 2, 1.5, "late")
        assert checked(former, "here")["partial"]["trajectories"] is None
    for place in places(former):
        for record in changed(former, place):
            try:
                found = read(record)
            except CheckpointError as error:
                assert "\n" not in error.message and error.message.startswith("here has progress.") and error.hint
                continue
            assert type(found.step) is int and type(found.prompts_drawn) is int and math.isfinite(found.seconds)
