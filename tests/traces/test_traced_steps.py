"""Traces are kept where they are due, and of ever fewer of the steps without signal; of none where none are wanted."""

from commands import QUICKSTART
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.config import RunConfig, load_config
from megatron_fork.run.record import is_traced
from megatron_fork.run.state import RunState


def config_of(every: int, steps: int) -> RunConfig:
    return load_config(QUICKSTART, [f"run.trace_every={every}", f"train.steps={steps}"])


def test_where_they_are_due() -> None:
    config = config_of(10, 25)
    traced = [step for step in range(1, 26) if is_traced(RunState(step=step), config, has_signal=True)]
    assert traced == [1, 10, 20, 25]


def test_none_where_none_are_wanted() -> None:
    config = config_of(0, 25)
    steps = (RunState(step=step, steps_without_signal=step) for step in range(1, 26))
    assert not any(is_traced(state, config, has_signal=False) for state in steps)


CONFIG = config_of(1000, 100_000)


@given(st.lists(st.booleans(), max_size=400))
def test_of_a_run_without_signal_the_first_and_few_others(signals: list[bool]) -> None:
    state = RunState(step=1)
    traced = []
    for has_signal in signals:
        state.step += 1
        state.steps_without_signal += not has_signal
        if is_traced(state, CONFIG, has_signal=has_signal):
            traced.append(state.steps_without_signal)
            assert not has_signal
    assert traced == [2**power for power in range(state.steps_without_signal.bit_length())]
