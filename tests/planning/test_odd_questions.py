"""Whatever is asked, a plan is one line of refusal or makes sense: more never takes less, and what it proposes can be typed."""

import io
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from megatron_fork.cli.plan import show_plan
from megatron_fork.config import RunConfig, load_config
from megatron_fork.errors import MegatronForkError
from megatron_fork.planning import Plan, Question, plan

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = ("qwen3-0.6b/top20", "qwen3-8b/top20", "qwen3-32b/top20_29k", "qwen3-30b-a3b/top20")


def recipe(name: str = "qwen3-8b/top20", *overrides: str) -> RunConfig:
    return load_config(EXAMPLES / f"{name}.yaml", list(overrides))


def planned(name: str, *overrides: str, **asked: float) -> Plan:
    return plan(recipe(name, *overrides), Question(**asked))


def shown(config: RunConfig, question: Question, *, as_json: bool) -> str:
    out = io.StringIO()
    try:
        show_plan(config, question, Console(file=out, highlight=False), as_json=as_json)
    except MegatronForkError as error:
        assert error.hint and "\n" not in error.message
    return out.getvalue()


def refuse_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@given(
    name=st.sampled_from(RECIPES),
    gpus=st.sampled_from([None, 1, 7, 8, 12, 16, 128, 8 * 10**9]),
    gpu_memory=st.sampled_from([1.0, 16.0, 80.0, 1e6]),
    response=st.sampled_from([None, 1, 20480, 10**12]),
    sizes=st.lists(
        st.sampled_from(
            [
                *("parallel.tensor=3", "parallel.pipeline=5", "parallel.context=3", "parallel.expert=2"),
                *(
                    "compute.recompute_layers=1000",
                    "policy.tokens_per_micro_batch=1000000000000000",
                    "cluster.gpu=h100",
                ),
                *("rollout.max_response_tokens=1", "rollout.max_response_tokens=1000000000", "cluster.gpus_per_node=6"),
            ]
        ),
        max_size=2,
        unique=True,
    ),
)
@settings(max_examples=15, deadline=None)
def test_an_answer_is_json_or_a_refusal_one_line(
    name: str, gpus: int | None, gpu_memory: float, response: int | None, sizes: list[str]
) -> None:
    try:
        config = recipe(name, *sizes)
    except MegatronForkError as error:
        assert error.hint
        return
    text = shown(config, Question(gpus, gpu_memory, None, response), as_json=True)
    if text:
        assert "own" in json.loads(text, parse_constant=refuse_constant)


def test_engines_without_room_never_end() -> None:
    config, question = recipe(), Question(gpus=16, gpu_memory=16.0)
    assert json.loads(shown(config, question, as_json=True))["own"]["seconds"]["step"] is None
    assert "rollout never ends" in shown(config, question, as_json=False)


def test_a_name_is_printed_as_it_is() -> None:
    config = recipe("qwen3-8b/top20", "run.name=:smile: [red]x[/red]")
    assert "plan of :smile: [red]x[/red]" in shown(config, Question(gpus=16), as_json=False)
    on_terminal = io.StringIO()
    show_plan(config, Question(gpus=16), Console(file=on_terminal, force_terminal=True, width=300), as_json=False)
    assert ":smile: [red]x[/red]" in on_terminal.getvalue()


@pytest.mark.parametrize(
    ("overrides", "question", "words"),
    [
        ((), Question(gpus=16, response=20481), "--response=20481 is more than rollout.max_response_tokens=20480"),
        (
            ("rollout.max_response_tokens=1000000000",),
            Question(),
            "rollout.max_response_tokens=1000000000 leaves no token",
        ),
        ((), Question(gpus=10**9), "a mini-batch has 512 responses"),
        (("cluster.nodes=1000000000000",), Question(), "a mini-batch has 512 responses"),
        (("policy.tokens_per_micro_batch=1000000000000000",), Question(), "a micro-batch of 1000000000000000 tokens"),
        (("compute.recompute_layers=1000",), Question(), "compute.recompute_layers=1000 does not divide the 36 layers"),
        (
            ("rollout.engine=vllm_colocated", "rollout.colocated.tensor=3", "cluster.engine_nodes=0"),
            Question(),
            "engines of 3 ranks, and 16 ranks do not divide",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(overrides: tuple[str, ...], question: Question, words: str) -> None:
    with pytest.raises(MegatronForkError) as caught:
        plan(recipe("qwen3-8b/top20", *overrides), question)
    assert words in caught.value.message and caught.value.hint


def test_the_way_out_can_be_typed_and_fits() -> None:
    """The proposed overrides are applied to the recipe, which sets a layout of its own."""
    found = planned("qwen3-8b/top20", "objective.advantage=gae")
    assert not found.own.fits
    with pytest.raises(MegatronForkError) as caught:
        found.refuse()
    changes = [word for word in caught.value.hint.split() if word.startswith("parallel.")]
    assert planned("qwen3-8b/top20", "objective.advantage=gae", *changes).own.fits


@pytest.mark.parametrize("overrides", [(), ("rollout.max_response_tokens=30000",)])
def test_the_way_out_is_not_what_is_set_already(overrides: tuple[str, ...]) -> None:
    config = recipe("qwen3-8b/top20", *overrides)
    assert config.optimizer.distributed and config.compute.recompute == "full"
    with pytest.raises(MegatronForkError) as caught:
        plan(config, Question(gpu_memory=1.0)).refuse()
    assert "optimizer.distributed=true" not in caught.value.hint and "recompute=full" not in caught.value.hint


@pytest.mark.parametrize("name", ["h100", "nvidia h100 80gb hbm3", "Nvidia H200", "gb200", "l40s"])
def test_a_gpu_is_known_in_any_case(name: str) -> None:
    assert planned("qwen3-8b/top20", f"cluster.gpu={name}").own.time.total < math.inf


def test_drawing_as_fast_as_training_is_said_only_where_it_is() -> None:
    for response in (1, 1000, 10000):
        found = planned("qwen3-8b/top20", response=response).balanced
        assert found is None or found.time.rollout <= found.time.training
    assert planned("qwen3-8b/top20", response=1).balanced is None


def grows(values: list[float]) -> bool:
    return values == sorted(values)


@given(
    name=st.sampled_from(RECIPES),
    means=st.lists(st.integers(1, 20000), min_size=1, max_size=3),
    gpu_memory=st.sampled_from([80.0, 141.0, 1000.0]),
    overrides=st.sampled_from([(), ("parallel.context=1",), ("compute.recompute=none",), ("cluster.gpu=L40S",)]),
)
@example(name="qwen3-8b/top20", means=[3072], gpu_memory=80.0, overrides=())
@settings(max_examples=6, deadline=None)
def test_longer_responses_never_take_less_time(
    name: str, means: list[int], gpu_memory: float, overrides: tuple[str, ...]
) -> None:
    config = recipe(name, *overrides)
    means = sorted({*means, *(mean + 1 for mean in means)})
    times = [plan(config, Question(nodes=8, gpu_memory=gpu_memory, response=mean)).own.time for mean in means]
    assert grows([time.rollout for time in times])
    assert grows([time.statistics for time in times]) and grows([time.update for time in times])


@given(
    name=st.sampled_from(RECIPES),
    lengths=st.lists(st.integers(1, 30000), min_size=1, max_size=3),
    budget=st.sampled_from([1, 8192, 16384, 40000]),
    overrides=st.sampled_from([(), ("parallel.context=1",), ("parallel.context=1", "compute.recompute=none")]),
)
@example(
    name="qwen3-8b/top20",
    lengths=[1, 1501],
    budget=8192,
    overrides=("parallel.context=1", "compute.recompute=none"),
)
@settings(max_examples=6, deadline=None)
def test_longer_responses_never_take_less_memory_or_time(
    name: str, lengths: list[int], budget: int, overrides: tuple[str, ...]
) -> None:
    """Whether many, one or not even one fits a micro-batch, since a run draws shorter ones than the longest too."""
    config = recipe(name, *overrides)
    policy = replace(config.policy, tokens_per_micro_batch=budget, tokens_per_statistics_batch=budget)
    lengths = sorted({*lengths, *(length + 1 for length in lengths)})
    found = []
    for length in lengths:
        rollout = replace(config.rollout, max_response_tokens=length)
        found.append(plan(replace(config, policy=policy, rollout=rollout), Question(nodes=8)).own)
    assert grows([each.peak for each in found]) and grows([each.time.total for each in found])


@pytest.mark.parametrize("name", RECIPES)
def test_twice_the_gpus_take_no_more_memory_or_time(name: str) -> None:
    """With the recipe's own layout, and with the best one that is suggested."""
    config = recipe(name)
    found = [plan(config, Question(gpus=gpus)) for gpus in (32, 64, 128, 256, 512)]
    for fewer, more in pairwise(found):
        assert more.own.gpus == 2 * fewer.own.gpus
        for one, other in ((fewer.own, more.own), (fewer.suggested[0], more.suggested[0])):
            assert other.peak <= one.peak and other.time.training <= one.time.training
            assert other.time.total <= one.time.total


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("context", [1, 2])
def test_less_recomputation_and_more_tokens_never_take_less(name: str, context: int) -> None:
    fields = f"parallel.context={context}"
    kinds = [planned(name, fields, f"compute.recompute={kind}", nodes=8).own for kind in ("full", "selective", "none")]
    ratios = [planned(name, fields, f"selection.ratio={ratio}", nodes=8).own for ratio in (0.01, 0.2, 0.5, 1.0)]
    assert grows([each.peak for each in kinds]) and grows([each.peak for each in ratios])
    assert grows([each.time.update for each in reversed(kinds)])
