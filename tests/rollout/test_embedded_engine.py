"""The embedded engine draws from the model's own distribution, and a response depends on its seed and the weights alone."""

import random
from dataclasses import replace

import pytest
import torch
from support.tiny_qwen3 import family_config, hugging_face_model
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_fork.conversion import PublishedWeights
from megatron_fork.errors import RolloutError
from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import EmbeddedEngine, PartialResponse, Request

CONFIG = Qwen3Config(
    vocab_size=23,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    initializer_range=0.4,
    eos_token_id=1,
    pad_token_id=0,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(CONFIG).eval()


def engine(model, batch_size: int = 64, stop_tokens: tuple[int, ...] = (1,)) -> EmbeddedEngine:
    made = EmbeddedEngine(
        CONFIG,
        stop_tokens=stop_tokens,
        pad_token=0,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    made.update_weights(model.named_parameters(), 3)
    return made


def requests(count: int, *, temperature: float = 0.7, max_tokens: int = 20) -> list[Request]:
    generator = random.Random(8)
    return [
        Request(
            number,
            tuple(generator.randrange(2, 23) for _ in range(generator.randint(1, 9))),
            number + 77,
            temperature,
            max_tokens,
        )
        for number in range(count)
    ]


def by_number(completions) -> dict:
    return {completion.number: completion for completion in completions}


@torch.no_grad()
def reference_logprobs(model, request: Request, response: tuple[int, ...]) -> torch.Tensor:
    whole = torch.tensor([[*request.tokens, *response]])
    logits = model(input_ids=whole).logits[0, len(request.tokens) - 1 : -1].double() / (request.temperature or 1.0)
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def logits_of(model, request: Request, response) -> torch.Tensor:
    whole = torch.tensor([[*request.tokens, *response]])
    return model(input_ids=whole).logits[0, len(request.tokens) - 1 : -1].double() / request.temperature


def sets_of(completion) -> list[list[int]]:
    ids = iter(completion.kept.ids)
    return [[next(ids) for _ in range(count)] for count in completion.kept.counts]


def test_logprobs_are_the_models(model) -> None:
    asked = requests(40)
    completions = by_number(engine(model).generate(asked))
    assert set(completions) == set(range(40))
    for request in asked:
        completion = completions[request.number]
        expected = reference_logprobs(model, request, completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprob).double(), expected, rtol=0, atol=2e-5)
        assert completion.weight_version == 3
        stopped = completion.tokens[-1] == 1
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert 1 not in completion.tokens[:-1]
        assert stopped or len(completion.tokens) == 20
    assert {completion.finish_reason for completion in completions.values()} == {"stop", "length"}


def test_a_response_does_not_depend_on_its_batch(model) -> None:
    asked = requests(40)
    together = by_number(engine(model).generate(asked))
    shuffled = random.Random(1).sample(asked, len(asked))
    apart = by_number(engine(model, batch_size=7).generate(shuffled))
    assert {number: each.tokens for number, each in together.items()} == {
        number: each.tokens for number, each in apart.items()
    }


def test_greedy_is_hugging_faces(model) -> None:
    for request in requests(6, temperature=0.0, max_tokens=12):
        (completion,) = engine(model).generate([request])
        expected = model.generate(
            torch.tensor([request.tokens]), do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=0
        )[0, len(request.tokens) :]
        assert list(completion.tokens) == expected.tolist()


def test_samples_follow_the_distribution(model) -> None:
    prompt = (4, 9, 2)
    drawn = [Request(number, prompt, number, 1.0, 1) for number in range(4000)]
    first = torch.tensor([completion.tokens[0] for completion in engine(model, 4000).generate(drawn)])
    observed = torch.bincount(first, minlength=23) / len(drawn)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    # Five standard deviations of a multinomial share.
    assert bool(((observed - expected).abs() <= 5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-3).all())


def test_an_incomplete_weight_update_is_refused(model) -> None:
    some = list(model.named_parameters())[:-1]
    with pytest.raises(RolloutError, match=r"lacks 1 tensors, the first is model\.norm\.weight"):
        engine(model).update_weights(some, 4)
    with pytest.raises(RolloutError, match=r"no tensor other\.weight"):
        engine(model).update_weights([("other.weight", torch.zeros(1))], 4)


def test_abort_ends_generation(model) -> None:
    made = engine(model)
    running = made.generate(requests(40))
    next(running)
    made.abort()
    assert len(list(running)) < 39


def test_an_aborted_response_goes_on_as_if_nothing_had_been(model) -> None:
    """What had begun is kept, and the rest is what would have come: the seed's random numbers go on at the same place."""
    asked = [replace(request, max_tokens=3 + request.number // 2) for request in requests(40)]
    whole = by_number(engine(model).generate(asked))
    made = engine(model, batch_size=30)
    running = made.generate(asked)
    parts = {}
    for completion in running:
        parts[completion.number] = completion
        if len(completion.tokens) >= 6:
            break
    made.abort()
    parts |= by_number(running)
    left = made.unfinished()
    assert {request.number for request in left} == set(range(40)) - set(parts)
    assert any(request.begun.tokens for request in left) and made.unfinished() == []
    parts |= by_number(made.generate(left))
    assert {number: each.tokens for number, each in parts.items()} == {n: each.tokens for n, each in whole.items()}
    assert all(part.versions == ((3, 0, len(part.tokens)),) for part in parts.values())


@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}])
@torch.no_grad()
def test_truncated_sampling_follows_what_is_left(model, settings) -> None:
    """Frequencies of the truncated distribution, log-probs of the full one."""
    drawn = [Request(number, (4, 9, 2), number, 1.0, 1, **settings) for number in range(4000)]
    completions = list(engine(model, 4000).generate(drawn))
    full = model(input_ids=torch.tensor([(4, 9, 2)])).logits[0, -1].double().softmax(-1)
    ordered = full.sort(descending=True)
    kept = {
        "top_k": 3,
        "top_p": int((ordered.values.cumsum(0) < 0.5).sum()) + 1,
        "min_p": int((ordered.values >= 0.2 * ordered.values[0]).sum()),
    }[next(iter(settings))]
    expected = torch.zeros_like(full).scatter(0, ordered.indices[:kept], ordered.values[:kept])
    expected /= expected.sum()
    observed = torch.bincount(torch.tensor([c.tokens[0] for c in completions]), minlength=23) / len(drawn)
    assert observed[expected == 0].sum() == 0
    assert bool(((observed - expected).abs() <= 5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-3).all())
    for completion in completions[:50]:
        assert abs(completion.logprob[0] - float(full[completion.tokens[0]].log())) < 2e-5


@pytest.mark.parametrize("settings", [{"top_p": 0.8}, {"top_k": 4}, {"min_p": 0.1}, {"top_p": 0.9, "top_k": 6}, {}])
@torch.no_grad()
def test_a_request_may_ask_what_each_token_was_drawn_from(model, settings) -> None:
    """Log-probs are then under the softmax over that; the tokens are those that the request draws without it."""
    asked = [replace(request, **settings) for request in requests(12)]
    plain = by_number(engine(model).generate(asked))
    found = by_number(engine(model).generate([replace(request, reports_kept=True) for request in asked]))
    for number, completion in found.items():
        assert completion.tokens == plain[number].tokens and plain[number].kept is None
        sets = sets_of(completion)
        assert len(sets) == len(completion.tokens)
        logits = logits_of(model, asked[number], completion.tokens)
        for token, kept, logprob, logits_v in zip(completion.tokens, sets, completion.logprob, logits, strict=True):
            if not settings:
                kept = list(range(23)) if kept == [] else []
            assert token in kept and len(kept) <= settings.get("top_k", 23)
            assert abs(float(logits_v[kept].log_softmax(0)[kept.index(token)]) - logprob) < 2e-5


def test_an_aborted_response_keeps_what_its_tokens_were_drawn_from(model) -> None:
    asked = [replace(request, top_p=0.8, reports_kept=True) for request in requests(20)]
    whole = by_number(engine(model).generate(asked))
    made = engine(model, batch_size=20)
    running = made.completions()
    made.submit(asked)
    parts = {completion.number: completion for completion in [next(running) for _ in range(9)] if completion}
    made.abort()
    parts |= by_number(completion for completion in iter(lambda: next(running), None))
    left = made.unfinished()
    assert any(request.begun.tokens for request in left)
    parts |= by_number(made.generate(left))
    assert {number: (each.tokens, each.kept) for number, each in parts.items()} == {
        number: (each.tokens, each.kept) for number, each in whole.items()
    }


def test_tokens_that_were_begun_without_a_report_cannot_be_continued_with_one(model) -> None:
    begun = PartialResponse((4, 5), (-1.0, -1.0), (VersionSpan(3, 0, 2),))
    with pytest.raises(RolloutError, match="2 tokens without what they were drawn from"):
        list(engine(model).generate([replace(requests(1)[0], top_k=3, reports_kept=True, begun=begun)]))


def test_a_greedy_token_is_drawn_from_itself_alone(model) -> None:
    asked = [replace(request, reports_kept=True) for request in requests(5, temperature=0.0)]
    for completion in engine(model).generate(asked):
        assert list(completion.kept.ids) == list(completion.tokens) and not any(completion.logprob)


def test_any_stop_token_ends_a_response(model) -> None:
    stops = (1, 5, 7, 11)
    ended = set()
    for completion in engine(model, stop_tokens=stops).generate(requests(30)):
        assert not {*stops} & set(completion.tokens[:-1])
        assert (completion.tokens[-1] in stops) == (completion.finish_reason == "stop")
        ended |= {completion.tokens[-1]} & {*stops}
    assert len(ended) > 1


def test_experts_are_updated_under_their_published_names() -> None:
    config = family_config("qwen3_moe")
    theirs = hugging_face_model(config)
    made = EmbeddedEngine(
        config, stop_tokens=(1,), pad_token=0, batch_size=4, device=torch.device("cpu"), dtype=torch.float32
    )
    weights = dict(PublishedWeights(dict(theirs.named_parameters())))
    made.update_weights(weights.items(), 1)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(made.model.get_parameter(name), parameter), name
    del weights["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(
        RolloutError, match=r"lacks 1 tensors, the first is model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight"
    ):
        made.update_weights(weights.items(), 2)


@torch.no_grad()
def test_recorded_experts_are_those_of_one_pass_over_the_whole_sequence() -> None:
    config = family_config("qwen3_moe", eos_token_id=1, pad_token_id=0)
    model = hugging_face_model(config)
    recording = EmbeddedEngine(
        config,
        stop_tokens=(1,),
        pad_token=0,
        batch_size=5,
        device=torch.device("cpu"),
        dtype=torch.float32,
        records_experts=True,
    )
    recording.update_weights(PublishedWeights(model.state_dict()).items(), 0)
    asked = requests(12)
    for completion in recording.generate(asked):
        tokens = [*asked[completion.number].tokens, *completion.tokens][:-1]
        scores = model.model(input_ids=torch.tensor([tokens]), output_router_logits=True).router_logits
        wanted = torch.stack([layer.topk(config.num_experts_per_tok).indices for layer in scores], dim=1)
        assert completion.experts is not None and completion.experts.shape == wanted.shape
        # As sets: a token's experts may come in another order where two scores are nearly the same.
        assert torch.equal(completion.experts.sort(-1).values.long(), wanted.sort(-1).values)
