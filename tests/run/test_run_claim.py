"""A folder is one run's and one process's: the same settings go on from what is there, anything else is refused or removed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import PROJECT, QUICKSTART, environment

from megatron_fork.config import load_config, to_yaml
from megatron_fork.errors import RunFolderError
from megatron_fork.run.claim import claim, new_folder
from megatron_fork.run.context import _MAY_CHANGE
from megatron_fork.run.folder import RunFolder
from megatron_fork.traces import Origin, TracedResponse

LEAVINGS = (
    "checkpoints/LATEST",
    "warm_start/config.json",
    "model/config.json",
    "traces/step-000001.jsonl",
    "metrics.jsonl",
)
# Of every room that determines a run, one field; and of those that do not.
OTHER_RUN = (
    *(
        "seed=5",
        "sft.steps=7",
        "sft.optimizer.learning_rate=1e-4",
        "model.hf_config.num_hidden_layers=3",
        "data.held_out=9",
    ),
    *("selection.tokens=all", "objective.clip_high=0.5", "rollout.samples=8", "optimizer.learning_rate=1e-6"),
)
SAME_RUN = ("run.checkpoint_every=3", "run.wandb=other", "train.steps=99", "rollout.batch_size=5", "rewards.workers=2")


def claimed(folder: Path, *overrides: str) -> list[str]:
    """What was said while `folder` was claimed for the quickstart, and let go again."""
    said: list[str] = []
    config = load_config(QUICKSTART, list(overrides))
    claim(folder, config, may_change=_MAY_CHANGE, say=said.append).close()
    return said


def leave(folder: Path, leavings: set[str], *overrides: str, resolved: bool = True) -> None:
    """As a run with `overrides` would."""
    for name in leavings:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    if resolved:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolved.yaml").write_text(to_yaml(load_config(QUICKSTART, list(overrides))))


SOME = st.sets(st.sampled_from(LEAVINGS), min_size=1)
examples = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(leavings=SOME, other=st.sampled_from(OTHER_RUN))
def test_what_another_run_left_is_refused_by_the_field_or_removed_if_told_to(
    tmp_path_factory: pytest.TempPathFactory, leavings: set[str], other: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "slurm-17.out").write_text("the scheduler's")
    leave(folder, leavings)
    with pytest.raises(RunFolderError, match=other.split("=")[0].removeprefix("model.hf_config.")) as caught:
        claimed(folder, other)
    assert "run.overwrite" in caught.value.hint and "resolved.yaml" in caught.value.hint
    assert all((folder / name).is_file() for name in leavings)  # refused means untouched

    (said,) = claimed(folder, other, "run.overwrite=true")
    assert all(name.split("/")[0] in said for name in leavings)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "slurm-17.out"]


@examples
@given(leavings=SOME, change=st.sampled_from(SAME_RUN))
def test_the_same_run_goes_on(tmp_path_factory: pytest.TempPathFactory, leavings: set[str], change: str) -> None:
    folder = tmp_path_factory.mktemp("run")
    leave(folder, leavings)
    assert claimed(folder, change) == []
    assert all((folder / name).is_file() for name in leavings)


@examples
@given(leavings=SOME)
def test_leavings_of_unknown_settings_are_refused(tmp_path_factory: pytest.TempPathFactory, leavings: set[str]) -> None:
    folder = tmp_path_factory.mktemp("run")
    leave(folder, leavings, resolved=False)
    with pytest.raises(RunFolderError, match=r"no resolved\.yaml"):
        claimed(folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "just words", "\x00"])
def test_a_resolved_recipe_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    leave(tmp_path, {"metrics.jsonl"})
    (tmp_path / "resolved.yaml").write_text(content)
    with pytest.raises(RunFolderError, match=r"resolved\.yaml cannot be read") as caught:
        claimed(tmp_path)
    assert "\n" not in caught.value.message


def test_fields_that_came_later_count_as_their_defaults(tmp_path: Path) -> None:
    leave(tmp_path, {"metrics.jsonl"})
    kept = (tmp_path / "resolved.yaml").read_text().replace("  dynamic_sampling: true\n", "")
    (tmp_path / "resolved.yaml").write_text(kept)
    claimed(tmp_path)
    with pytest.raises(RunFolderError, match=r"rollout\.dynamic_sampling"):
        claimed(tmp_path, "rollout.dynamic_sampling=false")


def test_a_command_that_a_scheduler_repeats_does_not_wipe_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, set(LEAVINGS))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert claimed(tmp_path, "run.overwrite=true") == []
    assert (tmp_path / "checkpoints" / "LATEST").is_file()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        claimed(tmp_path / "run")


HOLD = """
import sys
from pathlib import Path
from megatron_fork.config import load_config
from megatron_fork.run.claim import claim
lock = claim(Path(sys.argv[1]), load_config(Path(sys.argv[2])), may_change=(), say=print)
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path), str(QUICKSTART)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment(), cwd=PROJECT) as first:
        assert first.stdout is not None and first.stdout.readline() == "claimed\n"
        with pytest.raises(RunFolderError, match=f"is in use by process {first.pid} on "):
            claimed(tmp_path)
        first.kill()
    assert claimed(tmp_path) == []


def test_names_by_the_second_are_not_shared(tmp_path: Path) -> None:
    names = [new_folder(tmp_path / "runs" / "quickstart-now").name for _ in range(3)]
    assert names == ["quickstart-now", "quickstart-now.2", "quickstart-now.3"]


@examples
@given(
    lines=st.lists(st.tuples(st.sampled_from(["sft", "train", "evaluation"]), st.integers(0, 6)), max_size=20),
    warm=st.none() | st.integers(0, 6),
    after=st.none() | st.integers(-1, 6),
    evaluated=st.none() | st.integers(-1, 6),
    torn=st.sampled_from(["", '{"stage": "tr', "[]", '{"stage": "unknown", "step": 1}', '{"stage": "sft"}']),
)
def test_what_is_written_again_is_forgotten_first(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[str, int]],
    warm: int | None,
    after: int | None,
    evaluated: int | None,
    torn: str,
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"), writes=True)
    for stage, step in lines:
        folder.metrics(stage, step, {})
        folder.traces(step, [TracedResponse("training", "0", "p", [1], "a", 0, "r", [2], "stop", "trained")], Origin())
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    folder.forget(warm_start_after=warm, after=after, evaluations_after=evaluated)
    text = (folder.path / "metrics.jsonl").read_text()
    kept = [(record["stage"], record["step"]) for record in map(json.loads, text.splitlines())]
    limits = {"sft": warm, "train": after, "evaluation": evaluated}
    assert kept == [(stage, step) for stage, step in lines if limits[stage] is None or step <= limits[stage]]
    traced = {int(path.stem.removeprefix("step-")) for path in (folder.path / "traces").glob("*")}
    assert traced == {step for _, step in lines if after is None or step <= after}
