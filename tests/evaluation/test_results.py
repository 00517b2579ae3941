"""Majorities count answers that the verifier takes as equal; numbers of a set are refused where responses are missing."""

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation import (
    Finished,
    Outcomes,
    Problem,
    ballots,
    compare_evaluations,
    read_evaluation,
    results_of_set,
)
from megatron_fork.evaluation.folder import claim_folder
from megatron_fork.evaluation.tables import cell
from megatron_fork.experience import Prompt
from megatron_fork.rewards import RewardPool, RewardsConfig, answer_in


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(RewardsConfig(kind="math")) as made:
        yield made


def test_equal_answers_share_their_votes(pool: RewardPool) -> None:
    stated = [
        (r"\frac{1}{2}", 1.0),
        ("0.5", 1.0),
        (r"\dfrac12", 1.0),
        ("7", 0.0),
        ("7.0", 0.0),
        (None, 0.0),
        ("x+1", 0.0),
    ]
    stated += [("1+x", 0.0), (r"\notacommand{", 0.0), (r"\notacommand{", 0.0)]
    (found,) = ballots([stated], pool)
    assert sorted(found.votes, reverse=True) == [3, 2, 2, 2]
    assert found.votes[0] == 3 and found.right == [1.0, 0.0, 0.0, 0.0]


def test_verifiers_that_compare_nothing_count_texts() -> None:
    with RewardPool(RewardsConfig(kind="reasoning_gym")) as pool:
        (found,) = ballots([[("a  b", 1.0), ("a b", 1.0), ("12", 0.0), ("12.0", 0.0), ("12", 0.0)]], pool)
    assert (found.votes, found.right) == ([3, 2], [0.0, 1.0])
    assert answer_in("<answer> 4 </answer>", "reasoning_gym") == "4"
    assert answer_in(r"so \boxed{\frac{1}{2}}.", "math") == r"\frac{1}{2}"
    assert answer_in("I do not know", "math") is None


def outcomes(answers: list[str], right: str) -> Outcomes:
    found = Outcomes()
    for sample, answer in enumerate(answers):
        found.rewards[sample], found.tokens[sample] = float(answer == right), 10 + sample
        found.answers[sample] = answer
    return found


def test_numbers_of_a_set(pool: RewardPool) -> None:
    problems = [Problem("set", name, Prompt(n, name, (1,), "7")) for n, name in enumerate("ab")]
    found = {("set", "a"): outcomes(["7", "7", "8", "9"], "7"), ("set", "b"): outcomes(["1", "7", "1", "2"], "7")}
    numbers, rows = results_of_set(problems, found, pool, samples=4, ks=[1, 4], seed=0)
    assert numbers["avg"]["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert (numbers["maj"]["4"]["value"], numbers["pass"]["4"]["value"]) == (0.5, 1.0)
    assert numbers["maj"]["1"]["value"] == pytest.approx(numbers["avg"]["value"])
    assert rows[0]["answers"] == [["7", 2], ["8", 1], ["9", 1]]
    assert numbers["response_tokens"]["max"] == 13
    with pytest.raises(EvaluationError, match="pass@8 of 4 samples"):
        results_of_set(problems, found, pool, samples=4, ks=[8], seed=0)
    with pytest.raises(EvaluationError, match="problem b of set has 4 of 5 responses"):
        results_of_set(problems, {**found, ("set", "a"): outcomes(["7"] * 5, "7")}, pool, samples=5, ks=[1], seed=0)
    with pytest.raises(EvaluationError, match="problem c of set has 0 of 4 responses"):
        results_of_set([Problem("set", "c", Prompt(0, "", (1,), ""))], found, pool, samples=4, ks=[1], seed=0)


def test_one_process_and_one_evaluation_a_folder(tmp_path: Path) -> None:
    out, settings = tmp_path / "out", {"seed": 0, "sets": {"a": {"samples": 4}}}
    with claim_folder(out, settings), pytest.raises(EvaluationError, match="in use by another process"):
        claim_folder(out, settings)
    claim_folder(out, settings).close()
    with pytest.raises(EvaluationError, match=r"with sets\.a\.samples=4, not 8"):
        claim_folder(out, {"seed": 0, "sets": {"a": {"samples": 8}}})
    with pytest.raises(EvaluationError, match=r"with seed=0, not 1, and 1 more differ"):
        claim_folder(out, {"seed": 1, "sets": {"a": {"samples": 8}}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(EvaluationError, match="holds files that are not of an evaluation"):
        claim_folder(tmp_path / "other", settings)
    with pytest.raises(EvaluationError, match="is a file"):
        claim_folder(tmp_path / "other" / "notes.txt", settings)
    (out / "settings.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"settings\.json cannot be read"):
        claim_folder(out, settings)


def written(folder: Path, rows: str) -> Path:
    folder.mkdir()
    (folder / "evaluation.json").write_text('{"sets": {"s": 1}, "settings": {"sets": {}}}')
    (folder / "problems.jsonl").write_text(rows)
    return folder


def row(problem: str, right: int, *, set: str = "s", answer: str = "7", samples: int = 4) -> str:
    share = right / samples
    return (
        f'{{"set": "{set}", "prompt_id": "{problem}", "prompt": "<b>|q|</b>", "answer": "{answer}", "samples": {samples}, '
        f'"right": {right}, "avg@{samples}": {share}, "pass@1": {share}}}\n'
    )


def test_paired_differences_and_flips(tmp_path: Path) -> None:
    first = read_evaluation(written(tmp_path / "a", row("p", 4) + row("q", 0) + row("r", 2) + row("x", 1, set="t")))
    second = read_evaluation(written(tmp_path / "b", row("q", 3) + row("p", 1) + row("r", 2)))
    found = compare_evaluations(first, second)
    of_set = found["sets"]["s"]
    assert of_set["differences"]["avg@4"]["difference"] == pytest.approx((-0.75 + 0.75 + 0) / 3)
    assert (of_set["gained"], of_set["lost"], of_set["better"], of_set["worse"]) == (1, 1, 1, 1)
    assert [(each["prompt_id"], each["first"], each["second"]) for each in of_set["flipped"]] == [
        ("q", 0.0, 0.75),
        ("p", 1.0, 0.25),
    ]
    assert found["only_in_one"] == ["t"]
    low, high = of_set["differences"]["avg@4"]["interval"]
    assert low <= 0 <= high and (low, high) == (-0.75, 0.75)


VALUES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])
PROBLEMS = st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=4)


@given(PROBLEMS, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_differences_are_those_of_all_resamples_of_pairs(
    pairs: list[tuple[float, float, float, float]], order: random.Random
) -> None:
    """Each interval against all n^n ways to draw the problems again, both evaluations of a problem together."""

    def finished(share: int, kept: list[int]) -> Finished:
        rows = {
            f"problem {n}": {
                "samples": 8,
                "right": round(8 * pairs[n][share]),
                "answer": "7",
                "avg@8": pairs[n][share],
                "pass@4": pairs[n][share + 1],
            }
            for n in kept
        }
        return Finished(Path(), {"settings": {}}, {"s": rows})

    kept = list(range(len(pairs)))
    shuffled = order.sample(kept, len(kept))
    of_set = compare_evaluations(finished(0, kept), finished(2, shuffled), seed=order.randrange(1000))["sets"]["s"]
    for name, of in (("avg@8", 0), ("pass@4", 1)):
        apart = [pair[of + 2] - pair[of] for pair in pairs]
        found = of_set["differences"][name]
        assert found["difference"] == pytest.approx(sum(apart) / len(apart))
        assert found["first"] == pytest.approx(sum(pair[of] for pair in pairs) / len(pairs))
        means = sorted(sum(drawn) / len(apart) for drawn in product(apart, repeat=len(apart)))
        for bound, tail in zip(found["interval"], (0.025, 0.975), strict=True):
            # 10,000 draws know a tail of 2.5 % with a standard error of 0.16 points.
            low, high = (means[min(len(means) - 1, int(share * len(means)))] for share in (tail - 0.01, tail + 0.01))
            assert low - 1e-9 <= bound <= high + 1e-9
    assert of_set["better"] == sum(pair[2] > pair[0] for pair in pairs)
    assert of_set["worse"] == sum(pair[2] < pair[0] for pair in pairs)
    flipped = {f"problem {n}" for n, pair in enumerate(pairs) if (pair[0] >= 0.5) != (pair[2] >= 0.5)}
    assert {each["prompt_id"] for each in of_set["flipped"]} == flipped
    assert of_set["gained"] + of_set["lost"] == len(flipped)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row("p", 1), "set s: 1 problems are in one evaluation alone, such as q of"),
        (row("p", 1) + row("q", 0, answer="8"), "set s, problem q: the answers differ, 7 and 8"),
        (row("p", 1, set="other"), "no set in common"),
    ],
)
def test_other_prompts_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    first = read_evaluation(written(tmp_path / "a", row("p", 4) + row("q", 0)))
    with pytest.raises(EvaluationError, match=message):
        compare_evaluations(first, read_evaluation(written(tmp_path / "b", rows)))


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "{",
        "[]",
        "null\n",
        '{"set": "s"}',
        row("p", 5),
        row("p", 0, samples=1).replace('"samples": 1', '"samples": 0'),
    ],
)
def test_damaged_evaluations_are_named(tmp_path: Path, rows: str) -> None:
    with pytest.raises(EvaluationError, match=r"problems\.jsonl.* cannot be read") as refused:
        read_evaluation(written(tmp_path / "a", rows))
    assert refused.value.hint
    with pytest.raises(EvaluationError, match="has no evaluation"):
        read_evaluation(tmp_path)


def test_text_of_prompts_is_no_markup() -> None:
    assert cell("<script>|a|\n b</script>") == r"&lt;script&gt;\|a\| b&lt;/script&gt;"
