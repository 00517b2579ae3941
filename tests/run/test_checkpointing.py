"""Wherever a step is broken off, a checkpoint has what there is of it, and what cannot be trusted is not kept."""

import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.commands import QUICKSTART
from support.layouts import model_config, trajectories

from megatron_fork import distributed
from megatron_fork.checkpoint import BESIDE, Checkpoints
from megatron_fork.config import AlertsConfig, load_config
from megatron_fork.errors import CheckpointError, GradientError, Interrupted, Preempted, RolloutError, StopRequested
from megatron_fork.experience import KeptTokens
from megatron_fork.policy import (
    OptimizerConfig,
    Policy,
    PolicyConfig,
    SkippedUpdates,
    StepResult,
    TrainedModels,
    Update,
)
from megatron_fork.policy.update_metrics import of_critic_update, over_updates
from megatron_fork.rewards import Failures
from megatron_fork.rollout import PartialResponse, PromptGroup, RolloutCounts
from megatron_fork.run import PartialStep, RunContext, RunState, checkpointing, save
from megatron_fork.run.folder import RunFolder
from megatron_fork.run.interruption import StopRequest
from megatron_fork.run.state import checked, state_of
from megatron_fork.run.step_files import read_groups, read_step

DRAWN = trajectories(kept=True)
KEPT = KeptTokens()
for each in ([5, 7], []):
    KEPT.append(each)
GROUP = PromptGroup(
    3,
    DRAWN[0].prompt,
    1,
    answers={0: DRAWN[0]},
    begun={1: PartialResponse((5, 6), (-0.5, -0.25), kept=KEPT), 2: PartialResponse()},
)
COUNTS = RolloutCounts(drawn=9, judged=4, reward=6.0, rounds=2, failures=Failures(responses=16, died=1, example="died"))
COLUMNS = {
    each.number: {name: torch.rand(len(each.response)) for name in ("advantage_t", "rollout_logprob_t", "entropy_t")}
    for each in DRAWN
}
PARTIAL = {
    "drawing": PartialStep(COUNTS, in_flight=[GROUP]),
    "drawn": PartialStep(COUNTS, DRAWN, {"rollout/pass_rate": 0.5}, in_flight=[GROUP]),
    "updating": PartialStep(
        COUNTS, DRAWN, {"rollout/rounds": 2}, StepResult({"loss": 0.5}, [{"loss": 0.5}], columns=COLUMNS)
    ),
}


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Any]:
    """What `checkpointing` needs of a run, around real checkpoints, signals and ranks."""
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout, StopRequest() as stop:
        surroundings = SimpleNamespace(
            config=load_config(
                QUICKSTART, ["rollout.max_staleness=1", "rollout.tail=stop", "objective.correction=tis"]
            ),
            layout=layout,
            stop=stop,
            folder=SimpleNamespace(path=tmp_path),
            checkpoints=Checkpoints(tmp_path / "checkpoints"),
        )
        policy = Policy(PolicyConfig(), OptimizerConfig(), model_config(tied=True, experts=False), layout)
        surroundings.models = TrainedModels(policy)
        surroundings.asked_to_stop = lambda: RunContext.asked_to_stop(surroundings)  # type: ignore[arg-type]
        surroundings.interrupted = lambda what: RunContext.interrupted(surroundings, what)  # type: ignore[arg-type]
        yield surroundings


def read(folder: Path) -> RunState:
    saved = Checkpoints(folder / "checkpoints").latest()
    assert saved is not None
    record = checked(saved.progress, "here")
    state = state_of(record)
    holder = state.partial or state
    if state.partial is not None:
        read_step(saved.folder / BESIDE, record["partial"], state.partial)  # type: ignore[arg-type]
    holder.in_flight = read_groups(saved.folder / BESIDE)
    return state


def same(found: PartialStep, expected: PartialStep) -> bool:
    columns = (found.result.columns, expected.result.columns)
    are_alike = all(
        name in columns[0][number] and columns[0][number][name].equal(column)
        for number, named in columns[1].items()
        for name, column in named.items()
    )
    for each in (found, expected):
        each.result = replace(each.result, columns={})
    begun, wanted = (
        [[(list(part.tokens), part.kept) for part in group.begun.values()] for group in each.in_flight]
        for each in (found, expected)
    )
    return are_alike and replace(found, in_flight=[]) == replace(expected, in_flight=[]) and begun == wanted


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "stopped after step 4 of 50"),
        ("drawing", "stopped while the rollouts of step 5 of 50 were collected"),
        ("drawn", "stopped within step 5 of 50, after 0 updates"),
        ("updating", "stopped within step 5 of 50, after 1 updates"),
    ],
)
def test_a_stop_leaves_what_there_is(place: str, said: str, context: Any, tmp_path: Path) -> None:
    state = RunState(step=4, prompts_drawn=70, partial=replace(PARTIAL[place]) if place else None, in_flight=[GROUP])
    with pytest.raises(Preempted, match=said), checkpointing(context, context.models, state):
        os.kill(os.getpid(), signal.SIGTERM)
        context.stop.local_stop_point()
    found = read(tmp_path)
    assert (found.step, found.prompts_drawn) == (4, 70)
    if place:
        assert found.partial is not None and same(found.partial, replace(PARTIAL[place]))
    else:
        assert found.partial is None and found.in_flight[0].answers == GROUP.answers


@pytest.mark.parametrize(("place", "is_kept"), [("drawing", True), ("drawn", False), ("updating", True)])
def test_a_failure_keeps_all_but_rollouts_that_are_not_the_policys(
    place: str, is_kept: bool, context: Any, tmp_path: Path
) -> None:
    """Before any update what fails is the comparison of log-probs: the same rollouts would fail whoever resumes."""
    state = RunState(step=4, partial=replace(PARTIAL[place]))
    with pytest.raises(RolloutError, match="it is gone"), checkpointing(context, context.models, state):
        raise RolloutError("it is gone")
    assert (read(tmp_path).partial is not None) == is_kept


def test_gradients_that_end_the_run_in_its_first_step_are_an_alert(context: Any, tmp_path: Path) -> None:
    """The step has no metrics to look at. A resumed run repeats it, and tells it again only if it ends so again."""
    said: list[str] = []

    def opened() -> RunFolder:
        return RunFolder(tmp_path, writes=True, alerts=AlertsConfig(stalled_seconds=0), say=said.append)

    def alerts() -> list[tuple[int, str, str]]:
        lines = map(json.loads, (tmp_path / "alerts.jsonl").read_text().splitlines())
        return [(each["step"], each["cause"], each["state"]) for each in lines]

    skips, bad = SkippedUpdates(0), Update(math.nan, math.inf, 0.0, {}, is_applied=False)
    skips.note("policy", bad, "step 1, update 1 of 4")
    context.folder = opened()
    with (
        pytest.raises(GradientError),
        checkpointing(context, context.models, RunState(partial=replace(PARTIAL["updating"]))),
    ):
        skips.check()
    context.folder.close()
    assert alerts() == [(1, "not_finite", "raised")] and "train.max_skipped_updates=0" in said[0]
    folder = opened()
    folder.forget(after=0)
    assert not alerts()
    folder.metrics("train", 1, {"loss": 0.5, "update/skipped": 0.0})
    folder.close()
    assert not alerts() and len(said) == 1


def test_what_is_saved_already_is_not_written_again(context: Any, tmp_path: Path) -> None:
    state = RunState(step=4, partial=replace(PARTIAL["updating"]))
    save(context, context.models, state)
    context.checkpoints.wait()
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    written = folder.stat().st_ino
    resumed = read(tmp_path)
    assert resumed.partial is not None
    resumed.partial.is_saved = True
    with pytest.raises(Interrupted), checkpointing(context, context.models, resumed):
        os.kill(os.getpid(), signal.SIGINT)
        context.stop.local_stop_point()
    assert folder.stat().st_ino == written


def test_other_errors_are_no_reason_to_save(context: Any, tmp_path: Path) -> None:
    """The state may be in the middle of a change then."""
    with pytest.raises(ValueError, match="ours"), checkpointing(context, context.models, RunState(step=4)):
        raise ValueError("ours")
    assert not (tmp_path / "checkpoints").exists()
    assert not issubclass(StopRequested, (RolloutError, ValueError))


def test_updates_of_a_critic_that_were_skipped_are_counted_on_after_a_resume() -> None:
    """What a checkpoint keeps of them is what was there, also a loss that is not finite."""
    skipped = Update(math.nan, math.inf, 0.0, {}, is_applied=False, suspects=(1, 2))
    result = StepResult({"loss": 0.5}, [{"loss": -0.25}], [of_critic_update(skipped)])
    state = RunState(step=2, prompts_drawn=12, skipped_in_a_row={"critic": 1})
    state.partial = PartialStep(RolloutCounts(drawn=6), result=result)
    resumed = state_of(checked(json.loads(json.dumps(state.record())), "here"))
    assert resumed.partial is not None
    assert repr(resumed.partial.result.critic_updates) == repr(result.critic_updates)
    assert over_updates(resumed.partial.result.critic_updates, "critic/skipped") == {"critic/skipped": 1.0}
    skips = SkippedUpdates(1, dict(resumed.skipped_in_a_row))
    skips.note("critic", skipped, "step 3, update 2 of 4")
    with pytest.raises(GradientError, match="2 updates in a row of the critic"):
        skips.check()


def test_what_was_seen_of_signal_is_kept_over_a_resume() -> None:
    """To the last bit: it decides how many responses share a batch."""
    state = RunState()
    for judged, kept in ((48, 16), (110, 16), (33, 7)):
        state.partial = PartialStep(RolloutCounts(drawn=judged, judged=judged, kept=kept))
        state.finish_step(is_evaluated=lambda step: False)
    assert (state.signal.judged, state.signal.kept) == (100.0, 19.0)
    resumed = state_of(checked(json.loads(json.dumps(state.record())), "here"))
    assert resumed.signal == state.signal and resumed == state
    with pytest.raises(CheckpointError, match=r"progress\.signal\.kept=-1"):
        checked({**state.record(), "signal": {"judged": 1.0, "kept": -1.0}}, "here")
