"""On the device that there is, log-probs and entropies of a policy are Hugging Face's, in float32 and in bf16."""

from typing import Any

import pytest
import torch
from support.gpu import DEVICE
from support.tiny_qwen3 import family_config, hugging_face_model
from transformers import PretrainedConfig, PreTrainedModel

from megatron_fork import distributed
from megatron_fork.conversion import load_weights
from megatron_fork.experience import Batch, Demonstration, Prompt
from megatron_fork.models import ComputeConfig
from megatron_fork.policy import Policy, PolicyConfig

pytestmark = pytest.mark.gpu

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen2, biases": ("qwen2", {"tie_word_embeddings": False}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "experts": ("qwen3_moe", {"tie_word_embeddings": False}),
}
LENGTHS = [(3, 9), (5, 20), (1, 1), (12, 2), (7, 33)]


def batch(config: PretrainedConfig) -> Batch:
    generator = torch.Generator().manual_seed(2)
    sequences = []
    for number, (prompt, response) in enumerate(LENGTHS):
        tokens = torch.randint(config.vocab_size, (prompt + response,), generator=generator).tolist()
        sequences.append(Demonstration(number, Prompt(number, "", tuple(tokens[:prompt]), ""), tuple(tokens[prompt:])))
    return Batch(sequences)


@torch.no_grad()
def of_hugging_face(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob and entropy of every response token, the softmax in float64."""
    logprobs, entropies = [], []
    for sequence in batch.sequences:
        prompt = len(sequence.prompt.tokens)
        tokens = torch.tensor([*sequence.prompt.tokens, *sequence.response], device=DEVICE)
        log_p = model(input_ids=tokens[None]).logits[0, prompt - 1 : -1].double().log_softmax(-1)
        logprobs.append(log_p.gather(1, tokens[prompt:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logprobs).cpu(), torch.cat(entropies).cpu()


def of_policy(config: PretrainedConfig, weights: dict[str, torch.Tensor], precision: Any, batch: Batch) -> Any:
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        settings = PolicyConfig(precision, tokens_per_statistics_batch=64)
        policy = Policy(settings, None, config, layout, compute=ComputeConfig(backend="local"))
        load_weights(policy.model, weights)
        return policy.statistics(batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32(variant: str) -> None:
    family, fields = VARIANTS[variant]
    config = family_config(family, **fields)
    theirs = hugging_face_model(config)
    asked = batch(config)
    found = of_policy(config, theirs.state_dict(), "fp32", asked)
    logprob, entropy = of_hugging_face(theirs.to(DEVICE), asked)
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=0.0, atol=3e-5)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=0.0, atol=3e-5)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "experts"])
def test_bf16_is_as_near_to_float32_as_hugging_faces_own(variant: str) -> None:
    """Of the same rounded weights. Experts are left out: a rounded router chooses others, and then nothing is near."""
    family, fields = VARIANTS[variant]
    config = family_config(family, **fields)
    model = hugging_face_model(config).bfloat16()
    weights, asked = model.state_dict(), batch(config)
    found = of_policy(config, weights, "bf16", asked)
    own = of_hugging_face(model.to(DEVICE), asked)
    exact = of_hugging_face(model.float(), asked)
    for ours, theirs, wanted in zip((found.logprob, found.entropy), own, exact, strict=True):
        error, their_error = (ours.double() - wanted).abs(), (theirs - wanted).abs()
        assert error.mean() <= 1.5 * their_error.mean()
        assert error.max() <= 3.0 * their_error.max()
