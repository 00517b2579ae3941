"""A plan says whether a recipe fits, what would fit instead, and how many GPUs it takes; bad questions get one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from megatron_fork.cli.plan import as_record, show_plan
from megatron_fork.config import RunConfig, load_config
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import ConfigError, LayoutError
from megatron_fork.planning import Question, plan

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(name: str = "qwen3-32b/top20_29k", *overrides: str) -> RunConfig:
    return load_config(EXAMPLES / f"{name}.yaml", list(overrides))


@pytest.fixture(scope="module")
def answer() -> dict:
    """How many H100 for Qwen3-32B at 29,696 tokens."""
    return as_record(plan(recipe(), Question()))


def test_how_many_gpus(answer: dict) -> None:
    fewest, balanced = answer["fewest"], answer["balanced"]
    assert answer["fits"] and answer["parameters"] == 32_762_123_264
    # 16 bytes a parameter for weights, gradients and main parameters, or 18 with one replica, do not fit on one node of 640 GB.
    assert fewest["trainer_ranks"] >= 16 and fewest["peak_bytes"] <= answer["usable_bytes"]
    assert balanced["seconds"]["rollout"] <= balanced["seconds"]["update"] + balanced["seconds"]["statistics"]
    assert balanced["gpus"] >= fewest["gpus"]


def test_every_suggestion_fits_and_the_fastest_comes_first(answer: dict) -> None:
    training = [each["seconds"]["statistics"] + each["seconds"]["update"] for each in answer["suggested"]]
    assert training == sorted(training) and training
    assert all(each["peak_bytes"] <= answer["usable_bytes"] for each in answer["suggested"])
    assert all("assumptions" in each and each["assumptions"] for each in answer["suggested"])


def test_a_suggestion_can_be_planned_in_turn(answer: dict) -> None:
    first = answer["suggested"][0]
    plain = ("parallel.sequence=false", "parallel.tensor=1", "parallel.context=1")
    config = recipe("qwen3-32b/top20_29k", *plain, *first["layout"])
    again = plan(config, Question(gpus=first["gpus"]))
    assert again.own.peak == first["peak_bytes"] and again.own.fits


def test_fewer_rows_take_less_memory(answer: dict) -> None:
    head = answer["lm_head_of_one_response"]
    assert head["selected rows"] < head["all rows"] < head["all logits at once"]
    assert head["fraction selected"] == 0.2


@pytest.mark.parametrize("name", ["qwen3-30b-a3b/top20", "qwen3-32b/top20_29k", "qwen3-0.6b/top20", "systems/ppo"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("compute.backend=local", "compute.recompute=none"),
        ("policy.precision=fp32",),
        ("rollout.engine=embedded", "rollout.servers=[]"),
    ],
)
def test_the_parts_of_a_peak_are_all_of_it(name: str, overrides: tuple[str, ...]) -> None:
    """Whichever phase is the fullest, and whatever it has in common with what is held."""
    for stage in plan(recipe(name, *overrides), Question()).own.stages:
        assert sum(stage.parts.values()) == pytest.approx(stage.peak)


def test_what_fits_is_monotone_in_tokens_and_memory() -> None:
    """More tokens in a micro-batch never take less memory, and the largest budget is where it stops to fit."""
    config = recipe("qwen3-8b/top20")
    found = plan(config, Question(gpus=config.cluster.gpus_per_node * 2))
    at = [found.budget, found.budget + 1024]
    fits = [
        plan(
            replace(config, policy=replace(config.policy, tokens_per_micro_batch=tokens)),
            Question(gpus=config.cluster.gpus_per_node * 2),
        ).own.fits
        for tokens in at
    ]
    assert fits == [True, False]


def test_a_recipe_that_cannot_fit_names_the_largest_part_and_a_way_out() -> None:
    config = replace(recipe(), parallel=ParallelConfig(), compute=replace(recipe().compute, recompute="none"))
    with pytest.raises(
        LayoutError, match=r"needs [0-9.]+ [GT]iB on a rank of pipeline stage 0, of 76.0 GiB: most of it for "
    ):
        plan(config, Question()).refuse()
    with pytest.raises(LayoutError) as caught:
        plan(config, Question()).refuse()
    assert "fits on" in caught.value.hint and "parallel." in caught.value.hint


def test_layers_that_may_be_either_are_planned_as_those_that_keep_more() -> None:
    def peak(backend: str, precision: str) -> float:
        words = (f"compute.backend={backend}", f"policy.precision={precision}", "compute.recompute=none")
        return plan(recipe("qwen3-8b/top20", *words), Question()).own.peak

    assert peak("auto", "bf16") == peak("transformer_engine", "bf16") > peak("local", "bf16")
    assert peak("auto", "fp32") == peak("local", "fp32")


@pytest.mark.parametrize(
    ("question", "overrides", "words"),
    [
        (Question(gpus=12), (), "--gpus=12 is not a multiple of cluster.gpus_per_node=8"),
        (Question(gpus=8), (), "--gpus=8 is less than the 16 ranks"),
        (Question(nodes=1), (), "--nodes=1 leaves no node to the engines"),
        (Question(), ("cluster.gpu=Voodoo",), "cluster.gpu=Voodoo is no GPU whose speed is known"),
        (Question(), ("cluster.gpus_per_node=0",), "there is no GPU to plan for"),
        (Question(), ("parallel.tensor=7",), "parallel.tensor=7 does not divide the model's num_attention_heads"),
        (Question(), ("parallel.context=3",), "is not a multiple of parallel.tensor x pipeline x context = "),
    ],
)
def test_bad_questions(question: Question, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises((ConfigError, LayoutError)) as caught:
        plan(recipe("qwen3-32b/top20_29k", *overrides), question)
    assert words in caught.value.message and caught.value.hint and "\n" not in caught.value.message


def test_json_is_json_and_the_table_has_all_stages(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(recipe("qwen3-8b/top20"), Question(gpus=16), Console(), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["own"]["gpus"] <= 16 and len(record["stages"]) == 1
    config = replace(recipe("qwen3-8b/top20"), parallel=ParallelConfig(pipeline=4))
    show_plan(config, Question(gpus=16), Console(), as_json=False)
    printed = capsys.readouterr().out
    assert all(f"stage {stage}, peak" in printed for stage in range(4))
