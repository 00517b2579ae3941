"""Transcripts are of right and wrong responses: trained on, without signal, and held out. Long ones are folded."""

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import trace_of_step, write_json_lines, write_run

from megatron_fork.analysis import mixture, write_report
from megatron_fork.analysis.tokens import visible


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 12))
def test_right_and_wrong_ones_in_equal_parts_as_far_as_there_are_both(rewards: list[bool], count: int) -> None:
    responses = list(enumerate(rewards))
    chosen = mixture(responses, count, lambda response: response[1])
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(responses))
    right, wrong = sum(rewards), len(rewards) - sum(rewards)
    of_right = sum(reward for _, reward in chosen)
    assert of_right >= min(right, count // 2) and len(chosen) - of_right >= min(wrong, count // 2)


def untrained(kind: str, step: int, reward: float) -> dict:
    trace = trace_of_step(step)
    kept = ("step", "prompt", "answer", "tokens", "logprob", "finish_reason")
    return {"kind": kind, **{name: trace[name] for name in kept}, "reward": reward, "reason": "no <b>box</b>"}


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_not_the_first_ones_but_a_mixture(tmp_path: Path) -> None:
    write_run(tmp_path)
    traces = [{**trace_of_step(20, seed=seed), "reward": float(seed >= 6)} for seed in range(8)]
    write_json_lines(tmp_path / "traces" / "step-000020.jsonl", traces)
    section = page_of(tmp_path).split("<b>Step 20</b>")[1].split("<b>Step")[0]
    assert (section.count("reward rewarded"), section.count('class="reward"')) == (2, 2)


def test_responses_that_were_not_trained_on_are_shown_with_the_verifiers_reason(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_json_lines(tmp_path / "traces" / "step-000005.jsonl", [untrained("without_signal", 5, 0.0)] * 2)
    for step in (0, 20, 40):
        write_json_lines(tmp_path / "traces" / f"evaluation-{step:06d}.jsonl", [untrained("evaluation", step, 1.0)])
    page = page_of(tmp_path)
    assert "no group had signal, nothing was trained on" in page
    assert page.count("verifier: no &lt;b&gt;box&lt;/b&gt;") == 4
    assert re.findall(r"Evaluation after step (\d+)", page) == ["0", "40"]
    assert "3 trajectories" not in page, "the distribution counts what was trained on alone"
    assert "810 tokens of 9 trajectories" in page


def test_older_traces_name_no_kind_and_no_reason(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path))
    assert "verifier:" not in page and page.count('<div class="response">') == 9


def test_a_long_response_is_folded_and_whole(tmp_path: Path) -> None:
    write_run(tmp_path)
    for path in (tmp_path / "traces").iterdir():
        path.unlink()
    trace = trace_of_step(0, tokens=700)
    write_json_lines(tmp_path / "traces" / "step-000000.jsonl", [trace])
    page = page_of(tmp_path)
    assert "<summary>540 more tokens</summary>" in page
    assert len(re.findall(r'<span class="level-\d+', page.split("Transcripts</h2>")[1].split("step</h3>")[-1])) >= 700


def test_bytes_that_are_no_text_are_shown_in_hex(tmp_path: Path) -> None:
    write_run(tmp_path)
    trace = trace_of_step(0)
    trace["tokens"][:2] = [b"\xe2\x82".decode(errors="surrogateescape"), b"a\xff".decode(errors="surrogateescape")]
    assert "\\udce2" in json.dumps(trace["tokens"])
    write_json_lines(tmp_path / "traces" / "step-000000.jsonl", [trace])
    page = page_of(tmp_path)
    assert ">⟨0xE2⟩⟨0x82⟩</span>" in page and ">a⟨0xFF⟩</span>" in page


@given(st.binary())
def test_any_bytes_are_shown_and_none_is_lost(raw: bytes) -> None:
    shown = visible(raw.decode(errors="surrogateescape"))
    shown.encode()
    invalid = sum(0xDC80 <= ord(letter) <= 0xDCFF for letter in raw.decode(errors="surrogateescape"))
    assert len(re.findall(r"⟨0x[0-9A-F]{2}⟩", shown)) == invalid
