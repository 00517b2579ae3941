"""Engines of several ranks draw as one: the groups of one rank, whoever drew them; a tail stops everywhere and goes on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import QUICKSTART, TINY, metrics_of, run
from ranks import run_on_ranks
from test_collector import parity_pool
from transformers import AutoModelForCausalLM

from megatron_fork import data, rollout
from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.errors import RolloutError
from megatron_fork.rollout import Collector, EmbeddedEngine, LoadBalancedEngine, Request, Rollouts

BATCH = 5


class Counting(EmbeddedEngine):
    """Counts what it is given, and fails at a request with a negative number."""

    given = 0

    def submit(self, requests) -> None:
        self.given += len(requests)
        if any(request.number < 0 for request in requests):
            raise RolloutError("it does not want this one", hint="ask for another")
        super().submit(requests)


def new_engine() -> Counting:
    hf_config = resolve_config(load_config(QUICKSTART).model)
    torch.manual_seed(0)
    weights = list(AutoModelForCausalLM.from_config(hf_config).named_parameters())
    engine = Counting(
        hf_config, stop_tokens=(1,), pad_token=0, batch_size=BATCH, device=torch.device("cpu"), dtype=torch.float32
    )
    engine.update_weights(weights, 0)
    return engine


def dealt(engine: Counting, ranks_per_engine: int = 1) -> LoadBalancedEngine:
    return LoadBalancedEngine(engine, world=dist.group.WORLD, ranks_per_engine=ranks_per_engine, batch_size=BATCH)


def collector(engine, **settings) -> Collector:
    config = rollout.RolloutConfig(samples=3, max_rounds=50, **{"max_response_tokens": 8, **settings})
    source = data.load_prompts(load_config(QUICKSTART).data, None)
    world = dist.group.WORLD if dist.is_initialized() else None
    return Collector(config, engine, source, parity_pool(), groups=4, world=world, seed=4)


def asked(count: int, tokens: int = 40) -> list[Request]:
    return [Request(number, (5, 6, 7 + number % 3), number, 1.0, tokens) for number in range(count)]


def collected(ranks_per_engine: int) -> tuple[Rollouts, int]:
    engine = new_engine()
    rollouts = collector(dealt(engine, ranks_per_engine)).collect(start=0, version=0)
    return rollouts, engine.given


@pytest.mark.parametrize(("ranks", "ranks_per_engine"), [(3, 1), (4, 2)])
def test_a_step_has_the_groups_of_one_rank(ranks: int, ranks_per_engine: int) -> None:
    expected = collector(new_engine()).collect(start=0, version=0)
    results = run_on_ranks(collected, ranks, ranks_per_engine)
    for rollouts, given in results:
        assert given > 0
        for mine, one in zip(rollouts.trajectories, expected.trajectories, strict=True):
            assert (mine.response, mine.prompt, mine.reward) == (one.response, one.prompt, one.reward)
            assert mine.rollout_logprob == pytest.approx(one.rollout_logprob, abs=1e-5)
    drawn = sum(given for _, given in results) // ranks_per_engine
    assert drawn == 3 * expected.groups_sampled


def steps_with_tails(steps: int) -> tuple[list[Rollouts], int]:
    engine = new_engine()
    made = collector(dealt(engine), max_staleness=2, tail="stop", max_response_tokens=40)
    drawn, rollouts = 0, []
    for version in range(steps):
        engine.version = version
        rollouts.append(made.collect(start=drawn, version=version))
        drawn += rollouts[-1].prompts_drawn
    return rollouts, len(made.in_flight())


def test_tails_are_stopped_on_all_ranks_and_go_on_anywhere() -> None:
    (first, in_flight), (second, nothing) = run_on_ranks(steps_with_tails, 2, 5)
    assert first == second and nothing == 0 and in_flight == first[-1].groups_in_flight > 0
    mixed, seen = 0, set()
    for version, step in enumerate(first):
        assert len(step.trajectories) == 12
        for each in step.trajectories:
            assert each.versions[0].start == 0 and each.versions[-1].end == len(each.response)
            assert all(one.end == two.start and one.version < two.version for one, two in pairwise(each.versions))
            assert version - 2 <= each.weight_version <= each.versions[-1].version <= version
            mixed += len(each.versions) > 1
        seen |= {(version, each.prompt.index) for each in step.trajectories}
    assert mixed > 0 and len(seen) == 20


def an_abort_in_the_middle() -> tuple[list[int], list[int], list[int]]:
    engine = dealt(new_engine())
    finished = []
    for completion in engine.generate(asked(30)):
        finished.append(completion.number)
        if len(finished) == 3:
            engine.abort()
    left = engine.unfinished()
    begun = sum(len(request.begun.tokens) > 0 for request in left)
    rest = [completion.number for completion in engine.generate(left)]
    whole = {completion.number: completion.tokens for completion in engine.generate(asked(30))}
    again = {completion.number: completion.tokens for completion in engine.generate(asked(30))}
    assert whole == again
    return finished, rest, [begun, len(whole)]


def a_failure() -> list[str]:
    engine, heard = dealt(new_engine()), []
    bad = Request(-1, (5,), 0, 1.0, 4)
    try:
        list(engine.generate([*asked(1), bad]))  # the second goes to the other rank
    except RolloutError as error:
        heard += [error.message, error.hint]
    heard += [str(len(list(engine.generate(asked(6)))))]
    return heard


def abandoned() -> int:
    """Whoever takes completions has enough after the first; the next call has nothing of the last."""
    engine = dealt(new_engine())
    drawing = engine.generate(asked(20))
    if dist.get_rank() == 0:
        next(drawing)
        drawing.close()
    else:
        list(drawing)
    return len(list(engine.generate(asked(3))))


def one_after_the_other() -> tuple:
    return an_abort_in_the_middle(), a_failure(), abandoned()


def test_calls_that_end_early() -> None:
    """Aborted and continued; failed on one rank, which is a failure on all; abandoned, and forgotten."""
    (aborted, failed, after), (*others, nothing) = run_on_ranks(one_after_the_other, 2)
    finished, rest, (begun, whole) = aborted
    assert len(finished) >= 3 and begun > 0 and sorted(finished + rest) == list(range(30)) and whole == 30
    assert failed == ["it does not want this one", "ask for another", "6"]
    assert others == [([], [], [0, 0]), ["it does not want this one", "ask for another", "0"]]
    assert (after, nothing) == (3, 0)


def test_a_run_ahead_of_training_on_two_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ahead = ["rollout.max_staleness=1", "rollout.tail=stop", "objective.correction=tis", "parallel.tensor=2"]
    code, output = run("train", str(QUICKSTART), *TINY, *ahead, f"run.folder={folder}", ranks=2, limit=300.0)
    assert code == 0, output
    steps = metrics_of(folder, "train")
    assert len(steps) == 4 and all(step["mismatch/max"] < 1e-4 for step in steps)
    assert max(step["rollout/staleness_max"] for step in steps) == 1
