"""An engine is an entry of one table, or stands outside the package: what it can is read from its entry and nowhere else.

The example of docs/extending.md trains.
"""

import ast
import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUICKSTART, run
from support.echo_engine import Echo
from support.ranks import run_on_ranks

from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError
from megatron_fork.recipe import part
from megatron_fork.rollout import (
    EngineContext,
    EngineKind,
    LoadBalancedEngine,
    Request,
    RolloutConfig,
    build_engine,
    check_engine,
    engine_kind,
)
from megatron_fork.rollout.engines import ENGINES
from megatron_fork.rollout.outside import OutsideEngine
from megatron_fork.run import check

PROJECT = Path(__file__).parent.parent.parent
PACKAGE = PROJECT / "megatron_fork"
SERVERS = ["http://node1:8000"]
SMALL = (
    *("sft.steps=2", "train.steps=1", "train.prompts_per_step=2", "train.prompts_per_mini_batch=1", "data.held_out=8"),
    *("rollout.samples=4", "rollout.dynamic_sampling=false", "evaluation.samples=1", "run.checkpoint_every=0"),
)


@pytest.fixture
def my_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    text = (PROJECT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# my_engines\.py\n(.*?)```", text, re.S)
    (tmp_path / "my_engines.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_engines", None)
    engine_kind.cache_clear()


class Mute:
    """No engine: it lacks all but one thing."""

    is_coordinated = False


def echo(context: EngineContext) -> Echo:
    return Echo()


def mute(context: EngineContext) -> Mute:
    return Mute()


NO_WEIGHTS = EngineKind(echo, reports_experts=True, ranks_per_engine=lambda config: 2)
OF_SERVERS = EngineKind(
    "megatron_fork.rollout.servers.remote:RemoteEngine.of",
    server="megatron_fork.rollout.servers.vllm:VllmServer",
    sync_ways=("gloo",),
)
PROBE = 3


def own(name: str) -> str:
    return f"{__name__}:{name}"


def context(engine: str, **settings) -> EngineContext:
    tokenizer = SimpleNamespace(pad_token_id=None)
    config = RolloutConfig(engine=engine, **settings)
    return EngineContext(
        config, SimpleNamespace(vocab_size=1000), tokenizer, (7, 8), 4, Path(), None, torch.device("cpu"), torch.float32
    )


@pytest.mark.parametrize("name", ENGINES)
def test_what_an_entry_names_is_there(name: str) -> None:
    kind = ENGINES[name]
    assert callable(part(kind.build))
    assert kind.server is None or callable(part(kind.server))
    assert kind.check is None or callable(part(kind.check))
    assert bool(kind.sync_ways) == kind.has_servers and kind.rests != kind.has_servers


def compared_names(path: Path) -> list[str]:
    """Comparisons of something with an engine's name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            words = {word.value for word in ast.walk(node) if isinstance(word, ast.Constant)}
            if words & set(ENGINES):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}")
    return found


def test_no_file_asks_for_an_engine_by_its_name() -> None:
    """But for the files of other trainers, in which such a name is a word of theirs."""
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "planning" / "peers"]
    assert not [place for path in files for place in compared_names(path)]


@given(
    name=st.sampled_from([*ENGINES, own("NO_WEIGHTS"), own("OF_SERVERS")]),
    servers=st.booleans(),
    stale=st.booleans(),
    tail=st.sampled_from(["generate", "stop"]),
    top_p=st.sampled_from([1.0, 0.9]),
    sync=st.sampled_from(["disk", "gloo", "nccl"]),
    replay=st.booleans(),
)
def test_settings_are_refused_by_what_the_entry_says(
    name: str, servers: bool, stale: bool, tail: str, top_p: float, sync: str, replay: bool
) -> None:
    kind = engine_kind(name)
    fits = (
        kind.has_servers == servers
        and not (stale and kind.rests and tail == "generate")
        and (kind.full_softmax or top_p == 1.0)
        and (not servers or sync in kind.sync_ways)
        and (kind.reports_experts or not replay)
    )
    settings = {"max_staleness": int(stale), "tail": tail, "top_p": top_p, "sync": sync}
    try:
        config = RolloutConfig(engine=name, servers=SERVERS if servers else [], **settings)
        if kind.check is None:  # else it asks for a package that may not be here
            check_engine(config, ranks=2, replays_experts=replay)
    except ConfigError as error:
        assert error.hint and "rollout." in error.message and "\n" not in error.message
        assert not fits
        return
    assert fits or kind.check is not None


@pytest.mark.parametrize(
    ("name", "told", "hint"),
    [
        ("embeded", "rollout.engine=embeded is not one of embedded, vllm_colocated", "did you mean embedded?"),
        ("vllm-colocated", "is not one of embedded", "did you mean vllm_colocated?"),
        ("", "rollout.engine= is not one of embedded", "or module:name"),
        ("a:b:c", "is not one of embedded", "or module:name"),
        ("\x1b[31m", r"rollout.engine='\x1b[31m'... is not one of embedded", "or module:name"),
        ("a" * 4000, f"rollout.engine='{'a' * 80}'... is not one of embedded", "or module:name"),
    ],
)
def test_what_is_no_engine_is_told_before_anything(name: str, told: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        load_config(QUICKSTART, [f"rollout.engine={name}"])
    assert hint in caught.value.hint


@given(place=st.integers(0, 20), letter=st.sampled_from("abz_"), name=st.sampled_from(list(ENGINES)))
def test_any_name_with_a_letter_more_is_refused_with_the_close_one(place: int, letter: str, name: str) -> None:
    wrong = name[:place] + letter + name[place:]
    with pytest.raises(ConfigError) as caught:
        RolloutConfig(engine=wrong)
    (near,) = difflib.get_close_matches(wrong, ENGINES, n=1)
    assert f"did you mean {near}?" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_engines:nothing", "my_engines has no nothing"),
        ("my_engines:PROBE", "is of type int, which cannot be used as engine"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("my_broken:f", "cannot be imported: ValueError by me"),
    ],
)
def test_doctor_and_train_refuse_what_your_module_lacks(my_engines: Path, name: str, told: str) -> None:
    (my_engines / "my_broken.py").write_text("raise ValueError('by\\nme')\n")
    with (my_engines / "my_engines.py").open("a") as file:
        file.write("\nPROBE = 3\n")
    config = load_config(QUICKSTART, [f"rollout.engine={name}"])  # nothing of it is run by reading a recipe
    assert "my_engines" not in sys.modules
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        check(config, ranks=1)
    assert caught.value.hint and "\n" not in caught.value.message


def test_ranks_must_divide_into_your_engines_too() -> None:
    check_engine(RolloutConfig(engine=own("NO_WEIGHTS")), ranks=4)
    with pytest.raises(ConfigError, match="engines of 2 ranks, and 3 ranks do not divide into them"):
        check_engine(RolloutConfig(engine=own("NO_WEIGHTS")), ranks=3)


def test_an_engine_that_lacks_something_is_told_what() -> None:
    with pytest.raises(ConfigError, match=r"built a Mute without abort, close, completions, .*, update_weights"):
        build_engine(context(own("mute")))


def test_an_engine_of_a_few_lines_answers_in_every_way() -> None:
    """It draws a batch at a time; what is submitted meanwhile waits, and an abort leaves it unfinished."""
    engine = build_engine(context(own("echo")))
    assert isinstance(engine, OutsideEngine) and not engine.health()
    engine.update_weights([("a", torch.zeros(3))], 2)
    assert engine.health() and engine.parameters == 3 and engine.replicas([]) == {}
    asked = [Request(number, (5, 6, number), 0, 1.0, 9) for number in range(3)]
    assert [list(each.tokens) for each in engine.generate(asked)] == [[5, 6, number] for number in range(3)]
    arriving = engine.completions()
    assert next(arriving) is None
    engine.submit(asked[:2])
    assert [next(arriving).number for _ in range(2)] == [0, 1]  # type: ignore[union-attr]
    assert next(arriving) is None
    engine.submit(asked[2:])
    engine.abort()
    assert next(arriving) is None and engine.unfinished() == asked[2:] and engine.unfinished() == []
    engine.rest()
    engine.close()


@pytest.mark.parametrize(("pads", "expected"), [(None, 7), (0, 0), (3, 3)])
def test_what_pads_is_the_tokenizers_or_a_stop_token(pads: int | None, expected: int) -> None:
    assert replace(context("embedded"), tokenizer=SimpleNamespace(pad_token_id=pads)).pad_token == expected


def balanced() -> list[str]:
    import torch.distributed as dist

    world = dist.group.WORLD
    rounds = EngineKind(echo, draws_in_rounds=True)
    names = []
    for kind, stale in ((EngineKind(echo), 0), (rounds, 0), (rounds, 1)):
        globals()["KIND"] = kind
        engine_kind.cache_clear()
        made = build_engine(replace(context(own("KIND"), max_staleness=stale, tail="stop"), world=world))
        names.append(type(made).__name__)
    return names


@pytest.mark.slow
def test_several_ranks_share_the_load_unless_each_draws_its_rounds() -> None:
    for names in run_on_ranks(balanced, 2):
        assert names == [LoadBalancedEngine.__name__, OutsideEngine.__name__, LoadBalancedEngine.__name__]


@pytest.mark.parametrize(
    "more", [(), ("rollout.max_staleness=1", "rollout.tail=stop", "objective.correction=tis", "train.steps=2")]
)
def test_the_example_trains(my_engines: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With log-probs that are the policy's, within the usual limit, and responses as short as one of two."""
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{my_engines}")
    words = [str(QUICKSTART), "rollout.engine=my_engines:shorter_of_two"]
    code, said = run("doctor", *words)
    assert code == 0 and "the shorter of two: " in said, said
    folder = my_engines / "run"
    code, said = run("train", *words, f"run.folder={folder}", *SMALL, *more)
    assert code == 0, said
    assert "engine: my_engines:shorter_of_two" in (folder / "resolved.yaml").read_text()


def test_the_example_hands_out_the_shorter(my_engines: Path) -> None:
    from transformers import AutoModelForCausalLM

    from megatron_fork.conversion import resolve_config
    from megatron_fork.rollout import EmbeddedEngine

    hf_config = resolve_config(load_config(QUICKSTART).model)
    made = replace(context("my_engines:shorter_of_two"), hf_config=hf_config, stop_tokens=(1, *range(60, 80)))
    torch.manual_seed(0)
    weights = list(AutoModelForCausalLM.from_config(hf_config).named_parameters())
    engine, plain = build_engine(made), EmbeddedEngine.of(made)
    engine.update_weights(weights, 0)
    plain.update_weights(weights, 0)
    asked = [Request(number, (5, 6, 9), 11 + number, 1.0, 30) for number in range(12)]
    found = {each.number: len(each.tokens) for each in engine.generate(asked)}
    engine.submit(asked)
    streamed = [each for each, _ in zip(engine.completions(), asked, strict=False)]
    assert found == {each.number: len(each.tokens) for each in streamed}
    both = [
        replace(each, number=2 * each.number + which, seed=2 * each.seed + which) for each in asked for which in (0, 1)
    ]
    lengths = {each.number: len(each.tokens) for each in plain.generate(both)}
    assert found == {number: min(lengths[2 * number], lengths[2 * number + 1]) for number in range(12)}
    assert len(set(lengths.values())) > 2


@pytest.mark.parametrize("name", [name for name, kind in ENGINES.items() if kind.has_servers])
def test_servers_are_named_where_a_run_starts(name: str) -> None:
    """A recipe may leave them to the job that starts them; the run itself may not."""
    config = RolloutConfig(engine=name)
    check_engine(config, ranks=1, servers_come=True)
    with pytest.raises(ConfigError, match=rf"rollout.engine={name} with rollout.servers=\[\]"):
        check_engine(config, ranks=1)


@pytest.mark.parametrize(
    ("engine", "settings", "experts", "on_gpu", "words"),
    [
        ("vllm", {"top_k": 40}, False, True, ["--return-sampling-mask"]),
        ("vllm", {"top_k": 40}, True, False, ["--max-logprobs", "40", "--enable-return-routed-experts"]),
        ("vllm", {}, False, True, []),
        ("sglang", {"top_k": 40}, True, True, ["--sampling-mask-max-tokens", "4096", "--enable-return-routed-experts"]),
        ("sglang", {"top_k": 5000}, False, True, ["--sampling-mask-max-tokens", "10000"]),
        ("embedded", {"top_k": 40}, True, True, []),
    ],
)
def test_a_job_starts_its_servers_for_the_reports_that_replay_needs(
    engine: str, settings: dict[str, Any], experts: bool, on_gpu: bool, words: list[str]
) -> None:
    servers = [] if engine == "embedded" else SERVERS
    config = RolloutConfig(engine=engine, servers=servers, replay_sampling_mask=True, **settings)
    assert engine_kind(engine).replay_options(config, experts, on_gpu) == words
