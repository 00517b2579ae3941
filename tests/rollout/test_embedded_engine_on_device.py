"""On the device that there is, the embedded engine draws from the model's own distribution, and reports its log-probs."""

import random

import pytest
import torch
from support.gpu import DEVICE
from support.tiny_qwen3 import family_config, hugging_face_model
from transformers import PretrainedConfig, PreTrainedModel

from megatron_fork.rollout import EmbeddedEngine, Request

pytestmark = pytest.mark.gpu

# How far a log-prob of a batch with padding may be from that of the sequence alone.
CLOSE = {torch.float32: 3e-5, torch.bfloat16: 0.25}


@pytest.fixture(scope="module")
def config() -> PretrainedConfig:
    return family_config("qwen3", tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)


def engine_of(config: PretrainedConfig, model: PreTrainedModel, dtype: torch.dtype) -> EmbeddedEngine:
    engine = EmbeddedEngine(
        config, stop_tokens=(1,), pad_token=0, batch_size=16, device=torch.device(DEVICE), dtype=dtype
    )
    engine.update_weights(model.named_parameters(), 3)
    return engine


def requests(temperature: float) -> list[Request]:
    generator = random.Random(8)
    prompts = [tuple(generator.randrange(2, 61) for _ in range(generator.randint(1, 9))) for _ in range(24)]
    return [Request(number, prompt, number + 77, temperature, 20) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_logprobs_are_the_models(config: PretrainedConfig, dtype: torch.dtype) -> None:
    model = hugging_face_model(config).to(DEVICE, dtype)
    asked = requests(0.7)
    completions = list(engine_of(config, model, dtype).generate(asked))
    assert sorted(completion.number for completion in completions) == list(range(len(asked)))
    for completion in completions:
        request = asked[completion.number]
        whole = torch.tensor([[*request.tokens, *completion.tokens]], device=DEVICE)
        logits = model(input_ids=whole).logits[0, len(request.tokens) - 1 : -1].double() / 0.7
        drawn = torch.tensor(completion.tokens, device=DEVICE)
        wanted = logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0].cpu()
        torch.testing.assert_close(torch.tensor(completion.logprob).double(), wanted, rtol=0.0, atol=CLOSE[dtype])
        assert completion.weight_version == 3


def test_greedy_is_hugging_faces(config: PretrainedConfig) -> None:
    model = hugging_face_model(config).to(DEVICE)
    engine = engine_of(config, model, torch.float32)
    for request in requests(0.0)[:4]:
        (completion,) = engine.generate([request])
        prompt = torch.tensor([request.tokens], device=DEVICE)
        wanted = model.generate(prompt, do_sample=False, max_new_tokens=20, eos_token_id=1, pad_token_id=0)
        assert list(completion.tokens) == wanted[0, len(request.tokens) :].tolist()


def test_seeds_decide(config: PretrainedConfig) -> None:
    engine = engine_of(config, hugging_face_model(config).to(DEVICE), torch.float32)
    first, second = ({each.number: each.tokens for each in engine.generate(requests(1.0))} for _ in range(2))
    assert first == second
