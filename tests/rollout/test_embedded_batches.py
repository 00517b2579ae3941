"""What the embedded engine draws is what the model alone would draw, whatever is in the batch and whenever it joins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from megatron_fork.conversion import PublishedWeights
from megatron_fork.rollout import EmbeddedEngine, Request
from megatron_fork.rollout.in_process import batch
from megatron_fork.rollout.in_process.cache import KeyValueCache
from megatron_fork.rollout.in_process.linear import OneDnnLinear

STOP = 1
TOKENS = 12


def engine_of(model: PreTrainedModel, batch_size: int) -> EmbeddedEngine:
    engine = EmbeddedEngine(
        model.config,
        stop_tokens=(STOP,),
        pad_token=0,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    engine.update_weights(PublishedWeights(dict(model.named_parameters())).items(), 0)
    return engine


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {family: hugging_face_model(family_config(family, eos_token_id=STOP, pad_token_id=0)) for family in FAMILIES}


@torch.no_grad()
def drawn_plainly(model: PreTrainedModel, request: Request) -> tuple[int, ...]:
    """The response by its definition: a pass over the whole sequence for every token, and nothing is kept."""
    uniform = torch.rand(request.max_tokens, generator=torch.Generator().manual_seed(request.seed)).double()
    tokens = list(request.tokens)
    for number in range(request.max_tokens):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        cumulative = (logits / request.temperature).double().softmax(-1).cumsum(-1)
        tokens.append(int((cumulative <= uniform[number] * cumulative[-1]).sum()))
        if tokens[-1] == STOP:
            break
    return tuple(tokens[len(request.tokens) :])


@st.composite
def many_requests(draw: st.DrawFn) -> list[Request]:
    token = st.integers(2, 60)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=9).map(tuple), min_size=1, max_size=4))
    return [
        Request(
            number, draw(st.sampled_from(prompts)), draw(st.integers(0, 1 << 40)), 0.7, draw(st.integers(1, TOKENS))
        )
        for number in range(draw(st.integers(1, 9)))
    ]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(asked=many_requests(), batch_size=st.integers(1, 9), abort_after=st.none() | st.integers(1, 20))
def test_a_response_is_what_the_model_alone_draws(models, family, asked, batch_size, abort_after) -> None:
    """Prompts that are shared or not, responses that end at different steps, places that are taken again, an abort."""
    engine = engine_of(models[family], batch_size)
    engine.submit(asked[len(asked) // 2 :])
    found, arriving = {}, engine.completions()
    for step in range(1000):
        if step == 3:
            engine.submit(asked[: len(asked) // 2])
        if step == abort_after:
            engine.abort()
        completion = next(arriving)
        if completion is not None:
            found[completion.number] = tuple(completion.tokens)
        elif step >= 3 and (len(found) == len(asked) or (abort_after is not None and step >= abort_after)):
            break
    found |= {completion.number: tuple(completion.tokens) for completion in engine.generate(engine.unfinished())}
    assert found == {request.number: drawn_plainly(models[family], request) for request in asked}


def passes(engine: EmbeddedEngine) -> list[tuple[int, ...]]:
    """The shapes, `(rows, tokens)`, of the passes that its model makes from now on."""
    shapes: list[tuple[int, ...]] = []
    embedding = engine.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_a_prompt_is_read_once_for_all_its_responses(models) -> None:
    engine = engine_of(models["qwen3"], 64)
    shapes = passes(engine)
    prompts = [(4, 9, 2, 7), (3, 5)]
    asked = [Request(number, prompts[number % 2], number, 1.0, TOKENS) for number in range(40)]
    assert len(list(engine.generate(asked))) == 40
    assert shapes[0] == (2, 3) and all(tokens == 1 for _, tokens in shapes[1:])


def test_no_place_is_idle_while_requests_wait(models) -> None:
    """Short responses beside a long one: in batches that begin together, each would wait for its longest response."""
    engine = engine_of(models["qwen3"], 8)
    shapes = passes(engine)
    lengths = [40, *[4] * 63]
    asked = [Request(number, (4, 9, 2), number, 1.0, tokens) for number, tokens in enumerate(lengths)]
    engine.stop_tokens = (-1,)  # never drawn
    assert sum(len(completion.tokens) for completion in engine.generate(asked)) == sum(lengths)
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert max(steps) == 8 and sum(steps) == sum(lengths)
    assert len(steps) == 40


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_cache_holds_what_each_row_has_read(data: st.DataObject) -> None:
    """Against lists: rows come, leave and take each other's places while memory grows; nothing unseen is not finite."""
    heads, width = 2, 3
    cache = KeyValueCache(torch.device("cpu"))
    rows: list[list[float]] = []
    numbers = iter(range(1, 1 << 20))
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["add", "keep", "step"])) if rows else "add"
        if kind == "add":
            read = [
                [float(next(numbers)) for _ in range(length)]
                for length in data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=3))
            ]
            longest = max(map(len, read))
            row_of = data.draw(st.lists(st.integers(0, len(read) - 1), min_size=1, max_size=4))
            theirs = DynamicCache()
            if longest:
                padded = torch.tensor([[*row, *[7.0] * (longest - len(row))] for row in read])
                spread = padded[:, None, :, None].expand(-1, heads, -1, width)
                theirs.update(spread, -spread, 0)
            lengths = [len(read[row]) for row in row_of]
            cache.add(theirs if longest else None, row_of, lengths, ceiling=max(lengths) + 30)
            rows += [list(read[row]) for row in row_of]
        elif kind == "keep":
            order = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))]
            kept = sorted(order)
            places = [place if place in order else None for place in range(len(kept))]
            movers = (row for row in kept if row >= len(kept))
            order = [next(movers) if place is None else place for place in places]
            cache.keep(order)
            rows = [rows[row] for row in order]
        else:
            position_r, visible = cache.begin_step()
            assert position_r.tolist() == [len(row) for row in rows]
            new = [float(next(numbers)) for _ in rows]
            rows = [[*row, number] for row, number in zip(rows, new, strict=True)]
            assert visible.sum(1).tolist() == [len(row) for row in rows]
            spread = torch.tensor(new)[:, None, None, None].expand(-1, heads, 1, width)
            keys, values = cache.update(spread, -spread, 0)
            assert torch.isfinite(keys).all() and torch.equal(values, -keys)
            for row, seen, of_row in zip(rows, visible, keys, strict=True):
                assert all(of_row[head, seen, part].tolist() == row for head in range(heads) for part in range(width))


def test_linear_layers_by_onednn_are_torchs_and_share_their_weights(models) -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        layer = nn.Linear(70, 33, bias=bias)
        fast = OneDnnLinear.instead_of(layer)
        for rows in ((1,), (5, 3), (0,)):
            given_rows = torch.randn(*rows, 70)
            with torch.no_grad():
                layer.weight.mul_(1.5)
                torch.testing.assert_close(fast(given_rows), layer(given_rows), rtol=1e-5, atol=1e-5)
    model = models["qwen3"]
    engine = engine_of(model, 4)
    assert isinstance(engine.model.lm_head, OneDnnLinear)
    assert [name for name, _ in engine.model.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_weights_that_are_tied_stay_tied() -> None:
    model = hugging_face_model(family_config("llama", tie_word_embeddings=True, eos_token_id=STOP, pad_token_id=0))
    engine = engine_of(model, 4)
    assert engine.model.lm_head.weight is engine.model.get_input_embeddings().weight
    request = Request(0, (4, 5), 3, 1.0, TOKENS)
    (completion,) = engine.generate([request])
    assert tuple(completion.tokens) == drawn_plainly(model, request)


def test_prompts_are_read_in_parts_where_they_are_many(models, monkeypatch) -> None:
    """Responses and recorded experts are those of prompts that are read at once, also for requests that join later."""
    asked = [Request(number, (4 + number % 7, *range(2, 3 + number % 5)), number, 1.0, TOKENS) for number in range(20)]
    found = []
    for most in (1 << 14, 6):
        monkeypatch.setattr(batch, "_READ_TOKENS", most)
        engine = engine_of(models["qwen3_moe"], 8)
        engine.records_experts = True
        shapes = passes(engine)
        answers = sorted(engine.generate(asked), key=lambda completion: completion.number)
        found.append([(tuple(each.tokens), each.experts.sort(-1).values.tolist()) for each in answers])
        assert all(tokens == 1 or rows * tokens <= max(most, tokens) for rows, tokens in shapes)
    assert found[0] == found[1]


def test_memory_fits_again_when_a_long_row_has_left() -> None:
    """Fewer positions than before are enough for the rows that are left, and those that join."""
    cache, read = KeyValueCache(torch.device("cpu")), DynamicCache()
    read.update(torch.ones(1, 2, 200, 3), torch.ones(1, 2, 200, 3), 0)
    cache.add(read, [0, 0], [200, 3], ceiling=230)
    before = cache.nbytes
    cache.keep([1])
    cache.add(None, [0, 0, 0], [0, 0, 0], ceiling=30)
    assert cache.nbytes < before
    cache.begin_step()
    keys, _ = cache.update(torch.full((4, 2, 1, 3), 2.0), torch.zeros(4, 2, 1, 3), 0)
    assert keys[:, 0, :, 0].tolist() == [[1.0, 1.0, 1.0, 2.0], *[[2.0, 0.0, 0.0, 0.0]] * 3]
