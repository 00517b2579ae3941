"""What a run writes down is what is read again: one declared record for both, of traces and of metrics."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import write_json_lines

from megatron_fork.analysis import AnalysisError, StepMetrics, Trace
from megatron_fork.analysis.json_lines import JsonLine
from megatron_fork.analysis.metrics import STAGES, read_metrics
from megatron_fork.analysis.page.responses import Vocabulary
from megatron_fork.analysis.page.sources import sources_at
from megatron_fork.analysis.traces import KINDS, read_traces, trace_of
from megatron_fork.run.folder import RunFolder, _finite
from megatron_fork.traces import Origin, TracedResponse

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


def line_of(trace: Trace) -> dict:
    """As earlier versions wrote it: only a trained one has an entropy, a selection and an advantage."""
    of_trained = ("entropy", "selected", "advantage")
    return {name: value for name, value in vars(trace).items() if trace.kind == "trained" or name not in of_trained}


@given(trace=traces())
def test_a_trace_of_an_earlier_version_is_read(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_json_lines(folder / "traces" / f"step-{trace.step:06d}.jsonl", [_finite(line_of(trace))])
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


def response(number: int, *, kind: str = "trained", step: int = 3) -> TracedResponse:
    trained = kind == "trained"
    return TracedResponse(
        *("training", "00", "1 + 1 =", [5, 6], "2", 0, "two\udc80", [7, 8], "stop", kind),
        token_texts=["two", "\udc80"],
        entropy=[0.25, 1.5] if trained else None,
        logprob=[-0.5, -1.0],
        selected=[False, True] if trained else None,
        reward=1.0,
        reason="equal",
        step=step,
        number=number,
        advantage=0.5 if trained else None,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_comes_back(tmp_path: Path, kind: str) -> None:
    RunFolder(tmp_path, writes=True).traces(3, [response(4, kind=kind)], Origin())
    vocabulary = Vocabulary()
    (part,) = sources_at(tmp_path).parts(vocabulary)
    (facts,) = part.facts
    assert [vocabulary.texts[token] for token in part.tokens] == ["two", "\udc80"]
    assert (facts.kind, facts.step, part.logprob.tolist()) == (kind, 3, [-0.5, -1.0])
    assert (facts.reward, facts.reason, facts.prompt, facts.answer) == (1.0, "equal", "1 + 1 =", "2")
    trained = (part.entropy.tolist(), part.selected.tolist(), facts.advantage) == ([0.25, 1.5], [False, True], 0.5)
    assert trained == (kind == "trained") == part.has_entropy[0] and (trained or all(map(math.isnan, part.entropy)))


@pytest.mark.parametrize("number", [-1, 1.5, True, "7", 2**53])
def test_a_place_that_is_none_is_refused(number: object) -> None:
    fields = line_of(Trace(1, "p", "a", [], [], [], [], 0.0, None, "stop"))
    assert trace_of(JsonLine("line 1", {**fields, "number": 7})).number == 7
    with pytest.raises(AnalysisError, match="line 1: field 'number' is"):
        trace_of(JsonLine("line 1", {**fields, "number": number}))


def test_a_stage_that_is_none_is_refused() -> None:
    assert StepMetrics.of_line(JsonLine("line 1", {"stage": "sft", "step": 1, "loss": None})).values.keys() == {"loss"}
    with pytest.raises(AnalysisError, match="line 1: field 'stage' is 'rl'"):
        StepMetrics.of_line(JsonLine("line 1", {"stage": "rl", "step": 1}))
