"""`evaluate` gives the numbers of what it drew, the same ones however often it was killed and on however many ranks."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import QUICKSTART, finish, run, start
from support.judging import EVEN

from megatron_fork.cli.evaluate import Drawn, counts_in, draw_and_count, words_of_sets
from megatron_fork.data import DataConfig, load_prompts, tokenizer_of_task
from megatron_fork.errors import MegatronForkError
from megatron_fork.evaluation import missing, problems_of, prompt_sets
from megatron_fork.run import check, config_of
from megatron_fork.traces import open_traces

Write = Callable[..., Path]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [row for part in open_traces(folder).parts() for row in part.table.to_pylist()]
    return sorted(rows, key=lambda row: (row["set"], row["prompt_id"], row["sample"]))


def results_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "evaluation.json").read_text())
    del found["provenance"]
    return found


def evaluated(model: Path, out: Path, *words: str, ranks: int = 0) -> tuple[int, str]:
    return run("evaluate", str(model), *words, *EVEN, f"--out={out}", ranks=ranks)


def test_the_numbers_are_those_of_the_responses(model: Path, prompts: Write, tmp_path: Path) -> None:
    one, other = prompts("one.jsonl", 5), prompts("other.jsonl", 3, first=4)
    out = tmp_path / "out"
    words = (f"--set=one={one}", f"--set={other}", "--samples=4", "--pass-at=1,4", "--seed=3", "--entropy")
    code, output = evaluated(model, out, *words)
    assert code == 0, output
    rows = rows_of(out)
    assert {(row["set"], row["kind"]) for row in rows} == {("one", "evaluation"), ("other", "evaluation")}
    assert all(row["reward"] == (len(row["response"]) % 2 == 0) and row["logprob"] for row in rows)
    assert all(len(row["entropy"]) == len(row["tokens"]) and min(row["entropy"]) >= 0 for row in rows)
    found, table = results_of(out), (out / "evaluation.md").read_text()
    for name, count in (("one", 5), ("other", 3)):
        mine = [row for row in rows if row["set"] == name]
        assert len(mine) == 4 * count and [row["sample"] for row in mine] == [0, 1, 2, 3] * count
        numbers = found["sets"][name]
        assert numbers["avg"]["value"] == pytest.approx(sum(row["reward"] for row in mine) / len(mine))
        right = {row["prompt_id"] for row in mine if row["reward"]}
        assert numbers["pass"]["4"]["value"] == pytest.approx(len(right) / count) and numbers["solved"] == len(right)
        assert numbers["cut"] == pytest.approx(sum(row["finish_reason"] == "length" for row in mine) / len(mine))
        assert set(numbers["pass"]) == {"1", "4"} and numbers["maj"] is None
        assert f"## {name}" in table
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert [(row["set"], row["answer"]) for row in problems] == [("one", str(n)) for n in range(5)] + [
        ("other", str(n)) for n in range(3)
    ]
    # The question's id does not depend on the set; the sets have random numbers of their own.
    assert {row["prompt_id"] for row in problems if row["set"] == "one"} & {
        row["prompt_id"] for row in problems if row["set"] == "other"
    } == set()
    again = tmp_path / "again"
    assert evaluated(model, again, *words, ranks=2)[0] == 0
    assert [row["tokens"] for row in rows_of(again)] == [row["tokens"] for row in rows]
    assert results_of(again)["sets"] == found["sets"]


def test_killed_and_started_again_it_ends_the_same(model: Path, prompts: Write, tmp_path: Path) -> None:
    words = (f"--set=many={prompts('many.jsonl', 24)}", "--samples=4", "rollout.batch_size=4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = evaluated(model, whole, *words)
    assert code == 0, output
    process = start("evaluate", str(model), *words, *EVEN, f"--out={killed}")
    while process.poll() is None and len(list((killed / "traces").glob("*.parquet"))) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process, limit=30)
    kept = {path.name: path.stat().st_mtime_ns for path in (killed / "traces").glob("*.parquet")}
    assert kept and not (killed / "evaluation.json").exists()
    code, output = evaluated(model, killed, *words)
    assert code == 0 and "responses are there from before" in output, output
    assert {name: (killed / "traces" / name).stat().st_mtime_ns for name in kept} == kept
    assert rows_of(killed) == rows_of(whole)
    assert results_of(killed) == results_of(whole)
    for setting, named in (
        ("--seed=5", "seed"),
        ("--samples=2", "sets.many.samples"),
        ("--temperature=0.5", "temperature"),
    ):
        code, output = evaluated(model, killed, *words, setting)
        assert code == 1 and f"with {named}=" in output, output
    prompts("many.jsonl", 23)
    code, output = evaluated(model, killed, *words)
    assert code == 1 and "with sets.many.prompts=" in output, output


def test_generate_needs_no_answers(model: Path, prompts: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (f"--prompts={prompts('asked.jsonl', 3, answers=False)}", "--samples=2", f"--out={out}")
    code, output = run("generate", str(model), *words, "rollout.max_response_tokens=8")
    assert code == 0, output
    rows = rows_of(out)
    assert [(row["kind"], row["reward"], row["answer"]) for row in rows] == [("generated", None, "")] * 6
    assert json.loads((out / "generation.json").read_text())["sets"]["asked"]["responses"] == 6


def test_greedy_and_sampled_are_compared(model: Path, prompts: Write, tmp_path: Path) -> None:
    file = prompts("both.jsonl", 6)
    greedy, sampled = tmp_path / "greedy", tmp_path / "sampled"
    assert evaluated(model, greedy, f"--set=both={file}", "--temperature=0")[0] == 0
    assert evaluated(model, sampled, f"--set=both={file}", "--samples=4")[0] == 0
    code, output = run("compare", str(greedy), str(sampled), "--json")
    assert code == 0, output
    found = json.loads(output[output.index("{") :])
    assert {each["setting"] for each in found["settings"]} == {"temperature", "sets.both.samples"}
    (difference, passed) = found["sets"]["both"]["differences"].items()
    assert difference[0] == "avg@1 and @4" and passed[0] == "pass@1"
    means = [results_of(folder)["sets"]["both"]["avg"]["value"] for folder in (greedy, sampled)]
    assert difference[1]["difference"] == pytest.approx(means[1] - means[0])
    code, output = run("compare", str(greedy), str(sampled))
    assert code == 0 and "| avg@1 and @4 |" in output


def test_a_recipe_is_evaluated_on_its_held_out_prompts(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("data.held_out=4", "--samples=2", "rollout.max_response_tokens=8", f"--out={out}")
    code, output = run("evaluate", str(QUICKSTART), "sft.steps=0", *words)
    assert code == 0, output
    assert results_of(out)["sets"]["held_out"]["problems"] == 4


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompts": ({"sets": []}, "without prompts"),
    "no file": ({"sets": ["a=nowhere.jsonl"]}, "a: data.source=nowhere.jsonl is not a file"),
    "k": ({"samples": 2, "pass_at": [4]}, "--pass-at 4 of a: pass@4 of 2 samples a prompt"),
    "twice": ({"sets": ["a={file}", "a={file}"]}, "a is named twice"),
    "name": ({"sets": ["a/b={file}"]}, "'a/b' is no name"),
    "no name": ({"sets": ["={file}"]}, "names no file"),
    "unknown": ({"sets": ["aime"]}, "--set=aime names no set"),
    "greedy": ({"temperature": 0.0, "samples": 4}, "--temperature=0 with --samples=4"),
    "preset": ({"sets": ["aime_2024={file}"]}, "aime_2024: "),
    "long": ({"longest": 500}, "max_position_embeddings=128"),
    "column": ({"overrides": ["data.columns.prompt=question"]}, "has no column question"),
    "verifier": ({"sets": ["a=reach"]}, "rewards.kind=math does not fit the source of a=reach"),
    "engine": ({"overrides": ["rollout.engine=vllm"]}, "rollout.engine=vllm with rollout.servers=[]"),
    "served": ({"served": "model"}, "--engine-holds-model=model with rollout.engine=embedded"),
    "out": ({"out": "{file}"}, "is a file"),
    "two files": ({"overrides": ["evaluation.sets.a.source=b.jsonl"]}, "=b.jsonl name two files"),
    "own verifier": (
        {"overrides": ["evaluation.sets.a.rewards.kind=reach"]},
        "evaluation.sets.a.rewards.kind=reach does not fit the source of a",
    ),
    "own field": ({"overrides": ["evaluation.sets.a.rewards.kin=math"]}, "sets.a.rewards.kin is not a field"),
    "own function": ({"overrides": ["evaluation.sets.a.rewards.kind=no.such:f"]}, "a: rewards.kind=no.such:f: module"),
    "own code": ({"overrides": ["evaluation.sets.a.rewards.kind=code"]}, "evaluation.sets.a.rewards.kind=code runs"),
    "generate": ({"name": "generate", "sets": ["gsm"]}, "--prompts=gsm names no set"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(model: Path, prompts: Write, tmp_path: Path, case: str) -> None:
    given, message = BAD[case]
    file, out = prompts("file.jsonl", 2), tmp_path / "out"
    given = {"sets": ["a={file}"], "out": str(out), "overrides": [], **given}
    given["sets"] = [word.format(file=file) for word in given["sets"]]
    given["out"] = Path(given["out"].format(file=file))
    given["overrides"] = ["rollout.max_response_tokens=20", *given["overrides"]]
    with pytest.raises(MegatronForkError) as refused:
        draw_and_count(Drawn(model, **given), judged=True)
    assert message in refused.value.message and refused.value.hint
    assert not (out / "settings.json").exists()


def test_counts_of_pass_at() -> None:
    assert counts_in("8, 1,8") == [1, 8] and counts_in(None) == []
    for text in ("1,x", "0", "-1", "1;2", "1.5", "", ","):
        with pytest.raises(MegatronForkError, match="is not a list of counts"):
            counts_in(text)


def test_ids_do_not_depend_on_the_template(model: Path, prompts: Write, tmp_path: Path) -> None:
    """Nor on the set's name; settings of `data` on the command line hold for its sets."""
    file = prompts("file.jsonl", 2)
    found = []
    for name, template in (("a", "none"), ("b", "{{ question }} ")):
        _, words = words_of_sets([f"{name}={file}"], [f"data.template={template}"])
        config = config_of(model, words)
        (chosen,) = prompt_sets(config.evaluation, config.data, config.rewards)
        problems = problems_of(name, load_prompts(chosen.data, tokenizer_of_task("reach"), part="whole"))
        found.append((chosen.data.template, [problem.id for problem in problems]))
    assert [template for template, _ in found] == ["none", "{{ question }} "]
    assert found[0][1] == found[1][1] and len(set(found[0][1])) == 2


def test_a_repeated_question_keeps_its_own_responses(prompts: Write) -> None:
    file = prompts("twice.jsonl", 1)
    file.write_text(file.read_text() * 2)
    source = load_prompts(DataConfig(source=str(file)), tokenizer_of_task("reach"), part="whole")
    first, second = problems_of("twice", source)
    assert second.id == f"{first.id}-2" and len(missing([first, second], 3, {("twice", first.id, 1)})) == 5


def test_each_set_may_have_its_own_verifier(model: Path, prompts: Write, tmp_path: Path) -> None:
    """Responses of several sets are drawn together, and each is judged by the verifier of its own set."""
    sets = [f"--set={name}={prompts(f'{name}.jsonl', 3)}" for name in ("even", "stated")]
    out = tmp_path / "out"
    words = (
        *sets,
        "--samples=4",
        "evaluation.sets.stated.rewards.kind=math",
        "evaluation.sets.stated.rewards.workers=1",
    )
    code, output = evaluated(model, out, *words)
    assert code == 0, output
    found = results_of(out)
    for row in rows_of(out):
        assert row["reward"] == (len(row["response"]) % 2 == 0 if row["set"] == "even" else 0.0)
    assert found["sets"]["even"]["maj"] is None and set(found["sets"]["stated"]["maj"]) == {"1", "2", "4"}
    assert found["settings"]["sets"]["stated"]["rewards"]["kind"] == "math"
    assert "rewards" not in found["settings"]["sets"]["even"]
    code, output = evaluated(model, out, *words[:-2])
    assert code == 1 and "with sets.stated.rewards" in output, output


@pytest.mark.parametrize("held_out", [3, 50])
def test_all_prompts_may_be_held_out(model: Path, prompts: Write, tmp_path: Path, held_out: int) -> None:
    """Where nothing is trained no prompt is needed to train on; where something is, the recipe is refused."""
    data = (f"data.source={prompts('all.jsonl', 3)}", f"data.held_out={held_out}")
    code, output = evaluated(model, tmp_path / "out", *data, "--samples=2")
    assert code == 0, output
    assert results_of(tmp_path / "out")["sets"]["held_out"]["problems"] == 3
    config = config_of(model, [*data, *EVEN, "sft.steps=0", "train.steps=0"])
    assert len(check(config, ranks=1).source.held_out) == 3
    with pytest.raises(MegatronForkError, match="leaves none to train on"):
        check(replace(config, train=replace(config.train, steps=1)), ranks=1)
