"""A step that was stopped between two updates ends, under any layout, as the step that was not stopped."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import model_config, name_of, trajectories
from ranks import run_on_ranks

PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"tensor": 2}, {"tensor": 2}),
    ({}, {"pipeline": 2}),
    ({"context": 2}, {}),
]
UPDATES_BEFORE_THE_STOP = 2


def finished_later(folder: str, entropy_policy: str, stops_again: bool) -> list[tuple[float, Any, Any]]:
    """For each pair how far the weights are from those of the whole step, and the metrics of both."""
    return [
        _finished_later(Path(folder, str(number)), *pair, entropy_policy=entropy_policy, stops_again=stops_again)
        for number, pair in enumerate(PAIRS)
    ]


def _finished_later(
    folder: Path, written: dict[str, Any], read_by: dict[str, Any], *, entropy_policy: str, stops_again: bool
) -> tuple[float, Any, Any]:
    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import BESIDE, Checkpoints, Saved, load_training_state
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_initial
    from megatron_fork.distributed import Layout, ParallelConfig, parallel_layout
    from megatron_fork.errors import StopRequested
    from megatron_fork.models import ModelConfig as Source
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        StepResult,
        TrainedModels,
        split_into_mini_batches,
    )
    from megatron_fork.rollout import RolloutCounts
    from megatron_fork.run import PartialStep, RunState, step_files
    from megatron_fork.run.state import checked, state_of

    def made(layout: Layout) -> Policy:
        adam = OptimizerConfig(learning_rate=1e-3)
        return Policy(PolicyConfig(tokens_per_micro_batch=70), adam, model_config(tied=True, experts=False), layout)

    def learn(policy: Policy, step: PartialStep, updates: int) -> StepResult:
        asked = iter(range(updates))

        def stop_point() -> None:
            if next(asked, None) is None:
                raise StopRequested

        goal = objective.ObjectiveConfig()
        config = selection.SelectionConfig(entropy_policy=entropy_policy)  # type: ignore[arg-type]
        with suppress(StopRequested):
            Learner(TrainedModels(policy), config, goal, mismatch_limit=100.0).step(
                split_into_mini_batches(step.trajectories or [], 1, group_size=4, seed=5),
                step=3,
                rates=LearningRates(1e-3),
                clock=Clock(),
                result=step.result,
                stop_point=stop_point,
            )
        return step.result

    def drawn() -> PartialStep:
        return PartialStep(RolloutCounts(drawn=6), trajectories(), {"rollout/pass_rate": 0.5})

    def read(saved: Saved) -> PartialStep:
        record = checked(saved.progress, "here")
        step = state_of(record).partial
        assert step is not None
        step_files.read_step(saved.folder / BESIDE, record["partial"], step)  # type: ignore[arg-type]
        assert step.trajectories == trajectories() and step.rollout_metrics == drawn().rollout_metrics
        return step

    checkpoints = Checkpoints(folder)

    def save(step: PartialStep, policy: Policy, layout: Layout) -> None:
        checkpoints.save(
            1,
            {"policy": policy},
            dict(RunState(step=1, partial=step).record()),
            is_whole=False,
            write_beside=lambda beside: step_files.write_step(beside, step, layout),
        )
        checkpoints.wait()

    with parallel_layout(ParallelConfig(**written)) as layout:
        policy = made(layout)
        load_initial(policy.model, Source(hf_config={"model_type": "qwen3"}), seed=11)
        policy.weights_changed()
        begun = drawn()
        part = learn(policy, begun, UPDATES_BEFORE_THE_STOP)
        assert len(part.updates) == UPDATES_BEFORE_THE_STOP
        save(begun, policy, layout)
        whole_policy = made(layout)
        load_initial(whole_policy.model, Source(hf_config={"model_type": "qwen3"}), seed=11)
        whole_policy.weights_changed()
        whole = learn(whole_policy, drawn(), 100)
        expected = {name: tensor.clone() for name, tensor in iter_hf_weights(whole_policy.model)}
    saved = checkpoints.latest()
    assert saved is not None
    with parallel_layout(ParallelConfig(**read_by)) as layout:
        policy = made(layout)
        load_training_state(saved, {"policy": policy})
        if stops_again:  # before it went on
            save(read(saved), policy, layout)
            saved = checkpoints.latest()
            assert saved is not None
        rest = learn(policy, read(saved), 100)
        found = dict(iter_hf_weights(policy.model))
        difference = max(float((found[name] - each).norm() / each.norm()) for name, each in expected.items())
    return difference, (rest.metrics, rest.updates), (whole.metrics, whole.updates)


@pytest.mark.slow
@pytest.mark.parametrize(("entropy_policy", "stops_again"), [("current", True), ("old", False)])
def test_a_stopped_step_ends_as_the_whole(tmp_path: Path, entropy_policy: str, stops_again: bool) -> None:
    """Also where the run that takes it up is stopped once more before it has gone on."""
    results = run_on_ranks(
        finished_later, 2, str(tmp_path), entropy_policy, stops_again, time_limit=400.0, have_children=True
    )
    for pair, (difference, rest, whole) in zip(PAIRS, results[0], strict=True):
        named = " -> ".join(name_of(each, {}) for each in pair)
        assert len(whole[1]) == 6, named
        if pair[0] == pair[1]:
            assert difference == 0.0 and rest == whole, named
        else:
            assert difference <= 1e-5, named
            for ours, theirs in zip(rest[1], whole[1], strict=True):
                assert torch.allclose(
                    torch.tensor(list(ours.values())), torch.tensor(list(theirs.values())), rtol=1e-4, atol=1e-6
                )


@pytest.mark.slow
def test_rollouts_of_which_nothing_was_taught_are_kept(tmp_path: Path) -> None:
    from megatron_fork import distributed
    from megatron_fork.experience import VersionSpan
    from megatron_fork.rollout import RolloutCounts
    from megatron_fork.run import PartialStep, step_files

    distributed.initialize()
    spans = (VersionSpan(3, 0, 5), VersionSpan(4, 5, 9))
    counts, metrics = RolloutCounts(drawn=6), {"rollout/pass_rate": 0.5}
    drawn = PartialStep(counts, [replace(each, versions=spans) for each in trajectories()], metrics)
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        step_files.write_step(tmp_path, drawn, layout)

    def read() -> PartialStep:
        step = PartialStep(counts, None, metrics)
        step_files.read_step(tmp_path, drawn.record(), step)
        return step

    assert read() == drawn

    # As such files were before: tuples of numbers.
    (part,) = tmp_path.glob("part-*.pt")
    kept = torch.load(part, weights_only=True)
    for each in kept:
        for column in ("response", "rollout_logprob"):
            each["trajectory"][column] = tuple(each["trajectory"][column].tolist())
    torch.save(kept, part)
    assert read() == drawn
