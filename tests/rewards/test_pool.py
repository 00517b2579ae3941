"""A pool returns every score once and in order, and only the job that costs a worker its life pays for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from megatron_fork.errors import ConfigError
from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, Score, score
from megatron_fork.rewards.frames import encode
from megatron_fork.rewards.process import WorkerProcess

# `math` computes nothing of this size; math-verify does, and hangs.
HANGING = (r"\boxed{10^{10^{10}}}", "10^{10^{9}}+1")
REACH = [("op+1 " * (index % 4) + "done", f"0 {index % 3}") for index in range(200)]


@pytest.fixture(scope="module")
def reach() -> Iterator[RewardPool]:
    with RewardPool(RewardsConfig(kind="reach", workers=2)) as pool:
        yield pool


def workers_of(pool: RewardPool) -> list[WorkerProcess]:
    return list(pool._dispatcher._workers)


def pids(pool: RewardPool) -> list[int]:
    return [worker.process.pid for worker in workers_of(pool)]


def children() -> set[int]:
    """The processes whose parent is this one, zombies included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(status.parent.name))
    return found


def gone(pid: int) -> bool:
    """True for a zombie too: nobody may be there to reap an orphan."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_order_is_kept(reach: RewardPool) -> None:
    assert reach.score_many(REACH) == [score(*job, kind="reach") for job in REACH]
    assert reach.score_many([]) == []


def test_no_workers_scores_in_process() -> None:
    before = children()
    with RewardPool(RewardsConfig(kind="reach", workers=0)) as pool:
        assert pool.score_many(REACH) == [score(*job, kind="reach") for job in REACH]
        assert children() == before


def test_hanging_jobs_score_zero_and_the_others_are_unaffected() -> None:
    jobs = [(rf"\boxed{{{index}}}", str(index - index % 2)) for index in range(20)]
    jobs[3] = jobs[11] = HANGING
    with RewardPool(RewardsConfig(kind="math_verify", workers=2, timeout_seconds=1.0)) as pool:
        results = pool.score_many(jobs)
        again = pool.score_many(jobs[:3])
    assert results[3] == results[11] == Score(0.0, "verifier timed out after 1 s")
    assert [result.value for index, result in enumerate(results) if index not in (3, 11)] == [
        float(index % 2 == 0) for index in range(20) if index not in (3, 11)
    ]
    assert [result.value for result in again] == [1.0, 0.0, 1.0]


def test_worker_killed_between_calls_costs_nothing(reach: RewardPool) -> None:
    reach.score_many(REACH)
    for pid in pids(reach):
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda pid=pid: gone(pid), 5)
    assert reach.score_many(REACH) == [score(*job, kind="reach") for job in REACH]


def test_worker_killed_at_work_costs_its_job() -> None:
    with RewardPool(RewardsConfig(kind="math_verify", timeout_seconds=30.0)) as pool:
        pool.score_many([(r"\boxed{1}", "1")])
        killer = threading.Timer(0.5, os.kill, (pids(pool)[0], signal.SIGKILL))
        killer.start()
        results = pool.score_many([(r"\boxed{1}", "1"), HANGING, (r"\boxed{2}", "2")])
        killer.join()
    assert [result.value for result in results] == [1.0, 0.0, 1.0]
    assert results[1].reason == "verifier died"


def test_stopped_worker_with_a_full_pipe_times_out() -> None:
    with RewardPool(RewardsConfig(kind="reach", timeout_seconds=1.0)) as pool:
        pool.score_many(REACH[:1])
        os.kill(pids(pool)[0], signal.SIGSTOP)
        results = pool.score_many([("op+1 " * 400_000, "0 0"), ("done", "0 0")])
    assert results == [Score(0.0, "verifier timed out after 1 s"), score("done", "0 0", kind="reach")]


@pytest.mark.parametrize(
    "frame", [encode([0, 1.0]), encode([99, 1.0, "another job's"]), b"\0\0\0\1?", b"\xff\xff\xff\xff"]
)
def test_garbage_from_a_worker_costs_its_job(reach: RewardPool, frame: bytes) -> None:
    reach.score_many(REACH)
    for worker in workers_of(reach):
        worker._incoming += frame
    results = reach.score_many(REACH)
    died = [index for index, result in enumerate(results) if result == Score(0.0, "verifier died")]
    assert 1 <= len(died) <= 2
    assert all(
        result == score(*job, kind="reach")
        for result, job in zip(results, REACH, strict=True)
        if result.reason != "verifier died"
    )


def test_interrupted_call_leaves_no_stale_answer() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with RewardPool(RewardsConfig(kind="math_verify", timeout_seconds=30.0)) as pool:
        pool.score_many([(r"\boxed{1}", "1")])
        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.score_many([HANGING])
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert pool.score_many([(r"\boxed{5}", "5")])[0].value == 1.0


def test_signals_of_keyboard_and_scheduler_are_the_parents(reach: RewardPool) -> None:
    reach.score_many(REACH)
    before = pids(reach)
    for pid in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    assert reach.score_many(REACH) == [score(*job, kind="reach") for job in REACH]
    assert pids(reach) == before


def test_two_pools_in_two_threads() -> None:
    results: dict[int, list[Score]] = {}

    def use(number: int) -> None:
        with RewardPool(RewardsConfig(kind="reach", workers=1)) as pool:
            results[number] = [result for _ in range(5) for result in pool.score_many(REACH)]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [score(*job, kind="reach") for job in REACH] * 5
    assert results == {0: expected, 1: expected}


def test_one_pool_in_two_threads(reach: RewardPool) -> None:
    results: dict[int, list[Score]] = {}
    halves = [REACH[:100], REACH[100:]]
    threads = [
        threading.Thread(target=lambda number=number: results.update({number: reach.score_many(halves[number])}))
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [score(*job, kind="reach") for job in halves[number]] for number in range(2)}


@pytest.mark.parametrize(
    "noise",
    [
        "\0",
        "\n\r\n\u2028",
        "\ud800 \udfff",
        "\ud83d\ude00",
        '"]}\\u0000',
        "\U0001f600",
        "x" * 1_000_000,
        "\x00\x00\x00\x01",
    ],
    ids=["nul", "newlines", "lone", "pair", "json", "emoji", "megabyte", "length"],
)
def test_hostile_text_survives_the_protocol(reach: RewardPool, noise: str) -> None:
    jobs = [(f"{noise} op+1 done", "0 1"), (f"op{noise} done", "0 1"), ("done", noise), ("op+1 done", "0 1")]
    assert reach.score_many(jobs) == [score(*job, kind="reach") for job in jobs]


def test_close_leaves_no_process_and_may_be_repeated() -> None:
    before = children()
    pool = RewardPool(RewardsConfig(kind="reach", workers=2))
    assert children() == before
    pool.score_many(REACH)
    workers = list(workers_of(pool))  # a forgotten zombie stays visible while its Popen object lives
    assert children() - before == {worker.process.pid for worker in workers}
    assert workers
    pool.close()
    pool.close()
    assert children() == before
    with pytest.raises(RewardError, match="closed"):
        pool.score_many(REACH)


@pytest.mark.parametrize("job", [("done", "0 0"), HANGING], ids=["idle", "busy"])
def test_worker_ends_with_its_parent(job: tuple[str, str], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"  # without a __main__ guard, which workers must not need
    script.write_text(
        "from megatron_fork.rewards import RewardsConfig, RewardPool\n"
        f"pool = RewardPool(RewardsConfig(kind={'math_verify' if job is HANGING else 'reach'!r}, timeout_seconds=2.0))\n"
        "pool.score_many([('done', '0 0')])\n"
        "print(pool._dispatcher._workers[0].process.pid, flush=True)\n"
        f"pool.score_many([{job!r}])\n"
        "input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    assert eventually(lambda: gone(pid), 60)


def test_worker_is_light_confined_and_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with RewardPool(RewardsConfig(memory_gib=1.5)) as pool:
        pool.score_many([(r"\boxed{x+x}", "2x")])
        process = Path("/proc") / str(pids(pool)[0])
        assert b"SECRET_TOKEN" not in (process / "environ").read_bytes()
        assert "torch" not in (process / "maps").read_text()
        address_space = next(line for line in (process / "limits").read_text().splitlines() if "address space" in line)
    assert address_space.split()[3:5] == [str(int(1.5 * 2**30))] * 2


def test_worker_that_cannot_start_is_an_error_and_not_a_zero() -> None:
    config = RewardsConfig(kind="math_verify", memory_gib=0.04)
    with RewardPool(config) as pool, pytest.raises(RewardError, match="could be started") as caught:
        pool.score_many([(r"\boxed{7}", "7")])
    assert "rewards.memory_gib" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "maths"),
        ("unevaluated", "perhaps"),
        ("named_numbers", "perhaps"),
        ("workers", -1),
        ("timeout_seconds", 0.0),
        ("timeout_seconds", float("inf")),
        ("memory_gib", -1.0),
    ],
)
def test_config_names_the_field_the_value_and_the_way_out(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"rewards\.{field}") as caught:
        RewardsConfig(**{field: value})
    assert str(value) in str(caught.value)
    assert caught.value.hint


def test_config_is_an_omegaconf_schema() -> None:
    merged = OmegaConf.merge(OmegaConf.structured(RewardsConfig), {"kind": "reach", "workers": 3})
    assert OmegaConf.to_object(merged) == RewardsConfig(kind="reach", workers=3)
