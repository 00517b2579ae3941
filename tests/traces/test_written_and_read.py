"""What a run writes down is what is read again: one declared record for both, of traces and of metrics."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.analysis import AnalysisError, StepMetrics, Trace
from megatron_fork.analysis.json_lines import JsonLine
from megatron_fork.analysis.metrics import STAGES, read_metrics
from megatron_fork.analysis.traces import KINDS, read_traces, trace_of
from megatron_fork.run.folder import RunFolder

TEXTS = st.text(st.characters(codec=None), max_size=8)
NUMBERS = st.one_of(st.floats(), st.integers(-(10**6), 10**6).map(float))
WHOLE = st.integers(0, 2**53 - 1)


def same(left: object, right: object) -> bool:
    """Equal, where a number that is not finite was written as a gap and is read as NaN."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and not math.isfinite(left):
        return isinstance(right, float) and math.isnan(right)
    return left == right and type(left) is type(right)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    kind, length = draw(st.sampled_from(KINDS)), draw(st.integers(0, 5))

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=length, max_size=length))

    trained = kind == "trained"
    return Trace(
        step=draw(WHOLE),
        prompt=draw(TEXTS),
        answer=draw(TEXTS),
        tokens=column(TEXTS),
        entropy=column(NUMBERS) if trained else [math.nan] * length,
        selected=column(st.booleans()) if trained else [False] * length,
        logprob=column(NUMBERS),
        reward=draw(st.floats(-10, 10)),
        advantage=draw(st.one_of(st.none(), st.floats(-10, 10))) if trained else None,
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        reason=draw(TEXTS),
        kind=kind,
        number=draw(st.one_of(st.none(), WHOLE)),
    )


@given(trace=traces())
def test_a_trace_comes_back(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    RunFolder(folder, writes=True).traces(trace.step, [{**trace.fields()}])
    found = read_traces(folder / "traces")
    (read,) = [
        each for steps in vars(found).values() if isinstance(steps, dict) for some in steps.values() for each in some
    ]
    assert all(same(value, vars(read)[name]) for name, value in vars(trace).items())


@given(
    stage=st.sampled_from(STAGES),
    step=WHOLE,
    values=st.dictionaries(TEXTS.filter(lambda name: name not in ("stage", "step")), NUMBERS, max_size=6),
)
def test_metrics_come_back(
    stage: str, step: int, values: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    RunFolder(folder, writes=True).metrics(stage, step, values)
    read = read_metrics(folder / "metrics.jsonl").stages[stage][step]
    assert read.keys() == values.keys() and all(same(value, read[name]) for name, value in values.items())


def test_only_a_trained_trajectory_has_an_entropy(tmp_path: Path) -> None:
    trace = Trace(1, "p", "a", ["x"], [math.nan], [False], [-1.0], 0.0, None, "stop", kind="evaluation")
    assert not {"entropy", "selected", "advantage"} & trace.fields().keys()


@pytest.mark.parametrize("number", [-1, 1.5, True, "7", 2**53])
def test_a_place_that_is_none_is_refused(number: object) -> None:
    fields = Trace(1, "p", "a", [], [], [], [], 0.0, None, "stop").fields()
    assert trace_of(JsonLine("line 1", {**fields, "number": 7})).number == 7
    with pytest.raises(AnalysisError, match="line 1: field 'number' is"):
        trace_of(JsonLine("line 1", {**fields, "number": number}))


def test_a_stage_that_is_none_is_refused() -> None:
    assert StepMetrics.of_line(JsonLine("line 1", {"stage": "sft", "step": 1, "loss": None})).values.keys() == {"loss"}
    with pytest.raises(AnalysisError, match="line 1: field 'stage' is 'rl'"):
        StepMetrics.of_line(JsonLine("line 1", {"stage": "rl", "step": 1}))
