"""The policies that are measured, their work, and how many operations it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config

from megatron_fork import objective
from megatron_fork.distributed import Layout
from megatron_fork.experience import Batch, Demonstration, Prompt
from megatron_fork.models import ComputeConfig, count_parameters
from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig
from megatron_fork.policy.wrapping import connect_schedule, data_parallel
from megatron_fork.vocab_parallel import TokenStatistics

_QWEN3 = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6}
# arXiv 2505.09388, table 1.
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "8b": {
        **_QWEN3,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
    # A stack as wide as Qwen3-32B: the whole one, with its gradients, fits no single GPU.
    "32b-4-layers": {
        **_QWEN3,
        "hidden_size": 5120,
        "num_hidden_layers": 4,
        "num_attention_heads": 64,
        "intermediate_size": 25600,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 512,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 1e6,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "tie_word_embeddings": True,
    },
}


class GradientsOnly(Policy):
    """Policy whose update ends with the gradients in Megatron's float32 buffers: no main parameters, no moments, no step."""

    class _NoStep:
        param_groups: tuple[()] = ()

        def zero_grad(self) -> None:
            """The buffers are Megatron's wrapper's, which has zeroed them."""

        def scale_loss(self, loss: Tensor) -> Tensor:
            return loss

        def step(self) -> tuple[bool, float, None]:
            return True, math.nan, None

    def __init__(self, config: PolicyConfig, hf_config: Qwen3Config, layout: Layout, compute: ComputeConfig) -> None:
        super().__init__(config, None, hf_config, layout, compute=compute)
        self._wrapped = list(data_parallel(OptimizerConfig(), self._wrapped))
        connect_schedule(OptimizerConfig(), self._wrapped, self.optimizer)

    @property
    def optimizer(self) -> Any:
        return self._NoStep()


@dataclass(frozen=True)
class Setting:
    """One policy."""

    shape: str
    optimizer: str
    recompute: str
    backend: str

    @property
    def hf_config(self) -> Qwen3Config:
        # As many positions as anything could need: they cost nothing.
        return Qwen3Config(architectures=["Qwen3ForCausalLM"], max_position_embeddings=1 << 24, **SHAPES[self.shape])

    def policy(self, layout: Layout) -> Policy:
        """With Megatron's random weights, in bf16; each sequence is a micro-batch of its own."""
        config = PolicyConfig("bf16", tokens_per_micro_batch=1, tokens_per_statistics_batch=1)
        compute = ComputeConfig(backend=self.backend, recompute=self.recompute)  # type: ignore[arg-type]
        if self.optimizer == "none":
            return GradientsOnly(config, self.hf_config, layout, compute)
        optimizer = OptimizerConfig(
            distributed=self.optimizer == "distributed", offload=1.0 if self.optimizer == "offload" else 0.0
        )
        return Policy(config, optimizer, self.hf_config, layout, compute=compute)


@dataclass(frozen=True)
class Work:
    """A mini-batch, and the tokens of it that an update trains."""

    batch: Batch
    selected_t: Tensor

    @classmethod
    def of(cls, vocabulary: int, sequences: int, prompt: int, response: int, ratio: float) -> Work:
        generator = torch.Generator().manual_seed(0)
        token_sl = torch.randint(vocabulary, (sequences, prompt + response), generator=generator).tolist()
        batch = Batch(
            [
                Demonstration(number, Prompt(number, "", tuple(tokens[:prompt]), ""), tuple(tokens[prompt:]))
                for number, tokens in enumerate(token_sl)
            ]
        )
        selected_t = torch.zeros(batch.response_tokens, dtype=torch.bool)
        chosen = math.ceil(ratio * batch.response_tokens)
        selected_t[torch.randperm(batch.response_tokens, generator=generator)[:chosen]] = True
        return cls(batch, selected_t)

    def statistics(self, policy: Policy) -> None:
        policy.statistics(self.batch)

    def update(self, policy: Policy) -> None:
        """PPO's loss on the marked tokens, whose old log-probs do not matter for what it costs."""
        config, count = objective.ObjectiveConfig(), int(self.selected_t.sum())

        def loss_of(now: TokenStatistics, places: Tensor) -> objective.PolicyLoss:
            marked = torch.ones_like(now.logprob, dtype=torch.bool)
            old, advantage = now.logprob.detach(), torch.ones_like(now.logprob)
            return objective.policy_loss(now.logprob, old, advantage, marked, config, normalizer=count)

        policy.update(self.batch, self.selected_t, loss_of, learning_rate=1e-6)

    def forward_flops(self, config: Qwen3Config, rows: int) -> float:
        """Of the body on all tokens and the LM head on `rows`; see the head of this file."""
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        body = count_parameters(config) - tables
        attention = 2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
        lengths = [sequence.length for sequence in self.batch.sequences]
        tokens = sum(2 * body * length + attention * length**2 for length in lengths)
        return float(tokens + 2 * rows * config.hidden_size * config.vocab_size)


def longest_that_fits(fits: Callable[[int], bool], *, first: int, limit: int, grain: int) -> int:
    """The largest multiple of `grain` up to `limit` that fits, 0 where none does; `first` is where the search begins."""
    low, high = 0, max(grain, first // grain * grain)
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit // grain * grain + grain)
    while high - low > grain:
        middle = (low + high) // 2 // grain * grain
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
