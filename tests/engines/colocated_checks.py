"""vLLM in this very process draws what the policy would say, takes its weights over in place, and stops and goes on.

Not collected with the others: `test_colocated.py` runs it in the environment that has both vLLM and the trainer.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.commands import QUICKSTART, TINY, metrics_of, run
from support.engine_models import STOP, greedy_responses, logits_of, logprob_of, new_model, requests, weights_of
from support.ranks import run_on_ranks
from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError, RolloutError
from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import (
    ColocatedConfig,
    ColocatedEngine,
    Completion,
    EmbeddedEngine,
    LoadBalancedEngine,
    Request,
    RolloutConfig,
    check_engine,
)
from megatron_fork.rollout.in_process import vllm as colocated
from megatron_fork.rollout.in_process.vllm_process import SleepMode
from megatron_fork.run.console import Display
from megatron_fork.serving import EntropyTemperature
from megatron_fork.train import train
from megatron_fork.vocab_parallel import token_statistics

COLOCATED = ("rollout.engine=vllm_colocated", "rollout.colocated.kv_cache_mebibytes=64")


def new_engine(hf_config: PretrainedConfig, *, tensor: int = 1) -> ColocatedEngine:
    return ColocatedEngine(
        ColocatedConfig(tensor=tensor, kv_cache_mebibytes=64),
        hf_config,
        stop_tokens=(STOP,),
        batch_size=16,
        max_tokens=128,
        dtype=torch.float32,
    )


@pytest.fixture(scope="module", params=["tied", "untied"])
def started(request: pytest.FixtureRequest):
    distributed.initialize()
    hf_config = new_model(tied=request.param == "tied", seed=100).config
    before = torch.get_rng_state()
    engine = new_engine(hf_config)
    assert torch.equal(torch.get_rng_state(), before), "the engine's start moved the trainer's random numbers"
    yield engine, request.param == "tied"
    engine.close()


@pytest.fixture
def model(started):
    return new_model(tied=started[1], seed=1)


@pytest.fixture
def engine(started, model):
    started[0].update_weights(weights_of(model), 3)
    return started[0]


def answered(engine, asked):
    completions = {completion.number: completion for completion in engine.generate(asked)}
    assert sorted(completions) == sorted(request.number for request in asked)
    return [(completions[request.number], request) for request in asked]


def judge(model, completion, request, start: int = 0, end: int | None = None, temperature: float = 1.0) -> None:
    logits = logits_of(model, request, completion.tokens) / temperature
    expected = logprob_of(logits, completion.tokens)[start:end]
    torch.testing.assert_close(torch.tensor(completion.logprob).double()[start:end], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_policys(engine, model, temperature: float) -> None:
    completions = answered(engine, requests(40, max_tokens=60, temperature=temperature))
    for completion, request in completions:
        judge(model, completion, request, temperature=temperature)
        assert completion.versions == (VersionSpan(3, 0, len(completion.tokens)),)
        stopped = completion.tokens[-1] == STOP
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert STOP not in completion.tokens[:-1] and (stopped or len(completion.tokens) == 60)
    assert {completion.finish_reason for completion, _ in completions} == {"stop", "length"}


def test_a_seed_draws_the_same_again(engine) -> None:
    asked = requests(6, max_tokens=20)
    first, again = ({c.number: c.tokens for c in engine.generate(asked)} for _ in range(2))
    other = {c.number: c.tokens for c in engine.generate([replace(each, seed=each.seed + 999) for each in asked])}
    assert first == again != other


def test_greedy_output_is_hugging_faces_after_every_update(started) -> None:
    engine, tied = started
    asked = requests(6, temperature=0.0, max_tokens=24)
    seen = []
    # The last are the first again, the same prompts each time: a cache of prefixes would answer for other weights.
    for version, seed in enumerate((1, 2, 1)):
        model = new_model(tied=tied, seed=seed)
        engine.update_weights(weights_of(model), version)
        answers = {completion.number: list(completion.tokens) for completion in engine.generate(asked)}
        assert answers == greedy_responses(model, asked)
        seen.append(answers)
    assert seen[0] == seen[2] != seen[1]
    assert engine.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_layers_that_are_cut_by_buckets(started) -> None:
    engine, tied = started
    whole, engine.config = engine.config, replace(engine.config, bucket_mebibytes=1)
    model = new_model(tied=tied, seed=4)
    assert sum(parameter.nbytes for parameter in model.parameters()) > 1 << 20
    engine.update_weights(weights_of(model), 0)
    engine.config = whole
    asked = requests(4, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in engine.generate(asked)} == greedy_responses(model, asked)


def test_weights_of_another_model_are_refused(started, model) -> None:
    engine, _ = started
    with pytest.raises(RolloutError, match=r"does not take the weights: .*no_such"):
        engine.update_weights([("model.no_such.weight", torch.zeros(2))], 4)
    engine.update_weights(weights_of(model), 5)
    judge(model, *answered(engine, requests(1))[0])


def test_truncated_sampling_and_stop_tokens(engine, model, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = tuple(range(2, 60))
    for completion, request in answered(engine, requests(12, max_tokens=30, top_k=5)):
        ordered = logits_of(model, request, completion.tokens).sort(-1, descending=True).indices
        assert int((ordered == torch.tensor(completion.tokens)[:, None]).nonzero()[:, 1].max()) < 5
    monkeypatch.setattr(engine, "stop_tokens", (STOP, *stops))
    ended = [c for c, _ in answered(engine, requests(20, max_tokens=60)) if c.finish_reason == "stop"]
    assert len(ended) > 10
    for completion in ended:
        assert completion.tokens[-1] in (STOP, *stops) and not set(completion.tokens[:-1]) & {STOP, *stops}


def test_temperature_by_entropy_is_the_embedded_engines(engine, model) -> None:
    embedded = EmbeddedEngine(
        model.config, stop_tokens=(STOP,), pad_token=0, batch_size=64, device=torch.device("cpu"), dtype=torch.float32
    )
    embedded.update_weights(weights_of(model), 3)
    (first,) = requests(1, max_tokens=60)
    (drawn,) = engine.generate([first])
    usual = token_statistics(logits_of(model, first, drawn.tokens), torch.tensor(drawn.tokens)).entropy.median().item()
    by_entropy = EntropyTemperature(threshold=usual, high=1.3, low=0.4)
    asked = requests(16, max_tokens=30, entropy_temperature=by_entropy)
    # In the same batch as others that do not ask for it.
    plain = [Request(100 + each.number, each.tokens, each.seed, 1.0, 30) for each in asked]
    for each in (engine, embedded):
        above = below = 0
        for completion, request in answered(each, [*asked, *plain]):
            logits = logits_of(model, request, completion.tokens)
            if request.entropy_temperature is not None:
                entropy = token_statistics(logits, torch.tensor(completion.tokens)).entropy
                above, below = above + int((entropy > usual).sum()), below + int((entropy <= usual).sum())
                logits = logits / torch.where(entropy > usual, 1.3, 0.4)[:, None]
            expected = logprob_of(logits, completion.tokens)
            torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=1e-4)
        assert above > 20 and below > 20


def test_abort_and_continue(started) -> None:
    """What had begun is kept with its log-probs, and goes on from there, under newer weights."""
    engine, tied = started
    models = [new_model(tied=tied, seed=seed) for seed in (1, 2)]
    engine.update_weights(weights_of(models[0]), 0)
    asked = requests(24, max_tokens=100)
    running = engine.generate(asked)
    finished = [next(running)]
    with pytest.raises(RolloutError, match="while it draws responses"):
        engine.update_weights(weights_of(models[1]), 1)
    engine.abort()
    finished += running
    left = engine.unfinished()
    assert sorted([c.number for c in finished] + [request.number for request in left]) == list(range(24))
    assert any(request.begun.tokens for request in left) and engine.unfinished() == []

    engine.update_weights(weights_of(models[1]), 1)
    begun = {request.number: request.begun for request in left}
    rest = [completion for completion, _ in answered(engine, left)]
    for completion in rest:
        before = begun[completion.number]
        assert completion.tokens[: len(before.tokens)] == before.tokens
        assert completion.logprob[: len(before.tokens)] == before.logprob
        assert len(completion.tokens) <= 100 and completion.versions[-1].end == len(completion.tokens)
        for version, start, end in completion.versions:
            judge(models[version], completion, asked[completion.number], start, end)
    assert {span.version for completion in rest for span in completion.versions} == {0, 1}


def first(arriving, count: int) -> list[Completion]:
    """Of those that finish; None says that nothing has at the moment."""
    return list(islice((completion for completion in arriving if completion is not None), count))


def test_a_stream_that_more_joins(engine, model) -> None:
    """Submitted while others run; stopped, all of them are either answered or kept."""
    asked = requests(20, max_tokens=100)
    engine.submit(asked[:10])
    arriving = engine.completions()
    answers = first(arriving, 1)
    engine.submit(asked[10:18])
    answers += first(arriving, 3)
    engine.submit(asked[18:])
    engine.abort()
    while (completion := next(arriving)) is not None:
        answers.append(completion)
    arriving.close()
    left = engine.unfinished()
    assert sorted([each.number for each in answers] + [each.number for each in left]) == list(range(20))
    assert any(each.begun.tokens for each in left if each.number >= 10)
    for completion in answers:
        judge(model, completion, asked[completion.number])
    engine.submit(left)
    again = engine.completions()
    for completion in first(again, len(left)):
        judge(model, completion, asked[completion.number])
    assert next(again) is None
    again.close()


def test_what_nobody_takes_any_more_is_ended(engine, model) -> None:
    running = engine.generate(requests(20, max_tokens=100))
    next(running)
    running.close()
    assert engine.unfinished() == []
    engine.update_weights(weights_of(model), 3)
    judge(model, *answered(engine, requests(1))[0])


def test_a_request_that_does_not_fit(engine, model) -> None:
    with pytest.raises(RolloutError, match="vLLM refuses a request of 200 tokens"):
        list(engine.generate([*requests(2), Request(2, (5,) * 200, 0, 1.0, 10)]))
    judge(model, *answered(engine, requests(1))[0])


class Recorder:
    """In the place of vLLM's sleep mode, which a CPU has not: keeps the order of events, and moves no memory."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {tags}")


def test_memory_comes_back_around_the_weights(engine, model) -> None:
    recorder = Recorder()
    events = recorder.events

    def recorded():
        for name, tensor in weights_of(model):
            events.append("weights")
            yield name, tensor

    awake, engine._sleeping = engine._sleeping, SleepMode(recorder, can_sleep=True)
    engine.rest()
    engine.rest()
    with pytest.raises(RolloutError, match="the engine sleeps"):
        list(engine.generate(requests(1)))
    engine.update_weights(recorded(), 4)
    assert [event for event in events if event != "weights"] == ["sleep 2", "wake ['weights']", "wake ['kv_cache']"]
    assert events[:3] == ["sleep 2", "wake ['weights']", "weights"] and events[-2:] == ["weights", "wake ['kv_cache']"]
    judge(model, *answered(engine, requests(1))[0])
    engine._sleeping = awake
    engine.rest()  # without sleep mode nothing happens
    judge(model, *answered(engine, requests(1))[0])


def test_ranks_that_do_not_divide_into_engines() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.colocated\.tensor=2 with 3 ranks"):
        check_engine(RolloutConfig(engine="vllm_colocated", colocated=ColocatedConfig(tensor=2)), ranks=3)


def one_engine_of_two_ranks() -> list[int]:
    """Asked by the first rank; what it is given, whole and aborted, is the policy's."""
    model = new_model(tied=True, seed=1)
    alone = new_engine(model.config, tensor=2)
    engine = LoadBalancedEngine(alone, world=dist.group.WORLD, ranks_per_engine=2, batch_size=16)
    engine.update_weights(weights_of(model), 0)
    named = engine.replicas(requests(2))
    if dist.get_rank() > 0:
        assert not any(list(engine.generate([])) for _ in range(4)) and not named
        engine.close()
        return []
    assert [len(answers) for answers in named.values()] == [2]
    asked = requests(30, max_tokens=60)
    for completion, request in answered(engine, asked):
        judge(model, completion, request)
    greedy = requests(5, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in engine.generate(greedy)} == greedy_responses(model, greedy)
    finished = []
    for completion in engine.generate([replace(each, max_tokens=100) for each in asked]):
        finished.append(completion)
        engine.abort()
    left = engine.unfinished()
    assert sorted([c.number for c in finished] + [each.number for each in left]) == list(range(30))
    by_number = {request.number: request for request in left}
    for completion in engine.generate(left):
        judge(model, completion, by_number[completion.number])
    engine.close()
    return [len(finished), sum(len(each.begun.tokens) > 0 for each in left)]


def test_two_ranks_form_one_engine() -> None:
    """Also after a run that was killed and left its shared memory behind."""
    for rank in range(2):
        Path(f"/dev/shm/-tp:0-[0-1]-cpushm_{rank}").write_bytes(b"left")
    (finished, begun), _ = run_on_ranks(one_engine_of_two_ranks, 2, have_children=True, time_limit=400.0)
    assert finished > 0 and begun > 0 and finished + begun <= 30


def events_of_a_run(folder: str) -> list[str]:
    recorder = Recorder()
    colocated.SleepMode = lambda engine, *, can_sleep: SleepMode(recorder, can_sleep=True)
    words = [*TINY, *COLOCATED, "evaluation.every=1", "train.steps=2", f"run.folder={folder}"]
    train(load_config(QUICKSTART, words), Display(speaks=False))
    return recorder.events


def test_a_run_lets_its_engine_sleep_while_it_trains(tmp_path: Path) -> None:
    """Once a step, and rollouts and evaluations find it awake: it would refuse them."""
    (events,) = run_on_ranks(events_of_a_run, 1, str(tmp_path / "run"), have_children=True, time_limit=400.0)
    assert events == ["sleep 2", "wake ['weights']", "wake ['kv_cache']"] * 2


TWO = ("parallel.tensor=2", "rollout.colocated.tensor=2")
AHEAD = ("rollout.max_staleness=1", "rollout.tail=stop", "objective.correction=tis")


def test_quickstart(tmp_path: Path) -> None:
    """On one rank, and on two tensor ranks that also are one engine: to the end, with the same losses; there ahead as well."""
    losses = []
    for ranks, more in ((0, ()), (2, TWO), (2, (*TWO, *AHEAD))):
        folder = tmp_path / f"{ranks}-{len(more)}"
        words = ["train", str(QUICKSTART), *TINY, *COLOCATED, *more, f"run.folder={folder}"]
        code, output = run(*words, ranks=ranks, limit=600.0)
        assert code == 0, output
        steps = metrics_of(folder, "train")
        assert len(steps) == 4 and all(step["mismatch/max"] < 1e-4 for step in steps)
        assert (folder / "report.html").is_file()
        losses.append([step["loss"] for step in steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
