"""The memory of an engine that sleeps goes once, and comes back in two parts around its new weights."""

import pytest

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.in_process.vllm_process import SleepMode


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def sleep(self, level: int) -> None:
        self.told.append(level)

    def wake_up(self, tags: list[str]) -> None:
        self.told += tags


def test_order() -> None:
    recorder = Recorder()
    sleeping = SleepMode(recorder, can_sleep=True)
    with sleeping.ended_by_weights():  # the first weights find it awake
        recorder.told.append("filled")
    sleeping.refuse_requests()
    sleeping.begin()
    sleeping.begin()
    with pytest.raises(RolloutError, match="the engine sleeps"):
        sleeping.refuse_requests()
    with sleeping.ended_by_weights():
        recorder.told.append("filled")
    sleeping.refuse_requests()
    assert recorder.told == ["filled", 2, "weights", "filled", "kv_cache"]


def test_an_update_that_fails_leaves_it_asleep() -> None:
    recorder = Recorder()
    sleeping = SleepMode(recorder, can_sleep=True)
    sleeping.begin()
    with pytest.raises(ValueError), sleeping.ended_by_weights():
        raise ValueError
    with pytest.raises(RolloutError):
        sleeping.refuse_requests()
    assert recorder.told == [2, "weights"]


def test_without_sleep_mode_nothing_is_asked_of_the_engine() -> None:
    recorder = Recorder()
    sleeping = SleepMode(recorder, can_sleep=False)
    sleeping.begin()
    sleeping.refuse_requests()
    with sleeping.ended_by_weights():
        pass
    assert recorder.told == []
