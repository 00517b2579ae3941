"""The simulated cluster: exact where lengths do not vary; nothing is lost or drawn twice, whatever servers and ranks do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated_run import Prompts, SimulatedRun, Trainer
from support.simulated_servers import Decoding, SimulatedServers, TrainerLost, log_normal

from megatron_fork.rollout import RolloutConfig

DECODING = Decoding(9.0, 0.5, 30.0, 10**9, 20_000.0)
TRAINER = Trainer(50_000.0, 10_000.0, 7.0, serial_seconds=3.0, checkpoint_seconds=4.0)
PROMPT, SAMPLES = 100, 4


def run_of(engine: SimulatedServers, groups: int, checkpoint_every: int = 0, **named) -> SimulatedRun:
    config = RolloutConfig(
        engine="vllm", servers=["http://simulated"], samples=SAMPLES, max_response_tokens=4000, max_rounds=50, **named
    )
    prompts = Prompts(PROMPT, (0.9, 0.9))
    return SimulatedRun(config, engine, TRAINER, prompts, groups=groups, checkpoint_every=checkpoint_every)


@pytest.mark.parametrize(("servers", "groups", "tokens"), [(1, 2, 50), (4, 8, 1000), (3, 6, 4000)])
def test_without_variance_a_step_takes_exactly_what_it_must(servers, groups, tokens) -> None:
    run = run_of(SimulatedServers(servers, DECODING, lambda seed: tokens), groups, 2, dynamic_sampling=False)
    rows = [run.step() for _ in range(4)]
    each = groups * SAMPLES // servers
    context = DECODING.context_ms / 1e9 * (each * PROMPT * tokens + each * tokens * tokens / 2)
    decoding = (DECODING.base_ms + DECODING.each_ms * each) / 1e3 * tokens + context
    trained = groups * SAMPLES * tokens
    for step, row in enumerate(rows, 1):
        assert row.rollout == pytest.approx(each * PROMPT / DECODING.prefill_tokens_per_second + decoding, rel=1e-6)
        assert row.trained == trained and row.generated == pytest.approx(trained, rel=1e-6)
        assert (row.statistics, row.update) == (trained / 50_000, trained / 10_000)
        assert (row.serial, row.sync, row.checkpoint) == (3.0, 7.0, 4.0 if step % 2 == 0 else 0.0)
    assert run.engine.clock == pytest.approx(sum(row.seconds for row in rows), rel=1e-9)


def test_a_cache_for_half_of_the_responses_makes_two_waves() -> None:
    """The second half waits until the first has ended; only reading it twice comes on top where it began too early."""
    tokens, each = 1000, 8
    roomy = run_of(SimulatedServers(1, DECODING, lambda seed: tokens), 2, dynamic_sampling=False).step()
    half = Decoding(9.0, 0.5, 30.0, each * (PROMPT + tokens) // 2, 20_000.0)
    tight = run_of(SimulatedServers(1, half, lambda seed: tokens), 2, dynamic_sampling=False).step()
    assert roomy.put_back == 0 < tight.put_back
    assert tight.generated == pytest.approx(each * tokens, rel=1e-6)
    assert roomy.rollout < tight.rollout < 2.5 * roomy.rollout


@settings(max_examples=25, deadline=None)
@given(
    servers=st.integers(1, 5),
    staleness=st.integers(0, 2),
    tail=st.sampled_from(["generate", "stop"]),
    cache=st.sampled_from([6_000, 20_000, 10**9]),
    dynamic_sampling=st.booleans(),
    losses=st.lists(st.tuples(st.integers(0, 4), st.floats(0.0, 40.0)), max_size=4),
)
def test_every_response_is_whole_and_none_is_too_old(servers, staleness, tail, cache, dynamic_sampling, losses) -> None:
    lengths = log_normal(700.0, 0.8, 4000)
    engine = SimulatedServers(servers, Decoding(9.0, 0.5, 30.0, cache, 20_000.0), lengths)
    run = run_of(engine, 5, max_staleness=staleness, tail=tail, dynamic_sampling=dynamic_sampling)
    trained, losses = [], [(place % servers, seconds) for place, seconds in losses]
    collect = run.collector.collect

    def collected(**named):
        if losses:
            engine.lose_server(*losses.pop())
        rollouts = collect(**named)
        trained.extend(rollouts.trajectories)
        return rollouts

    run.collector.collect = collected
    for _ in range(5):
        row = run.step()
        assert row.staleness_max <= staleness and row.seconds > 0
    seeds = [each.response[0] for each in trained]
    assert len(set(seeds)) == len(seeds) == 5 * 5 * SAMPLES
    for each in trained:
        assert len(each.response) == lengths(each.response[0])
        assert [span.start for span in each.versions] == [0, *(span.end for span in each.versions[:-1])]
        assert each.versions[-1].end == len(each.response)
    drawn = sum(map(len, (each.response for each in trained)))
    assert engine.generated >= drawn - 1


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_that_loses_its_trainer_trains_the_same_prompts(staleness) -> None:
    """It goes on from the last checkpoint; only the steps since then and the restart are lost."""
    lengths = log_normal(700.0, 0.8, 4000)
    whole = run_of(SimulatedServers(3, DECODING, lengths), 5, 2, max_staleness=staleness)
    expected = [whole.step() for _ in range(6)]
    ends_at = sum(row.seconds for row in expected[:5]) + 1.0
    run = run_of(SimulatedServers(3, DECODING, lengths), 5, 2, max_staleness=staleness)
    run.engine.ends_at = ends_at
    rows = []
    with pytest.raises(TrainerLost):
        while True:
            rows.append(run.step())
    assert len(rows) == 5 and run.engine.clock == ends_at
    engine = SimulatedServers(3, DECODING, lengths)
    run.start_again(engine)
    assert run.version == 4
    again = [run.step() for _ in range(2)]
    if staleness == 0:
        assert [row.trained for row in again] == [row.trained for row in expected[4:]]
        assert engine.clock == pytest.approx(sum(row.seconds for row in expected[4:]), rel=1e-9)
    assert run.version == 6 and math.isfinite(engine.clock)
