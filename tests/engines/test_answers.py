"""What servers answer is what the policy would say: log-probs, ends, versions, and temperatures that depend on entropy."""

import pytest
import torch
from support.engine_models import STOP, logits_of, logprob_of, new_model, requests, weights_of
from transformers import AutoModelForCausalLM

from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import EmbeddedEngine, Request
from megatron_fork.rollout.responses import seed_of
from megatron_fork.serving import EntropyTemperature
from megatron_fork.vocab_parallel import token_statistics

pytestmark = pytest.mark.parametrize("server", ["vllm tied", "sglang tied"], indirect=True, scope="session")


@pytest.fixture
def engine(server, remote):
    made = remote(server.engine, [server.server.url])
    made.update_weights(weights_of(new_model(tied=True, seed=1)), 3)
    return made


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 0.0}], ids=str)
def test_logprobs_are_the_policys(engine, settings) -> None:
    model = new_model(tied=True, seed=1)
    asked = requests(40, max_tokens=60, **settings)
    completions = {completion.number: completion for completion in engine.generate(asked)}
    assert set(completions) == set(range(40))
    for request in asked:
        completion = completions[request.number]
        logits = logits_of(model, request, completion.tokens) / (request.temperature or 1.0)
        expected = logprob_of(logits, completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=1e-4)
        assert completion.versions == (VersionSpan(3, 0, len(completion.tokens)),)
        stopped = completion.tokens[-1] == STOP
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert STOP not in completion.tokens[:-1] and (stopped or len(completion.tokens) == 60)
        if request.temperature == 0.0:
            assert logits.argmax(-1).tolist() == list(completion.tokens)
    if settings["temperature"]:
        assert {completion.finish_reason for completion in completions.values()} == {"stop", "length"}


def test_tokens_are_drawn_from_the_distribution_that_is_reported(engine) -> None:
    """Log-probs may be right and the draws not: of another temperature, or alike for requests of other seeds."""
    model, temperature = new_model(tied=True, seed=1), 0.7
    surprise = variance = 0.0
    for completion, request in answered(engine, requests(250, max_tokens=30, temperature=temperature)):
        logprob_tv = (logits_of(model, request, completion.tokens) / temperature).log_softmax(-1)
        p_tv = logprob_tv.exp()
        entropy_t = -(p_tv * logprob_tv).sum(-1)
        surprise += float((logprob_tv.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0] + entropy_t).sum())
        variance += float((p_tv * logprob_tv**2).sum() - (entropy_t**2).sum())
    assert variance > 500
    assert abs(surprise) < 4.5 * variance**0.5

    alike = [Request(number, (5, 9, 33), seed_of(0, number), temperature, 1) for number in range(800)]
    drawn_v = torch.zeros(model.config.vocab_size, dtype=torch.double)
    for completion in engine.generate(alike):
        drawn_v[completion.tokens[0]] += 1
    expected_v = (logits_of(model, alike[0], (0,))[0] / temperature).softmax(-1) * len(alike)
    common_v = expected_v > 5  # the rest is one class
    drawn = torch.cat([drawn_v[common_v], drawn_v[~common_v].sum()[None]])
    expected = torch.cat([expected_v[common_v], expected_v[~common_v].sum()[None]])
    freedom = len(drawn) - 1
    assert freedom > 10
    # Too close is as wrong as too far.
    assert abs(float(((drawn - expected) ** 2 / expected).sum()) - freedom) < 4.5 * (2 * freedom) ** 0.5


def test_any_stop_token_ends_a_response(server, remote) -> None:
    stops = tuple(range(2, 60))
    engine = remote(server.engine, [server.server.url], stop_tokens=(STOP, *stops))
    engine.update_weights(weights_of(new_model(tied=True, seed=1)), 3)
    completions = list(engine.generate(requests(20, max_tokens=60)))
    ended = [completion for completion in completions if completion.finish_reason == "stop"]
    assert len(ended) > 10
    for completion in ended:
        assert completion.tokens[-1] in (STOP, *stops)
        assert not set(completion.tokens[:-1]) & {STOP, *stops}


@pytest.mark.parametrize("settings", [{"top_p": 0.6}, {"top_k": 5}], ids=str)
def test_truncated_sampling_keeps_to_its_tokens(server, engine, settings) -> None:
    model = new_model(tied=True, seed=1)
    for completion, request in answered(engine, requests(12, max_tokens=30, **settings)):
        logits = logits_of(model, request, completion.tokens)
        ordered = logits.softmax(-1).sort(-1, descending=True)
        place = (ordered.indices == torch.tensor(completion.tokens)[:, None]).nonzero()[:, 1]
        before = (ordered.values.cumsum(-1) - ordered.values).gather(1, place[:, None])[:, 0]
        if "top_k" in settings:
            assert int(place.max()) < settings["top_k"]
        else:
            assert float(before.max()) < settings["top_p"] + 1e-6
        if (
            server.engine == "sglang"
        ):  # vLLM's log-probs are of what is left: `RolloutConfig.foreign_distribution` says so
            expected = logprob_of(logits, completion.tokens)
            torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=1e-4)


def test_temperature_by_entropy_is_the_same_in_all_engines(server, engine) -> None:
    model = new_model(tied=True, seed=1)
    embedded = EmbeddedEngine(
        model.config, stop_tokens=(STOP,), pad_token=0, batch_size=64, device=torch.device("cpu"), dtype=torch.float32
    )
    embedded.update_weights(weights_of(model), 3)
    by_entropy = EntropyTemperature(threshold=4.3, high=1.3, low=0.4)
    asked = requests(24, max_tokens=30, entropy_temperature=by_entropy)
    # In the same batch as others that do not ask for it.
    plain = [
        Request(100 + request.number, *(vars(request)[name] for name in ("tokens", "seed")), 1.0, 30)
        for request in asked
    ]
    for each in (engine, embedded):
        above = below = 0
        for completion, request in answered(each, [*asked, *plain]):
            logits = logits_of(model, request, completion.tokens)
            if request.entropy_temperature is not None:
                entropy = token_statistics(logits, torch.tensor(completion.tokens)).entropy
                above, below = above + int((entropy > 4.3).sum()), below + int((entropy <= 4.3).sum())
                logits = logits / torch.where(entropy > 4.3, 1.3, 0.4)[:, None]
            expected = logprob_of(logits, completion.tokens)
            torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=1e-4)
        assert above > 20 and below > 20


@pytest.mark.parametrize("temperature", [1e-3, 0.0])
def test_low_temperature_by_entropy_leaves_no_choice(engine, temperature: float) -> None:
    """Both temperatures 0 or close to it: the sampled tokens, not only their log-probs, follow them."""
    model = new_model(tied=True, seed=1)
    cold = EntropyTemperature(threshold=4.3, high=temperature, low=temperature)
    for completion, request in answered(engine, requests(10, max_tokens=12, entropy_temperature=cold)):
        assert logits_of(model, request, completion.tokens).argmax(-1).tolist() == list(completion.tokens)


def answered(engine, asked):
    by_number = {request.number: request for request in asked}
    completions = list(engine.generate(asked))
    assert sorted(completion.number for completion in completions) == sorted(by_number)
    return [(completion, by_number[completion.number]) for completion in completions]


def test_other_weights_are_other_answers(engine) -> None:
    """The comparison above would notice: the log-probs are not those of any model."""
    other = AutoModelForCausalLM.from_config(new_model(tied=True, seed=2).config).eval()
    (completion,) = engine.generate(requests(1))
    expected = logprob_of(logits_of(other, requests(1)[0], completion.tokens), completion.tokens)
    assert float((torch.tensor(completion.logprob) - expected).abs().max()) > 0.1
