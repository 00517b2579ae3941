"""Whatever a server does wrong, every request is answered once, with log-probs that are the policy's."""

import time
from itertools import takewhile

import pytest
import torch
from support.engine_models import logits_of, logprob_of, new_model, requests, weights_of
from support.engine_servers import FaultyProxy

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import Request

pytestmark = pytest.mark.parametrize("server", ["vllm tied", "sglang tied"], indirect=True, scope="session")


@pytest.fixture
def proxies(server):
    """Two ways to the same real server."""
    made = [FaultyProxy(server.server.url) for _ in range(2)]
    yield made
    for proxy in made:
        proxy.close()


def all_answered(completions, asked, model) -> None:
    assert sorted(completion.number for completion in completions) == [request.number for request in asked]
    for completion in completions:
        expected = logprob_of(logits_of(model, asked[completion.number], completion.tokens), completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=1e-4)
        assert completion.versions[-1].end == len(completion.tokens) <= asked[completion.number].max_tokens
        assert completion.finish_reason == "stop" or len(completion.tokens) == asked[completion.number].max_tokens


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refuse", "hang", "error", "busy", "garbage", "truncate", "nonsense"])
def test_the_other_server_takes_over(server, remote, proxies, mode: str) -> None:
    bad, good = proxies
    engine = remote(server.engine, [bad.url, good.url], sync="disk", idle_seconds=3.0, requests_per_server=6)
    model = new_model(tied=True, seed=1)
    engine.update_weights(weights_of(model), 0)
    assert len(engine.fleet.ready) == 2
    bad.mode = mode
    asked = requests(40, max_tokens=40)
    all_answered(list(engine.generate(asked)), asked, model)
    assert bad.misbehaved > 0 and engine.fleet.counts["resent"] > 0


@pytest.mark.slow
def test_a_server_that_goes_silent_altogether_comes_back(server, remote, proxies) -> None:
    """Neither answers nor health: its work goes elsewhere, and when it is back it is used again."""
    bad, good = proxies
    bad.only_generation = False
    engine = remote(
        server.engine,
        [bad.url, good.url],
        sync="disk",
        health_seconds=0.5,
        health_timeout_seconds=2.0,
        requests_per_server=4,
    )
    model = new_model(tied=True, seed=1)
    engine.update_weights(weights_of(model), 0)
    bad.mode = "hang"
    asked = requests(30, max_tokens=40)
    all_answered(list(engine.generate(asked)), asked, model)
    wait_for(lambda: [str(each) for each in engine.fleet.ready] == [good.url])
    bad.mode = "pass"
    wait_for(lambda: len(engine.fleet.ready) == 2)
    all_answered(list(engine.generate(asked)), asked, model)


@pytest.mark.slow
def test_other_weights_than_asked_for_do_not_count(server, remote, proxies) -> None:
    """Someone else updates a server under way: what it draws from then on is drawn again, with the right weights."""
    engine = remote(server.engine, [proxies[0].url], sync="disk", requests_per_server=4)
    model = new_model(tied=True, seed=1)
    engine.update_weights(weights_of(model), 0)
    asked = requests(30, max_tokens=60)
    running = engine.generate(asked)
    completions = [next(running)]
    intruder = remote(server.engine, [server.server.url], sync="disk")
    intruder.update_weights(weights_of(new_model(tied=True, seed=2)), 0)
    completions += running
    all_answered(completions, asked, model)
    assert engine.fleet.counts["foreign"] > 0


def test_a_request_that_no_server_takes_ends_the_run(server, remote) -> None:
    engine = remote(server.engine, [server.server.url], sync="disk", attempts=2)
    engine.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    with pytest.raises(RolloutError, match="a request of 500 tokens refused 2 times"):
        list(engine.generate([Request(0, (5,) * 500, 0, 1.0, 600)]))
    assert [request.number for request in engine.unfinished()] == [0]


def test_a_server_that_is_busy_for_ever_ends_the_run(server, remote, proxies) -> None:
    """Its state is saved first; the line has the server's words."""
    saved = []
    engine = remote(server.engine, [proxies[0].url], sync="disk", patience_seconds=4.0)
    engine._save = lambda: saved.append(True)
    engine.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    proxies[0].mode = "busy"
    with pytest.raises(RolloutError, match=r"none has sent a token after 4 s: .*was answered with 429") as raised:
        list(engine.generate(requests(3)))
    assert saved == [True] and "state is saved" in raised.value.hint


def test_abort_and_continue(server, remote) -> None:
    """What had begun is kept with its log-probs, and goes on from there, under newer weights."""
    engine = remote(server.engine, [server.server.url], sync="gloo", requests_per_server=8)
    models = [new_model(tied=True, seed=seed) for seed in (1, 2)]
    engine.update_weights(weights_of(models[0]), 0)
    asked = requests(24, max_tokens=100)
    engine.submit(asked)
    before_any = engine.fleet.last_token_time
    while engine.fleet.last_token_time == before_any:  # not until one is complete: on a busy machine all are by then
        time.sleep(0.001)
    engine.abort()
    finished = list(takewhile(lambda completion: completion is not None, engine.completions()))
    left = engine.unfinished()
    assert sorted([c.number for c in finished] + [request.number for request in left]) == list(range(24))
    assert any(request.begun.tokens for request in left) and engine.unfinished() == []

    engine.update_weights(weights_of(models[1]), 1)
    rest = list(engine.generate(left))
    begun = {request.number: request.begun for request in left}
    assert sorted(completion.number for completion in rest) == sorted(begun)
    for completion in rest:
        before = begun[completion.number]
        assert completion.tokens[: len(before.tokens)] == before.tokens
        assert completion.logprob[: len(before.tokens)] == before.logprob
        assert len(completion.tokens) <= 100
        for version, start, end in completion.versions:
            expected = logprob_of(
                logits_of(models[version], asked[completion.number], completion.tokens), completion.tokens
            )
            found = torch.tensor(completion.logprob).double()
            torch.testing.assert_close(found[start:end], expected[start:end], rtol=0, atol=1e-4)
    assert {span.version for completion in rest for span in completion.versions} == {0, 1}


def wait_for(condition, limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
