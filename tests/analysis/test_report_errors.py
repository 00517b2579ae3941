"""A run folder that is not what it claims to be is refused in one line that names file, line and field."""

import json
from pathlib import Path

import pytest
from support.synthetic_run import metrics_of_run, trace_of_step, write_json_lines, write_run

from megatron_fork.analysis import AnalysisError, write_report
from megatron_fork.errors import MegatronForkError, RunFolderError


def complaint(folder: Path) -> str:
    with pytest.raises(AnalysisError) as raised:
        write_report(folder)
    assert isinstance(raised.value, MegatronForkError)
    assert "\n" not in raised.value.message
    assert not (folder / "report.html").exists()
    return raised.value.message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"stage": "train", "step"', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"stage": "warmup", "step": 1}', "field 'stage' is 'warmup', not one of sft, train, evaluation"),
        ('{"step": 1}', "field 'stage' is missing"),
        ('{"stage": "train"}', "field 'step' is missing"),
        ('{"stage": "train", "step": 1.5}', "field 'step' is 1.5"),
        ('{"stage": "train", "step": true}', "field 'step' is True"),
        ('{"stage": "train", "step": -1}', "field 'step' is -1"),
        ('{"stage": "train", "step": 1' + "0" * 300 + "}", "field 'step' is 1000"),
        ('{"stage": "train", "step": 1, "loss": "low"}', "field 'loss' is 'low', not a number"),
        ('{"stage": "train", "step": 1, "loss": true}', "field 'loss' is True, not a number"),
        ('{"stage": "train", "step": 1, "loss": 1' + "0" * 400 + "}", "field 'loss' is 1000"),
        ("[" * 100_000, "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_corrupted_metrics_line_is_named_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    good = [json.dumps(item) for item in metrics_of_run(2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*good[:3], "", line, *good[3:]]) + "\n", encoding="utf-8")
    message = complaint(tmp_path)
    assert message.startswith("metrics.jsonl line 5: ")
    assert words in message


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"stage": "sft", "step": 1}\n\xff\xfe\x00\n')
    assert complaint(tmp_path).startswith("metrics.jsonl line 2: not JSON")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"entropy": [0.1]}, "field 'entropy' has 1 entries for 90 tokens"),
        ({"selected": [1] * 90}, "field 'selected' is 1, not a list of true and false"),
        ({"tokens": "all"}, "field 'tokens' is 'all', not a list"),
        ({"tokens": [1] * 90}, "field 'tokens' is 1, not a list of strings"),
        ({"logprob": ["x"] * 90}, "field 'logprob' is 'x', not a number"),
        ({"prompt": None}, "field 'prompt' is None, not a string"),
        ({"reward": None}, "field 'reward' is missing or null"),
    ],
)
def test_corrupted_trace_is_named_with_its_line_and_field(tmp_path: Path, change: dict, words: str) -> None:
    write_run(tmp_path)
    path = tmp_path / "traces" / "step-000020.jsonl"
    write_json_lines(path, [trace_of_step(20), {**trace_of_step(20), **change}])
    message = complaint(tmp_path)
    assert message.startswith("step-000020.jsonl line 2: ")
    assert words in message


@pytest.mark.parametrize("text", ["{", "[]", '{"pass_rate_after": "high"}'])
def test_corrupted_summary_is_named(tmp_path: Path, text: str) -> None:
    write_run(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    assert complaint(tmp_path).startswith("summary.json: ")


@pytest.mark.parametrize(
    "text", ["selection: [1", "- 1", "a: ${b", "5", "text", "[" * 50_000, "a: !!python/name:os.x 1"]
)
def test_corrupted_config_is_named(tmp_path: Path, text: str) -> None:
    write_run(tmp_path)
    (tmp_path / "resolved.yaml").write_text(text)
    assert complaint(tmp_path).startswith("resolved.yaml")


def test_folder_without_metrics_is_no_run_folder(tmp_path: Path) -> None:
    assert "not a run folder" in complaint(tmp_path)
    assert "not a run folder" in complaint(tmp_path / "absent")


def test_report_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_report(tmp_path)
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e-320", "1e149"])
def test_a_number_that_no_axis_has_room_for_is_a_gap(tmp_path: Path, value: str) -> None:
    write_run(tmp_path)
    names = ("loss", "entropy/mean", "selection/threshold", "selection/fraction", "gradient_norm", "rollout/pass_rate")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step, sign in ((1001, ""), (1002, "-")):
            fields = ", ".join(f'"{name}": {sign}{value}'.replace("--", "") for name in names)
            file.write(f'{{"stage": "train", "step": {step}, {fields}}}\n')
    assert write_report(tmp_path).is_file()


@pytest.mark.parametrize("comment", ["[" * 50_000, "provenance: [", "provenance: 5", "text"])
def test_comments_above_the_config_are_a_persons(tmp_path: Path, comment: str) -> None:
    write_run(tmp_path)
    config = tmp_path / "resolved.yaml"
    config.write_text(f"# {comment}\n{config.read_text()}")
    (tmp_path / "summary.json").unlink(missing_ok=True)
    assert write_report(tmp_path).is_file()
