"""Small models, requests to engines that serve them, and what Hugging Face says to both."""

import random

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.rollout import Request
from support.commands import QUICKSTART

STOP = 1


def new_model(*, tied: bool, seed: int) -> PreTrainedModel:
    """Random weights of the quickstart's size, sharp enough that greedy decoding has no near ties."""
    config = resolve_config(load_config(QUICKSTART).model)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def weights_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def requests(count: int, *, temperature: float = 1.0, max_tokens: int = 20, seed: int = 8, **settings) -> list[Request]:
    generator = random.Random(seed)
    return [
        Request(
            number,
            tuple(generator.randrange(2, 135) for _ in range(generator.randint(1, 9))),
            number + 77,
            temperature,
            max_tokens,
            **settings,
        )
        for number in range(count)
    ]


@torch.no_grad()
def logits_of(model: PreTrainedModel, request: Request, response: tuple[int, ...]) -> torch.Tensor:
    """`[response tokens, vocab]` of one pass over the whole sequence."""
    whole = torch.tensor([[*request.tokens, *response]])
    return model(input_ids=whole).logits[0, len(request.tokens) - 1 : -1].double()


def logprob_of(logits: torch.Tensor, response: tuple[int, ...]) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def greedy_responses(model: PreTrainedModel, asked: list[Request]) -> dict[int, list[int]]:
    return {
        request.number: model.generate(
            torch.tensor([request.tokens]),
            do_sample=False,
            max_new_tokens=request.max_tokens,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, len(request.tokens) :].tolist()
        for request in asked
    }
