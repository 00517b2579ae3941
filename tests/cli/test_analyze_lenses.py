"""`analyze lenses` on a real small model: every value is what transformers gives sequence by sequence; budgets hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run
from support.trace_files import TOKENIZER, made_up, save_model, write_made_up
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from megatron_fork.analysis import greedy_pruning, normalised_cross_covariance
from megatron_fork.cli import app, guard
from megatron_fork.traces import TracedResponse

ANSWER = "need +0 done"


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lenses")
    save_model(folder / "model")
    write_made_up(folder / "traces.parquet", some_ended(with_entropy=False))
    return folder


def some_ended(*, with_entropy: bool = True) -> list[TracedResponse]:
    """Of 8 responses every third is cut off: its last token is of its reasoning."""
    rows = made_up(8, with_entropy=with_entropy)
    ends = TOKENIZER.eos_token_id
    return [
        row
        if number % 3 == 0
        else replace(row, tokens=[*list(row.tokens)[:-1], ends], token_texts=None, finish_reason="stop")
        for number, row in enumerate(rows)
    ]


def reasoning_of(response: TracedResponse) -> list[int]:
    tokens = list(response.tokens)
    return tokens[:-1] if tokens[-1] == TOKENIZER.eos_token_id else tokens


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyze", "lenses", *map(str, words)])
    return result.exit_code, result.output


def values_of(folder: Path) -> tuple[list[dict], list[dict]]:
    rows = [json.loads(line) for line in (folder / "lens_values.jsonl").read_text().splitlines()]
    return [row for row in rows if "tokens" in row], [row for row in rows if "reference_tokens" in row]


class Whole:
    """The model of transformers, read one sequence at a time in float64."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
        self.states: list[torch.Tensor] = []
        self.model.model.norm.register_forward_pre_hook(lambda _, inputs: self.states.append(inputs[0][0]))

    @torch.no_grad()
    def read(self, prefix: list[int], targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(log-prob of each target, states that predict them)."""
        log_p = self.model(torch.tensor([[*prefix, *targets]])).logits[0].log_softmax(-1)
        places = range(len(prefix) - 1, len(prefix) + len(targets) - 1)
        return log_p[places, targets].numpy(), self.states[-1][places].numpy()

    @torch.no_grad()
    def last_state(self, tokens: list[int]) -> np.ndarray:
        self.model(torch.tensor([tokens]))
        return self.states[-1][-1].numpy()


def test_the_values_are_those_of_their_definitions(place: Path, tmp_path: Path) -> None:
    code, output = call(place / "traces.parquet", place / "model", "--answer", ANSWER, "--out", tmp_path)
    assert code == 0, output
    whole, answer = Whole(place / "model"), TOKENIZER(ANSWER)["input_ids"]
    rows, references = values_of(tmp_path)
    given = some_ended()
    assert len(rows) == 8
    for row, response in zip(rows, given, strict=True):
        prompt, tokens, chain = response.prompt_tokens, list(response.tokens), reasoning_of(response)
        assert row["reasoning_tokens"] == len(chain)  # without the end token, where there is one
        _, states = whole.read(prompt, tokens)
        expected = normalised_cross_covariance(states, whole.last_state(TOKENIZER("7")["input_ids"]))
        np.testing.assert_allclose(row["mi"], expected, rtol=1e-3)

        def score(chains, prompt=prompt):
            return [float(whole.read([*prompt, *each], answer)[0].sum()) for each in chains]

        assert row["pruning"] == [*greedy_pruning(chain, score), *[None] * (len(tokens) - len(chain))]
    for number, reference in enumerate(references):
        group = given[4 * number : 4 * number + 4]
        certainty = [whole.read([*each.prompt_tokens, *reasoning_of(each)], answer)[0] for each in group]
        np.testing.assert_allclose(reference["variance"], np.std(certainty, axis=0), atol=1e-5)
        assert reference["rollouts"] == 4 and reference["reference_tokens"] == ["need", " +0", " done"]
    record = json.loads((tmp_path / "lenses.json").read_text())
    read = {name: lens["read_tokens"] for name, lens in record["lenses"].items()}
    assert read["entropy"] == sum(4 + len(each.tokens) - 1 for each in given)
    assert f"entropy: reads {read['entropy']:,} tokens" in output and f"pruning: reads {read['pruning']:,} " in output
    assert record["tokens_spent"] == sum(read.values())
    assert {(pair["first"], pair["second"]) for pair in record["agreement"]} >= {("entropy", "mi"), ("mi", "pruning")}
    assert (tmp_path / "lenses_agreement.svg").is_file() and (tmp_path / "lenses_agreement.png").is_file()


def test_the_budget_stops_before_it_is_exceeded(place: Path, tmp_path: Path) -> None:
    words = (place / "traces.parquet", place / "model", "--answer", ANSWER, "--lens", "mi,pruning")
    code, output = call(*words, "--token-budget", 400, "--out", tmp_path)
    assert code == 0, output
    record = json.loads((tmp_path / "lenses.json").read_text())
    assert 0 < record["tokens_spent"] <= 400 and record["lenses"]["pruning"]["left_out"] > 0
    assert "left out, which the token budget does not hold" in output
    rows, _ = values_of(tmp_path)
    known = [any(value is not None for value in row["pruning"]) for row in rows if row["reasoning_tokens"]]
    assert known.count(False) == record["lenses"]["pruning"]["left_out"] - sum(not r["reasoning_tokens"] for r in rows)


def test_anchors_of_an_engine(place: Path, tmp_path: Path) -> None:
    """Sentences of the reach task end with " ."; a response's tokens have the importance of their sentence."""
    walk = TOKENIZER("need +3 take op+1 get 5 . need +2 done <eos>")["input_ids"]
    rows = [replace(each, tokens=walk, token_texts=None, response="", entropy=None) for each in made_up(2)]
    write_made_up(tmp_path / "walks.parquet", rows)
    words = ("--setting", "rewards.kind=tests.support.judging:even", "--setting", "rewards.workers=0")
    settings = (*words, "--setting", "rollout.max_response_tokens=20", "--anchor-samples", 4)
    code, output = call(
        tmp_path / "walks.parquet", place / "model", "--lens", "anchors", *settings, "--out", tmp_path / "out"
    )
    assert code == 0, output
    assert "2 responses x 4 samples" in output
    found, _ = values_of(tmp_path / "out")
    for row in found:
        assert [text for text, _ in row["sentences"]] == [" need +3 take op+1 get 5 .", " need +2 done"]
        (first, second) = (value for _, value in row["sentences"])
        assert first >= 0.0 and second > 0.0 and row["anchors"] == [*[first] * 7, *[second] * 3, None]
    record = json.loads((tmp_path / "out" / "lenses.json").read_text())["lenses"]["anchors"]
    assert record["read_tokens"] == 2 * 4 * (4 + 4 + 7) and 0 < record["drawn_tokens"] <= 2 * 4 * (20 + 13)


def test_where_the_answer_begins_is_found_in_the_text(place: Path, tmp_path: Path) -> None:
    walk = TOKENIZER("need +3 take op+1 get 5 . need +2 done <eos>")["input_ids"]
    rows = [replace(each, tokens=walk, token_texts=None) for each in made_up(1, with_entropy=False)]
    write_made_up(tmp_path / "walks.parquet", rows)
    words = ("--lens", "pruning", "--answer", ANSWER, "--out", tmp_path / "out", "--pruning", "chain_and_answer")
    for begins, reasoning in (("need", 7), ("done", 9), ("nothing of the kind", 10)):
        code, output = call(tmp_path / "walks.parquet", place / "model", *words, "--answer-begins", begins)
        assert code == 0, output
        (row,), _ = values_of(tmp_path / "out")
        assert row["reasoning_tokens"] == reasoning
        ranks = [value for value in row["pruning"] if value is not None]
        assert sorted(ranks) == list(range(reasoning))


def test_over_responses_all_share_one_trajectory(place: Path, tmp_path: Path) -> None:
    write_made_up(tmp_path / "traces.parquet", made_up(24))
    words = ("--lens", "entropy,mi", "--mi", "responses", "--gold", "from {answer}", "--out", tmp_path / "out")
    code, output = call(tmp_path / "traces.parquet", place / "model", *words)
    assert code == 0, output
    rows, _ = values_of(tmp_path / "out")
    longest = max((row["mi"] for row in rows), key=len)
    assert all(row["mi"] == longest[: len(row["mi"])] for row in rows)
    # The gold answers are all 7: nothing can depend on them.
    assert all(value is None for value in longest)


def test_a_limit_keeps_the_responses_to_a_prompt_together(place: Path, tmp_path: Path) -> None:
    """Engines finish in any order, and so do traces."""
    rows = made_up(12)
    write_made_up(tmp_path / "traces.parquet", [rows[(5 * number) % 12] for number in range(12)])
    code, output = call(
        tmp_path / "traces.parquet", place / "model", "--lens", "entropy", "--limit", 2, "--out", tmp_path / "out"
    )
    assert code == 0, output
    found, _ = values_of(tmp_path / "out")
    names = [f"made_up/{number:016x}" for number in (0, 1)]
    assert [(row["prompt_id"], row["sample"]) for row in found] == [(name, n) for name in names for n in range(4)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lens", "entropy,magic"), "--lens=magic is none of entropy, mi, variance, anchors, pruning"),
        (("--lens", ","), "--lens names no lens"),
        (("--lens", "pruning", "--answer", ""), "has no tokens"),
    ],
)
def test_what_cannot_be_is_told(place: Path, words: tuple[str, ...], message: str) -> None:
    code, output = call(place / "traces.parquet", place / "model", *words)
    assert code != 0 and message in " ".join(output.split()) and "Traceback" not in output


def test_traces_that_the_model_cannot_read_are_told(place: Path, tmp_path: Path) -> None:
    first = made_up(1)[0]
    for name, rows, message in (
        ("long", [replace(first, tokens=[9] * 200, token_texts=None, entropy=None)], "max_position_embeddings=128"),
        ("bare", [replace(first, prompt_tokens=[])], "has no prompt tokens"),
        ("empty", [replace(first, tokens=[], token_texts=[], entropy=[])], "no response with tokens"),
    ):
        write_made_up(tmp_path / f"{name}.parquet", rows)
        code, output = call(tmp_path / f"{name}.parquet", place / "model")
        assert code == 1 and message in " ".join(output.split()), output


@pytest.mark.slow
def test_on_several_ranks_it_refuses(place: Path) -> None:
    code, output = run("analyze", "lenses", str(place / "traces.parquet"), str(place / "model"), ranks=2)
    assert code == 2 and output.count("reads with one rank") == 1, output
