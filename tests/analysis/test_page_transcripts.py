"""Each response of the page is what its trace says, whether from Parquet, from JSON lines of earlier versions, or from both."""

import math
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.page_data import page_data
from support.synthetic_run import trace_of_step, write_json_lines, write_run
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import AnalysisError, mixture, write_page, write_report
from megatron_fork.analysis.page.payload import codes, surprisals
from megatron_fork.analysis.tokens import visible
from megatron_fork.errors import MegatronForkError, TraceError
from megatron_fork.traces import Origin, TracedResponse, write_traces


def page_of(*places: Path, out: Path | None = None) -> str:
    return write_page(list(places), out or places[0].parent / "page.html").read_text(encoding="utf-8")


def same(found: numpy.ndarray, wanted: list[float]) -> bool:
    return numpy.allclose(found, wanted, rtol=2e-4, atol=1e-6, equal_nan=True)


def test_tokens_of_a_trace_file_are_there(tmp_path: Path) -> None:
    written = list(traced_responses(6, 40))
    write_traces(tmp_path / "t.parquet", written, ORIGIN)
    shown = page_data(page_of(tmp_path / "t.parquet")).responses
    for found, trace in zip(shown, written, strict=True):
        assert found.tokens == trace.token_texts and found.selected == trace.selected
        assert same(found.entropy, trace.entropy) and same(found.logprob, trace.logprob)
        assert (found.prompt, found.answer) == (trace.prompt, trace.answer)
        for name in ("step", "sample", "reward", "advantage", "reason"):
            assert found.facts[name] == vars(trace)[name]
        assert math.isclose(found.facts["mean"], sum(trace.entropy) / 40, rel_tol=1e-6)
        assert found.facts["selected"] == sum(trace.selected)


def test_tokens_of_json_lines_are_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", transcripts=2)
    written = [trace_of_step(step, seed=seed) for step in (0, 20, 40) for seed in range(2)]
    shown = page_data(write_report(folder).read_text(encoding="utf-8")).responses
    for found, trace in zip(shown, written, strict=True):
        assert found.tokens == trace["tokens"] and found.selected == trace["selected"]
        assert same(found.entropy, trace["entropy"]) and same(found.logprob, trace["logprob"])
        assert (found.facts["step"], found.facts["reward"]) == (trace["step"], trace["reward"])


def test_a_run_may_have_traces_of_both_formats(tmp_path: Path) -> None:
    """One that an earlier version began, and a later one went on with."""
    folder = write_run(tmp_path / "run")
    write_traces(folder / "traces" / "step-000050.parquet", traced_responses(4, 20), ORIGIN)
    page = write_report(folder).read_text(encoding="utf-8")
    assert len(page_data(page).responses) == 9 + 4
    assert "890 tokens of 13 responses" in page


def test_responses_without_texts_entropies_or_judgement_are_shown(tmp_path: Path) -> None:
    given_response = TracedResponse("", "p", "question", [1], "", 0, "ab", [7, 8], "stop", "given")
    measured = next(traced_responses(1, 2))
    write_traces(tmp_path / "t.parquet", [given_response, measured, given_response], Origin())
    first, second, _ = page_data(page_of(tmp_path / "t.parquet")).responses
    assert first.tokens == ["#7", "#8"] and first.facts["reward"] is None and not first.facts["measured"]
    assert numpy.isnan(first.entropy).all() and numpy.isnan(first.logprob).all() and first.selected == [False] * 2
    assert second.tokens == measured.token_texts and same(second.entropy, measured.entropy)


def test_without_any_entropy_there_are_no_plots_of_it(tmp_path: Path) -> None:
    write_traces(
        tmp_path / "t.parquet", [TracedResponse("", "p", "question", [1], "", 0, "ab", [7], "stop", "given")], Origin()
    )
    page = page_of(tmp_path / "t.parquet")
    assert "<svg" not in page and "Which tokens fork" not in page and "Entropies were not measured" in page


def test_what_was_not_trained_on_is_not_counted_beside_what_was(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    trace = trace_of_step(5)
    names = ("step", "prompt", "answer", "tokens", "logprob", "finish_reason", "reward")
    kept = {name: trace[name] for name in names}
    for kind, name in (("without_signal", "step-000005"), ("evaluation", "evaluation-000005")):
        told = {"kind": kind, "reason": "no <b>box</b>", **kept}
        write_json_lines(folder / "traces" / f"{name}.jsonl", [told] * 2)
    page = write_report(folder).read_text(encoding="utf-8")
    shown = page_data(page).responses
    assert "810 tokens of 9 responses" in page
    assert sum(each.facts["reason"] == "no <b>box</b>" for each in shown) == 4
    assert sum(each.facts["measured"] for each in shown) == 9


@given(st.lists(st.floats(0, 500) | st.just(math.nan) | st.just(math.inf), max_size=20))
def test_codes_are_exact_to_a_fraction(values: list[float]) -> None:
    from support.page_data import nats

    from megatron_fork.analysis.page.payload import INFINITE, LOWEST, STEP

    found = nats(codes(numpy.array(values)), {"lowest": LOWEST, "step": STEP, "infinite": INFINITE})
    assert same(found, values)


def test_a_log_prob_that_is_none_is_unknown() -> None:
    found = surprisals(numpy.array([-0.5, 1e-7, 1e9, math.nan, -math.inf]))
    assert numpy.array_equal(found, [0.5, 0, math.nan, math.nan, math.inf], equal_nan=True)


@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=8))
@settings(deadline=None, max_examples=20)
def test_any_bytes_of_a_token_are_shown(tmp_path_factory: pytest.TempPathFactory, raw: list[bytes]) -> None:
    texts = [each.decode(errors="surrogateescape") for each in raw]
    response = TracedResponse("s", "p", "q", [1], "", 0, "", list(range(len(raw))), "stop", "given", token_texts=texts)
    path = tmp_path_factory.mktemp("bytes") / "t.parquet"
    write_traces(path, [response], Origin())
    (shown,) = page_data(page_of(path)).responses
    assert shown.tokens == [visible(text) for text in texts]


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 12))
def test_right_and_wrong_ones_in_equal_parts_as_far_as_there_are_both(rewards: list[bool], count: int) -> None:
    """What a run keeps of an evaluation."""
    responses = list(enumerate(rewards))
    chosen = mixture(responses, count, lambda response: response[1])
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(responses))
    right, wrong = sum(rewards), len(rewards) - sum(rewards)
    of_right = sum(reward for _, reward in chosen)
    assert of_right >= min(right, count // 2) and len(chosen) - of_right >= min(wrong, count // 2)


def complaint(places: list[Path], out: Path) -> MegatronForkError:
    with pytest.raises((AnalysisError, TraceError)) as raised:
        write_page(places, out)
    assert not out.exists() and "\n" not in raised.value.message and raised.value.hint
    return raised.value


def test_places_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    assert "both runs" in complaint([first, second], out).message
    assert str(tmp_path / "absent") in complaint([tmp_path / "absent"], out).message
    (tmp_path / "empty").mkdir()
    assert "no trace files" in complaint([tmp_path / "empty"], out).message
    write_traces(tmp_path / "t.parquet", traced_responses(2, 5), ORIGIN)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    assert "half.parquet" in complaint([tmp_path / "half.parquet"], out).message
    write_traces(tmp_path / "other.parquet", traced_responses(2, 5), Origin(tokenizer="another"))
    assert "another tokenizer" in complaint([tmp_path / "t.parquet", tmp_path / "other.parquet"], out).message
