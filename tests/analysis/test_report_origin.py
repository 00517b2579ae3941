"""The head of the report says what the run folder knows of where the run came from, as text, whatever stands there."""

import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile_page import HOSTILE, Elements
from support.synthetic_run import trace_of_step, write_json_lines, write_run

from megatron_fork.analysis import write_report

CONFIG = {
    "run": {"name": "maths"},
    "model": {"path": "Qwen3-8B-Base"},
    "data": {"source": "dapo.jsonl"},
    "rewards": {"kind": "math"},
    "rollout": {"engine": "vllm", "servers": ["http://a:1", "http://b:1"]},
    "selection": {"tokens": "top", "ratio": 0.2},
}
PROVENANCE = {
    "written": "2026-03-01T12:30:00+01:00",
    "command": "megatron-fork train maths.yaml",
    "host": "node7",
    "device": "H100",
    "layout": "tensor 2",
    "commit": "0123abc",
    "versions": {"megatron-fork": "1.0", "torch": "2.9"},
}
SHOWN = ("Qwen3-8B-Base", "dapo.jsonl", "math", "maths", "vllm, 2 servers", "node7, H100", "0123abc")


def text_of(folder: Path) -> list[str]:
    return Elements(write_report(folder).read_text(encoding="utf-8")).text


def test_of_a_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(CONFIG))
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "layout": "data 4", "provenance": PROVENANCE}))
    text = text_of(tmp_path)
    for fact in (*SHOWN, "data 4", "2026-03-01 12:30:00+01:00", "megatron-fork 1.0, torch 2.9"):
        assert fact in text


def test_of_a_run_that_has_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path, finished=False)
    comments = "".join(f"# {line}\n" for line in yaml.safe_dump({"provenance": PROVENANCE}).splitlines())
    (tmp_path / "resolved.yaml").write_text(comments + yaml.safe_dump(CONFIG))
    text = text_of(tmp_path)
    for fact in (*SHOWN, "tensor 2", "megatron-fork 1.0, torch 2.9"):
        assert fact in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "resolved.yaml").write_text("# a remark: of a person: [\nseed: 1\n")
    assert "Model" not in text_of(tmp_path)


TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=12))


@given(st.lists(TEXTS, min_size=12, max_size=12))
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_of_a_run_becomes_markup(tmp_path: Path, texts: list[str]) -> None:
    """Its prompts, answers, tokens, reasons, settings, versions and command."""
    folder = tmp_path / "run"
    write_run(folder, transcripts=1)
    (folder / "metrics.jsonl").write_text('{"stage": "train", "step": 1, "loss": 1.0}\n')
    tame = page_with(folder, ["x"] * 12)
    hostile = page_with(folder, texts)
    assert set(hostile.tags) == set(tame.tags) and hostile.attributes == tame.attributes


def page_with(folder: Path, texts: list[str]) -> Elements:
    *of_trace, first, second, third, command, host, model = texts
    names = ("prompt", "answer", "finish_reason", "reason")
    trace = {**trace_of_step(1, tokens=2), "tokens": of_trace[4:], **dict(zip(names, of_trace, strict=False))}
    response = {"kind": "evaluation", **trace}
    write_json_lines(folder / "traces" / "step-000001.jsonl", [trace])
    write_json_lines(folder / "traces" / "evaluation-000001.jsonl", [response])
    told = {**PROVENANCE, "versions": {"a": first}, "commit": second, "device": third, "command": command, "host": host}
    (folder / "summary.json").write_text(json.dumps({"pass_rate_after": 1.0, "provenance": told}))
    path = model.encode("utf-8", "replace").decode()
    (folder / "resolved.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {"path": path}}))
    return Elements(write_report(folder).read_text(encoding="utf-8"))
