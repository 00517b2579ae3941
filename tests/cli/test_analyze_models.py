"""What `analyze` computes with a model is what that model's softmax gives, token by token; other tokens are refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from support.commands import run, trace_rows
from support.ranks import run_on_ranks
from support.trace_files import TOKENIZER, made_up, save_model, write_made_up
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from megatron_fork.cli import app, guard
from megatron_fork.traces import Origin, open_traces, write_traces


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one shape, `base` and `final`, another family's `other`, and traces without entropies."""
    place = tmp_path_factory.mktemp("models")
    save_model(place / "base")
    save_model(place / "final", scale=1.3)
    save_model(place / "other", family="gpt2")
    write_made_up(place / "traces.parquet", made_up(with_entropy=False))
    return place


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyze", *map(str, words)])
    return result.exit_code, result.output


def expected(
    model: Path, prompt: list[int], tokens: list[int], temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Log-prob and entropy of each token, from transformers' logits in float64."""
    built = AutoModelForCausalLM.from_pretrained(model).double().eval()
    with torch.no_grad():
        logits = built(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1] / temperature
    p = logits.softmax(-1)
    return p.log()[range(len(tokens)), tokens].numpy(), -(p * p.log()).sum(-1).numpy()


def assert_scored(rows: list[dict], model: Path, temperature: float = 1.0) -> None:
    for row in rows:
        logprob, entropy = expected(model, row["prompt_tokens"], row["tokens"], temperature)
        np.testing.assert_allclose(row["logprob"], logprob, atol=2e-5)
        np.testing.assert_allclose(row["entropy"], entropy, atol=2e-5)


@pytest.mark.parametrize("name", ["base", "other"])
def test_rescored_traces_have_the_models_entropies(folder: Path, tmp_path: Path, name: str) -> None:
    code, output = call("rescore", folder / "traces.parquet", folder / name, "--out", tmp_path / "out.parquet")
    assert code == 0 and "one statistics pass" in output, output
    rows, before = trace_rows(tmp_path / "out.parquet"), trace_rows(folder / "traces.parquet")
    assert_scored(rows, folder / name)
    scores = {"entropy": None, "logprob": None}
    assert [row | scores for row in rows] == [row | scores for row in before]
    assert open_traces(tmp_path / "out.parquet").origin.model == str(folder / name)


def test_the_temperature_of_the_traces_is_kept(folder: Path, tmp_path: Path) -> None:
    before = open_traces(folder / "traces.parquet").origin
    warm = Origin(tokenizer=before.tokenizer, temperature=0.5)
    write_traces(tmp_path / "in.parquet", made_up(5), warm)
    assert call("rescore", tmp_path / "in.parquet", folder / "base", "--out", tmp_path / "out.parquet")[0] == 0
    assert_scored(trace_rows(tmp_path / "out.parquet"), folder / "base", temperature=0.5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "rollout.engine=embedded, which gets its weights here"),
        (("rollout.engine=vllm",), "needs at least one address"),
        (("rollout.engine=sglang", "rollout.servers=[http://127.0.0.1:9]"), "http://127.0.0.1:9"),
        (("rollout.engine=vllm", "rollout.servers=[http://127.0.0.1:9]", "rollout.temperature=0.5"), "temperature 0.5"),
    ],
    ids=["no servers' engine", "no address", "nobody there", "another temperature"],
)
def test_servers_that_cannot_score_are_named(folder: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    settings = [f"--setting={word}" for word in words]
    traces, out = folder / "traces.parquet", tmp_path / "out.parquet"
    code, output = call("rescore", traces, folder / "base", "--engine-holds-model=base", *settings, "--out", out)
    assert code in (1, 2) and told in output and "\n  " in output and not list(tmp_path.iterdir()), output


@pytest.mark.parametrize("name", ["base", "other"])
def test_any_responses_of_any_model_in_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "responses.jsonl"
    texts = [["take op+1 get 11 .", "take op+10"], ["get 12 ."]]
    lines = [{"question": "get 5 . need -6", "output": each, "score": [1, 0][: len(each)]} for each in texts]
    file.write_text("\n".join(map(json.dumps, lines)))
    code, output = call(folder / name, "--responses", file, "--out", tmp_path / "out", "--minimum-count", 1)
    assert code == 0 and "highest mean entropy" in output and "wrote entropy.json" in output, output
    rows = trace_rows(tmp_path / "out" / "traces.parquet")
    assert [row["response"] for row in rows] == [text for each in texts for text in each]
    assert {row["kind"] for row in rows} == {"given"} and [row["reward"] for row in rows] == [1, 0, 1]
    assert_scored(rows, folder / name)
    record = json.loads((tmp_path / "out" / "entropy.json").read_text())
    assert record["groups"]["all"]["tokens"] == sum(len(row["tokens"]) for row in rows)
    assert record["groups"]["all"]["mean"] == pytest.approx(np.concatenate([row["entropy"] for row in rows]).mean())


def _on_ranks(folder: str, out: str) -> list[str]:
    from megatron_fork.run import Display, entropies_of, scorer

    files = open_traces(Path(folder) / "traces.parquet")
    found = []
    for layout in ("parallel.tensor=2", "seed=1"):
        with scorer(Path(folder) / "base", Display(speaks=False), overrides=[layout]) as scores:
            found.append(entropies_of(files, scores).entropy.tolist())
    return found


def test_ranks_that_share_a_model_or_the_responses_give_the_same(folder: Path, tmp_path: Path) -> None:
    first, second = run_on_ranks(_on_ranks, 2, str(folder), str(tmp_path))
    whole = np.concatenate([
        expected(folder / "base", row["prompt_tokens"], row["tokens"])[1] for row in trace_rows(folder / "traces.parquet")
    ])  # fmt: skip
    for entropy_t in first:
        np.testing.assert_allclose(entropy_t, whole, atol=2e-5)
    assert not any(second)


def test_evolution_over_checkpoints(folder: Path, tmp_path: Path) -> None:
    names = f"{folder / 'base'},{folder / 'base'},{folder / 'final'}"
    code, output = call("evolution", folder / "traces.parquet", "--models", names, "--json", "--out", tmp_path)
    assert code == 0, output
    base, same, final = json.loads(output[: output.rindex("}") + 1])["stages"]
    assert base["overlap_base"] == same["overlap_base"] == final["overlap_final"] == 1.0
    rows = trace_rows(folder / "traces.parquet")
    entropies = [
        np.concatenate([expected(folder / name, row["prompt_tokens"], row["tokens"])[1] for row in rows])
        for name in ("base", "final")
    ]
    assert [base["mean"], final["mean"]] == pytest.approx([each.mean() for each in entropies], abs=1e-5)
    k = -(-len(entropies[0]) // 5)
    chosen = [set(np.argsort(-each)[:k].tolist()) for each in entropies]
    assert final["overlap_base"] == pytest.approx(len(chosen[0] & chosen[1]) / k, abs=2 / k)
    assert (tmp_path / "overlap.svg").is_file()


def test_many_checkpoints_keep_their_names(folder: Path, tmp_path: Path) -> None:
    names = [tmp_path / f"checkpoint-of-step-{number:06}" for number in range(10)]
    for name in names:
        name.symlink_to(folder / "base")
    code, output = call("evolution", folder / "traces.parquet", "--models", ",".join(map(str, names)))
    assert code == 0, output
    tables = output[output.index("as final") :]
    assert all(name.name in tables[tables.index("mean change") :] for name in names[1:]) and "…" not in tables
    assert tables.count("95 - 100") == 2


def test_two_selections_and_their_gradients(folder: Path, tmp_path: Path) -> None:
    words = ("compare-masks", folder / "traces.parquet", folder / "base", "--json", "--out", tmp_path)
    code, output = call(
        *words, "--a", "selection.scope=minibatch selection.rule=exact_k", "--b", "selection.scope=sequence"
    )
    assert code == 0, output
    record = json.loads((tmp_path / "masks.json").read_text())
    rows = [row for row in trace_rows(folder / "traces.parquet") if row["reward"] is not None]
    entropies = [expected(folder / "base", row["prompt_tokens"], row["tokens"])[1] for row in rows]
    tokens = sum(map(len, entropies))
    assert record["tokens"] == tokens and record["selected"]["a"] == -(-tokens // 5)
    assert record["selected"]["b"] == sum(-(-len(each) // 5) for each in entropies)
    assert -1 <= record["gradient_cosine"] <= 1 and record["gradient_norms"]["a"] > 0
    code, output = call(*words, "--a", "selection.tokens=all", "--b", "selection.ratio=1.0")
    assert code == 0, output
    record = json.loads((tmp_path / "masks.json").read_text())
    assert record["share_that_differs"] == 0 and record["jaccard"] == 1 and not record["examples"]
    assert record["gradient_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_old_entropies_are_those_of_the_old_model(folder: Path, tmp_path: Path) -> None:
    words = ("compare-masks", folder / "traces.parquet", folder / "base", "--old", folder / "final", "--no-gradient")
    settings = ("--a", "selection.entropy_policy=old", "--b", "selection.entropy_policy=current", "--out", tmp_path)
    code, output = call(*words, *settings)
    assert code == 0 and "2 statistics passes" in output, output
    record = json.loads((tmp_path / "masks.json").read_text())
    assert record["gradient_cosine"] is None and 0 < record["jaccard"] < 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("rescore", "{}/traces.parquet", "{}/none", "--out", "{}/x.parquet"), "is neither a recipe nor the folder"),
        (("rescore", "{}/none.parquet", "{}/base", "--out", "{}/x.parquet"), "is not there"),
        (("rescore", "{}/traces.parquet", "{}/base", "--out", "{}/traces.parquet"), "is one of the traces"),
        (("rescore", "{}/alien.parquet", "{}/base", "--out", "{}/x.parquet"), "has tokens of the vocabulary f00d"),
        (
            ("rescore", "{}/large.parquet", "{}/base", "--out", "{}/x.parquet"),
            "has token 5000, the model's vocab_size is 135",
        ),
        (("rescore", "{}/bare.parquet", "{}/base", "--out", "{}/x.parquet"), "has no prompt tokens"),
        (
            ("rescore", "{}/long.parquet", "{}/base", "--out", "{}/x.parquet"),
            "has 135 tokens with its prompt, more than",
        ),
        (("entropy", "{}/traces.parquet"), "none of the 12 responses has entropies"),
        (("entropy", "{}/cut.parquet"), "cut.parquet cannot be read as Parquet"),
        (("entropy", "{}/columns.parquet"), "columns.parquet has no column tokens, kind"),
        (("entropy", "{}/alien.parquet", "{}/traces.parquet"), "has tokens of another tokenizer than"),
        (("evolution", "{}/traces.parquet"), "--models and --run: one of them is needed"),
        (("evolution", "{}/traces.parquet", "--models", "{}/base"), "is one model"),
        (("compare-masks", "{}/traces.parquet", "{}/base", "--a", "seed=1"), "seed=1 is no selection.* field"),
        (("compare-masks", "{}/traces.parquet", "{}/base", "--b", "selection.ratio=7"), "selection.ratio"),
        (("{}/base", "--responses", "{}/none.jsonl"), "is not a file"),
        (("{}/traces.parquet", "--responses", "{}/none.jsonl"), "traces.parquet"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, words: tuple[str, ...], line: str) -> None:
    own, few = open_traces(folder / "traces.parquet").origin, made_up(2)

    def damaged(**fields: object) -> list:
        return [few[0], replace(few[1], token_texts=None, entropy=None, **fields)]

    write_traces(folder / "alien.parquet", few, replace(own, tokenizer="f00d"))
    write_traces(folder / "large.parquet", damaged(tokens=[9, 5000]), replace(own, tokenizer=""))
    write_traces(folder / "bare.parquet", damaged(prompt_tokens=[]), own)
    write_traces(folder / "long.parquet", damaged(tokens=[9] * 131), own)
    before = (folder / "traces.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(before[:-200])
    table = pa.parquet.read_table(folder / "traces.parquet")
    pa.parquet.write_table(table.drop_columns(["tokens", "kind"]), folder / "columns.parquet")
    code, output = call(*(word.format(folder) for word in words))
    told = output.strip().splitlines()
    assert code in (1, 2) and any(line in each for each in told if each.startswith("error: ")), output
    assert not (folder / "x.parquet").exists() and (folder / "traces.parquet").read_bytes() == before
    assert "Traceback" not in output


def test_a_tokenizer_that_is_the_same_has_the_same_fingerprint(folder: Path) -> None:
    from transformers import AutoTokenizer

    from megatron_fork.traces import vocabulary_fingerprint

    loaded = AutoTokenizer.from_pretrained(folder / "base")
    assert vocabulary_fingerprint(loaded) == vocabulary_fingerprint(TOKENIZER)
    loaded.add_tokens(["new"])
    assert vocabulary_fingerprint(loaded) != vocabulary_fingerprint(TOKENIZER)


def _gradients_on_ranks(folder: str, layout: str) -> tuple[float, float]:
    """Cosine by the norms, and by the product of the gradients themselves where one rank holds them whole."""
    from megatron_fork.run import Display, config_of, masks, model_context

    config = config_of(Path(folder) / "base", [layout])
    files = open_traces(Path(folder) / "traces.parquet")
    held: list[list[torch.Tensor]] = []
    learner_gradient = masks.Learner.gradient

    def gradient(learner: masks.Learner, *words: object) -> float:
        norm = learner_gradient(learner, *words)
        held.append([buffer.double().clone() for buffer in learner.policy.gradient_buffers])
        return norm

    masks.Learner.gradient = gradient
    settings = config.selection, replace(config.selection, tokens="random")
    with model_context(config, Display(speaks=False)) as context:
        found = masks.two_selections(context, files, settings, responses=99, old=None, gradients=True)
    masks.Learner.gradient = learner_gradient
    if found is None:
        return 0.0, 0.0
    first, second = (torch.cat([buffer.flatten() for buffer in buffers]) for buffers in held)
    return found.cosine, float(torch.nn.functional.cosine_similarity(first, second, dim=0))


@pytest.mark.slow
def test_the_cosine_is_that_of_the_gradients_under_every_layout(folder: Path) -> None:
    ((cosine, product),) = run_on_ranks(_gradients_on_ranks, 1, str(folder), "seed=1")
    assert cosine == pytest.approx(product, abs=1e-4) and abs(cosine) < 0.99
    for layout in ("parallel.tensor=2", "seed=1"):
        (split, _), nothing = run_on_ranks(_gradients_on_ranks, 2, str(folder), layout)
        assert split == pytest.approx(cosine, abs=1e-3) and nothing == (0.0, 0.0)


@pytest.mark.slow
def test_a_model_for_one_rank_alone_is_refused_once_on_several(folder: Path, tmp_path: Path) -> None:
    """The first rank says it before any other has ended, whatever sort of error it is."""
    words = ("rescore", folder / "traces.parquet", folder / "other", "--out", tmp_path / "out.parquet")
    code, output = run("analyze", *map(str, words), ranks=2)
    assert code == 2, output
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        f"error: {folder / 'other'} is scored by transformers on one rank, this is one of 2"
    ]
