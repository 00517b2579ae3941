"""A verifier computes and does nothing else: no files, no network, no programs, no signals, no more memory than allowed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.misbehaving import __name__ as module

from megatron_fork.errors import ConfigError
from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, Score, score

ATTEMPTS = (
    "writes appends removes renames makes_a_folder changes_mode connects listens starts_a_program forks kills_its_parent "
    "owns_a_pipe_for_its_parent limits_its_parent places_its_parent reads_its_parents_memory leaves_memory_behind "
    "outlives_its_parent"
).split()


def run(kind: str, response: str, answer: str, **settings) -> Score:
    with RewardPool(RewardsConfig(kind=f"{module}:{kind}", **settings)) as pool:
        return pool.score_many([(response, answer)])[0]


def here() -> list[str]:
    with RewardPool(RewardsConfig(kind="reach")) as pool:
        pool.warm()
        return pool.confinement


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_workers_can_only_compute(attempt: str, tmp_path: Path) -> None:
    """Where the kernel has seccomp; `pool.confinement` says so."""
    if not any("seccomp" in line for line in here()):
        pytest.skip("no seccomp here")
    file = tmp_path / "file"
    file.write_text("theirs")
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = run(attempt, str(server.getsockname()[1]), str(file))
    assert result.value == 1.0, result.reason
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "theirs"


@pytest.mark.parametrize("attempt", ["writes", "listens", "starts_a_program"])
def test_without_confinement_the_attempts_work(attempt: str, tmp_path: Path) -> None:
    """Else the test above would prove nothing; but files do not grow even then."""
    result = run(attempt, "0", str(tmp_path / "file"), confined=False)
    assert result.value == float(attempt == "writes"), result.reason


def test_reading_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    assert run("reads", "data", str(tmp_path / "file")).value == 1.0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "verifier raised LookupError: on every response"),
        ("eats_memory", "verifier raised MemoryError"),
        ("recurses", "verifier raised RecursionError"),
        ("counts_digits", "verifier raised ValueError"),
        ("returns_text", "verifier returned 'very good'"),
        ("returns_nan", "verifier returned nan"),
    ],
)
def test_limits_cost_the_response_and_not_the_worker(kind: str, reason: str) -> None:
    with RewardPool(RewardsConfig(kind=f"{module}:{kind}")) as pool:
        results = pool.score_many([("1", "1")] * 3)
        assert [(result.value, result.failure) for result in results] == [(0.0, "error")] * 3
        assert all(result.reason.startswith(reason) and "misbehaving.py:" in result.reason for result in results)
        assert pool.counts.workers_started == 1
        assert (pool.counts.scored, pool.counts.died, pool.counts.timed_out) == (3, 0, 0)


def test_a_sleeping_verifier_is_late_too() -> None:
    result = run("sleeps", "100", "100", timeout_seconds=0.3)
    assert result == Score(0.0, "verifier timed out after 0.3 s")


def test_waiting_for_the_processor_is_not_held_against_a_job() -> None:
    """A job has its time-out in CPU time: on the clock it may take longer."""
    assert run("sleeps", "0.8", "0.8", timeout_seconds=0.5).value == 1.0


def test_custom_values_and_reasons() -> None:
    assert run("half", "", "") == Score(0.5, "half right")
    assert score("", "", kind=f"{module}:half") == Score(0.5, "half right")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_module_here:verify", "module no_such_module_here cannot be imported: ModuleNotFoundError"),
        (f"{module}:absent", f"{module} has no function absent"),
    ],
)
def test_a_custom_verifier_that_is_not_there(kind: str, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        RewardPool(RewardsConfig(kind=kind))
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["module:", ":function", "a b:c", "os.system('x'):y", "module.function"])
def test_what_names_no_verifier(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.kind"):
        RewardsConfig(kind=kind)
