"""Jobs go in while others are scored; every number comes out once, whatever happens to workers, and never too many wait."""

from __future__ import annotations

import random
import threading
import time

import pytest
from support.misbehaving import __name__ as module

from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, Score, score

JOBS = [("op+1 " * (index % 4) + "done", f"0 {index % 3}") for index in range(120)]
EXPECTED = [score(*job, kind="reach") for job in JOBS]


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_comes_out_once(workers: int) -> None:
    with RewardPool(RewardsConfig(kind="reach", workers=workers)) as pool, pool.stream() as stream:
        seen: dict[int, Score] = {}
        for place, job in enumerate(JOBS):
            assert stream.submit(*job) == place
            for number, result in stream.finished():
                assert number not in seen
                seen[number] = result
        for number, result in stream.drain():
            assert number not in seen
            seen[number] = result
        assert [seen[number] for number in range(len(JOBS))] == EXPECTED == stream.results()
        assert list(stream.drain()) == list(stream.finished()) == []


def test_a_full_backlog_makes_the_caller_wait() -> None:
    with RewardPool(RewardsConfig(kind=f"{module}:sleeps", backlog=3)) as pool, pool.stream() as stream:
        most = 0
        for _ in range(12):
            stream.submit("0.02", "0.02")
            most = max(most, len(pool._dispatcher.waiting))
        assert most <= 3
        assert [result.value for result in stream.results()] == [1.0] * 12


def test_thousands_of_jobs_at_once() -> None:
    """More than the thread can be woken for: waking must not wait for it."""
    with RewardPool(RewardsConfig(kind="reach", backlog=10_000)) as pool:
        assert pool.score_many(JOBS * 40) == EXPECTED * 40


def test_dying_workers_lose_only_their_job() -> None:
    generator = random.Random(0)
    jobs = [("die", "x") if generator.random() < 0.1 else (str(place), str(place)) for place in range(60)]
    with RewardPool(RewardsConfig(kind=f"{module}:dies", workers=2)) as pool:
        results = pool.score_many(jobs)
        deaths = sum(response == "die" for response, _ in jobs)
        assert deaths > 2
        assert (pool.counts.scored, pool.counts.died) == (60, deaths)
    for (response, _), result in zip(jobs, results, strict=True):
        assert result == (Score(0.0, "verifier died") if response == "die" else Score(1.0, "custom verifier"))


def test_streams_of_several_threads_do_not_mix() -> None:
    found: dict[int, list[Score]] = {}

    def use(pool: RewardPool, number: int) -> None:
        mine = JOBS[number::3]
        with pool.stream() as stream:
            for job in mine:
                stream.submit(*job)
            scores = dict(stream.drain())
        found[number] = [scores[place] for place in range(len(mine))]

    with RewardPool(RewardsConfig(kind="reach", workers=2, backlog=5)) as pool:
        threads = [threading.Thread(target=use, args=(pool, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: EXPECTED[number::3] for number in range(3)}


def test_a_stream_that_is_left_gives_up_its_jobs() -> None:
    with RewardPool(RewardsConfig(kind=f"{module}:sleeps", timeout_seconds=60.0)) as pool:
        with pool.stream() as stream:
            for _ in range(5):
                stream.submit("30", "30")
        assert pool.score_many([("0", "0")])[0].value == 1.0
        assert not pool._dispatcher.waiting


def test_closing_ends_whoever_waits() -> None:
    caught: list[RewardError] = []
    pool = RewardPool(RewardsConfig(kind=f"{module}:sleeps", timeout_seconds=60.0))
    pool.warm()

    def wait() -> None:
        try:
            pool.score_many([("30", "30")] * 3)
        except RewardError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool._dispatcher._jobs:
        time.sleep(0.01)
    pool.close()
    thread.join(10)
    assert [error.message for error in caught] == ["the reward pool is closed"]
    with pytest.raises(RewardError, match="closed"):
        pool.stream()


def test_warm_starts_every_worker() -> None:
    with RewardPool(RewardsConfig(kind="reach", workers=3)) as pool:
        assert pool.warm() == 3
        assert pool.confinement
        pool.score_many(JOBS)
        assert pool.counts.workers_started == 3
