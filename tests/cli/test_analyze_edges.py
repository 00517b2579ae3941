"""`analyze lenses`, `compare-masks`, `intervene` at their edges: nothing to compare, more asked than is there, other files."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from support.judging import EVEN
from support.trace_files import ORIGIN, TOKENIZER, made_up, save_model, write_made_up
from typer.testing import CliRunner

from megatron_fork.cli import app, guard
from megatron_fork.traces import Origin, TracedResponse, vocabulary_fingerprint, write_traces

UNCHECKED = "the traces do not name their tokenizer: whether the model has the same tokens cannot be checked"


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edges") / "model"
    save_model(folder)
    return folder


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyze", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def record_of(output: str) -> dict:
    """The one JSON text of an output, beside lines for a reader."""
    return json.loads(output[output.index("{") : output.rindex("}") + 1])


def alone() -> list[TracedResponse]:
    """One response to each prompt."""
    return [replace(each, prompt_id=f"{n:016x}", sample=0, reward=float(n % 2)) for n, each in enumerate(made_up(8))]


def all_right() -> list[TracedResponse]:
    return [replace(each, reward=1.0) for each in made_up(8)]


@pytest.mark.parametrize("rows", [alone(), all_right()], ids=["one response a prompt", "equal rewards"])
def test_selections_without_advantages_have_no_cosine(model: Path, tmp_path: Path, rows: list[TracedResponse]) -> None:
    traces = write_made_up(tmp_path / "traces.parquet", rows)
    words = ("compare-masks", traces, model, "--b", "selection.ratio=0.4", "--responses", 999)
    code, output = call(*words, "--json")
    found = record_of(output)
    assert code == 0 and found["tokens"] == sum(len(each.tokens) for each in rows)
    assert found["gradient_norms"] == {"a": 0, "b": 0} and found["gradient_cosine"] is None
    code, output = call(*words)
    assert code == 0 and "nan" not in output.lower() and "there is no gradient" in output, output


def test_lenses_of_one_response_a_prompt_have_no_variance(model: Path, tmp_path: Path) -> None:
    traces = write_made_up(tmp_path / "traces.parquet", alone())
    words = ("lenses", traces, model, "--answer", "need +0 done", "--lens", "entropy,mi,variance", "--limit", 99)
    code, output = call(*words, "--share", 1.0, "--json")
    found = record_of(output)
    assert code == 0 and found["reference_tokens"] == [] and found["responses"] == 8
    (pair,) = found["agreement"]
    assert pair["jaccard"] == pair["by_chance"] == 1.0
    (other,) = found["not_compared"]
    assert other["first"] == "variance" and other["why"] == "no prompt has two responses that were read"
    code, output = call(*words)
    assert code == 0 and "nan" not in output.lower(), output
    assert "variance, entropy of reference tokens: not compared, since no prompt has two" in " ".join(output.split())


def test_lenses_do_not_look_at_rewards(model: Path, tmp_path: Path) -> None:
    """All right, all wrong, not judged or mixed: every value is the same, and all are numbers."""
    words = ("--answer", "need +0 done", "--lens", "entropy,mi,variance", "--json")
    found = []
    for number, rewards in enumerate(([1.0], [0.0], [None], [0.0, 1.0])):
        rows = [replace(each, reward=rewards[place % len(rewards)]) for place, each in enumerate(made_up(8))]
        traces = write_made_up(tmp_path / f"{number}.parquet", rows)
        code, output = call("lenses", traces, model, *words)
        assert code == 0 and "NaN" not in output, output
        found.append({name: value for name, value in record_of(output).items() if name != "provenance"})
    assert all(each == found[0] for each in found)
    assert found[0]["reference_tokens"] and all(each["deviation"] > 0 for each in found[0]["reference_tokens"])
    assert found[0]["not_compared"] == []


def test_equal_values_are_stated_and_not_compared(model: Path, tmp_path: Path) -> None:
    """All responses to a prompt are the same: their variance is 0, which has no ranks."""
    first = made_up(1)[0]
    traces = write_made_up(tmp_path / "traces.parquet", [replace(first, sample=sample) for sample in range(4)])
    words = ("lenses", traces, model, "--answer", "need +0 done", "--lens", "entropy,variance")
    code, output = call(*words, "--json")
    found = record_of(output)
    assert code == 0 and {each["deviation"] for each in found["reference_tokens"]} == {0.0}, output
    assert found["agreement"] == [] and "NaN" not in output
    code, output = call(*words)
    line = "variance, entropy of reference tokens: not compared, since where both speak of 3 tokens, all are equal for variance"
    assert code == 0 and line in " ".join(output.split()), output


@pytest.mark.parametrize("samples", [1, 2])
def test_an_intervention_of_one_prompt_or_sample(model: Path, tmp_path: Path, samples: int) -> None:
    line = json.dumps({"prompt": "from 3 to 10 :", "answer": "3"}) + "\n"
    with gzip.open(tmp_path / "prompts.jsonl.gz", "wt") as file:
        file.write(line)
    (tmp_path / "prompts.jsonl").write_text(line)
    settings = [word for setting in EVEN for word in ("--setting", setting)]
    words = ("--samples", samples, "--limit", 50, "--high", "1,2", "--low", 1, *settings)
    code, output = call("intervene", model, "--prompts", tmp_path / "prompts.jsonl", *words, "--out", tmp_path / "out")
    assert code == 0 and "nan" not in output.lower(), output
    record = json.loads((tmp_path / "out" / "intervention.json").read_text())
    for cell in record["cells"]:
        assert cell["standard_error"] is None and cell["interval"] == [cell["accuracy"]] * 2
    packed = ("--prompts", tmp_path / "prompts.jsonl.gz")
    code, output = call("intervene", model, *packed, *words, "--out", tmp_path / "packed")
    assert code in (1, 2) and output.count("error: ") == 1 and "prompts.jsonl.gz" in output, output


@pytest.mark.parametrize("compression", ["gzip", "snappy", "none", "brotli", "lz4"])
def test_any_compression_of_parquet_is_read(model: Path, tmp_path: Path, compression: str) -> None:
    before = write_made_up(tmp_path / "before.parquet", all_right())
    table = pyarrow.parquet.read_table(before)
    pyarrow.parquet.write_table(table, tmp_path / "after.parquet", compression=compression)
    words = (model, "--no-gradient", "--json", "--b", "selection.ratio=0.4")
    expected, found = (call("compare-masks", tmp_path / f"{name}.parquet", *words) for name in ("before", "after"))
    assert expected[0] == found[0] == 0 and record_of(found[1]) == record_of(expected[1])


@pytest.mark.parametrize("command", ["lenses", "compare-masks"])
def test_a_packed_file_is_one_line(model: Path, tmp_path: Path, command: str) -> None:
    before = write_made_up(tmp_path / "before.parquet")
    (tmp_path / "after.parquet.gz").write_bytes(gzip.compress(before.read_bytes()))
    code, output = call(command, tmp_path / "after.parquet.gz", model)
    assert code == 1 and "after.parquet.gz cannot be read as Parquet" in " ".join(output.split())
    assert output.count("error: ") == 1 and "Traceback" not in output


def commands(traces: Path, model: Path, out: Path) -> Sequence[tuple[object, ...]]:
    return (
        ("lenses", traces, model, "--lens", "entropy", "--json"),
        ("compare-masks", traces, model, "--no-gradient", "--json"),
        ("rescore", traces, model, "--out", out / "rescored.parquet"),
        ("evolution", traces, "--models", f"{model},{model}", "--json"),
    )


def test_traces_that_do_not_name_their_tokenizer_are_told_of(model: Path, tmp_path: Path) -> None:
    assert vocabulary_fingerprint(TOKENIZER) == ORIGIN.tokenizer
    for name, origin, told in (("named", ORIGIN, 0), ("bare", Origin(written_by="tests"), 1)):
        write_traces(tmp_path / f"{name}.parquet", made_up(4), origin)
        for words in commands(tmp_path / f"{name}.parquet", model, tmp_path):
            code, output = call(*words)
            assert code == 0 and output.splitlines().count(UNCHECKED) == told, (words[0], output)


def test_tokens_that_the_model_does_not_have_are_one_line_everywhere(model: Path, tmp_path: Path) -> None:
    """Where nothing names the tokenizer an id beyond the model's vocabulary is all that tells; wherever it stands."""
    good, bad = made_up(4)[:2], replace(made_up(4)[3], tokens=[9, 5000], token_texts=None, entropy=None)
    write_traces(tmp_path / "part-0.parquet", good, Origin(written_by="tests"))
    write_traces(tmp_path / "part-1.parquet", [bad], Origin(written_by="tests"))
    (tmp_path / "out").mkdir()
    for words in commands(tmp_path, model, tmp_path / "out"):
        code, output = call(*words)
        assert code == 1 and "has token 5000, the model's vocab_size is 135" in " ".join(output.split()), words[0]
        assert output.count("error: ") == 1 and "Traceback" not in output
