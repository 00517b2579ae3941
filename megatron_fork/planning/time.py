"""An estimate of a step's time: rollout, statistics, update and weight update, with the assumptions that it rests on.

The trainer's passes make the operations of `models.training_flops` at a measured fraction of the GPU's peak. Decoding reads the
weights once for all sequences that fit at once, and every live sequence's keys and values, for each token. Sums of bytes over a
link go at its data sheet's speed.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.planning.engines import EngineRoom
from megatron_fork.planning.hardware import Gpu

# Measured on an H200 with Qwen3-8B in bfloat16, one sequence of 8,703 and of 30,207 tokens and torch's own modules as layers:
# 48.6 and 52.7 % of the peak in the statistics pass; 35.8 and 37.2 % in the update with full recomputation, not counted
# as work. The layers since then are not measured.
_STATISTICS, _UPDATE_RECOMPUTED = 0.50, 0.365
# Assumed, not measured: what an engine reaches of its memory's bandwidth and of its products.
_OF_BANDWIDTH, _OF_PRODUCTS = 0.7, 0.5
# Of a response, at which the time of a token is computed.
_PLACES = 64
# Assumed, not measured: bytes a second of a shared disk, and of gloo over TCP.
_DISK, _GLOO = 2e9, 1e9


@dataclass(frozen=True)
class StepTime:
    """Seconds of one trainer step."""

    rollout: float
    statistics: float
    update: float
    sync: float
    assumptions: list[str] = field(default_factory=list)

    @property
    def training(self) -> float:
        return self.statistics + self.update

    @property
    def total(self) -> float:
        return self.rollout + self.training + self.sync


@dataclass(frozen=True)
class Work:
    """The responses of a step."""

    sequences: int
    prompt: int
    response: int
    """Mean tokens."""
    longest: int
    """Tokens of the longest response."""

    @classmethod
    def of(cls, config: RunConfig, *, response: int | None = None) -> Work:
        """`response`: mean tokens of a response; half of the longest where it is not known."""
        longest = config.rollout.max_response_tokens
        sequences = config.train.prompts_per_step * config.rollout.samples
        prompt = min(config.data.max_prompt_tokens, 512)
        return cls(sequences, prompt, response or -(-longest // 2), longest)


@dataclass(frozen=True)
class Fleet:
    """The engines: how many, and the room of each."""

    engines: int
    room: EngineRoom


def step_time(
    config: RunConfig, hf_config: PretrainedConfig, gpu: Gpu, fleet: Fleet, work: Work, *, ranks: int, parameters: int
) -> StepTime:
    """The estimate for `ranks` trainer ranks beside the engines of `fleet`."""
    parallel, compute = config.parallel, config.compute
    length = work.prompt + work.response
    flops = models.training_flops(hf_config, [length]) * work.sequences
    peak = ranks * gpu.flops
    data = parallel.data(ranks)
    updates = math.ceil(config.train.prompts_per_step / config.train.prompts_per_mini_batch)
    # A pipeline fills and drains with every update; interleaved stages do so in smaller parts.
    of_rank = max(1.0, work.sequences / updates / data * length / config.policy.tokens_per_micro_batch)
    bubble = 1 + (parallel.pipeline - 1) / parallel.virtual_pipeline / of_rank
    # Measured with four passes over the same products: forward, forward again, and two in backward.
    reached = _UPDATE_RECOMPUTED * 4 / _passes(config, hf_config)
    forward = flops / 3 / peak / _STATISTICS
    passes = 1 + bool(config.objective.kl_coef) + (config.objective.advantage == "gae")
    trained = 1 + (config.objective.advantage == "gae") * config.critic.epochs
    exchange = _tensor_exchange(config, hf_config, gpu, work.sequences * length / data / parallel.context)
    exchange += _ring(config, hf_config, gpu, work.sequences / data, length)
    reduce = updates * _reduction(config, gpu, parameters, data * parallel.context)
    return StepTime(
        rollout=_rollout(hf_config, gpu, fleet, work),
        statistics=passes * (forward + exchange) * bubble,
        update=trained
        * ((flops / peak / reached + exchange * (3 if compute.recompute == "full" else 2)) * bubble + reduce),
        sync=sync_seconds(config, gpu, parameters),
        assumptions=[
            f"responses of {work.response:,.0f} tokens on average and {work.longest:,} at most, prompts of {work.prompt}",
            "lengths are spread as a power of a uniform number: evenly if the mean is half of the longest",
            "every prompt group has signal: dynamic sampling draws none again",
            f"statistics at {_STATISTICS:.0%} and updates at {reached:.1%} of {gpu.name}'s {gpu.flops / 1e12:,.0f} TFLOP/s "
            "(measured with an 8B model on one H200)",
            f"decoding at {_OF_BANDWIDTH:.0%} of {gpu.memory / 1e12:.2f} TB/s and {_OF_PRODUCTS:.0%} of the peak (assumed)",
            f"weights by {_way(config)}",
            f"links at {gpu.link / 1e9:.0f} GB/s within a node and {gpu.network / 1e9:.0f} GB/s between nodes (data sheets)",
        ],
    )


def _passes(config: RunConfig, hf_config: PretrainedConfig) -> float:
    """Of an update over the products of the layers."""
    if config.compute.recompute == "full":
        return 4.0
    if config.compute.recompute == "none" or models.family_of(hf_config).has_experts:
        return 3.0
    heads = hf_config.num_attention_heads + hf_config.num_key_value_heads
    mlp = 3 * hf_config.intermediate_size
    # The MLP's first product is two of its three matrices.
    return 3.0 + 2 / 3 * mlp / (mlp + 2 * heads * models.head_size(hf_config))


def _way(config: RunConfig) -> str:
    if config.cluster.engine_nodes == 0:
        return "NVLink"
    way = config.rollout.sync
    return {"disk": f"a disk of {_DISK / 1e9:g} GB/s", "gloo": f"gloo at {_GLOO / 1e9:g} GB/s"}.get(way, way)


def sync_bytes(config: RunConfig, parameters: int) -> int:
    """Bytes of a weight update."""
    return config.policy.dtype.itemsize * parameters


def sync_seconds(config: RunConfig, gpu: Gpu, parameters: int) -> float:
    """Seconds of a weight update on its way."""
    count = sync_bytes(config, parameters)
    if not config.rollout.servers and config.cluster.engine_nodes == 0:
        return count / gpu.link
    if config.rollout.sync == "disk":
        return 2 * count / _DISK  # written, then read by all servers at a time
    return count / (gpu.network if config.rollout.sync == "nccl" else _GLOO)


def _tensor_exchange(config: RunConfig, hf_config: PretrainedConfig, gpu: Gpu, tokens: float) -> float:
    """Seconds of the sums over tensor ranks in one forward: two a layer, of every token's hidden state there and back."""
    parallel = config.parallel
    bytes_of_layer = 2 * 2 * tokens * hf_config.hidden_size * config.policy.dtype.itemsize
    layers = hf_config.num_hidden_layers / parallel.pipeline
    return layers * bytes_of_layer * (parallel.tensor - 1) / parallel.tensor / gpu.link


def _ring(config: RunConfig, hf_config: PretrainedConfig, gpu: Gpu, sequences: float, length: float) -> float:
    """Seconds by which keys and values on the ring of context ranks come too late for attention, in one forward."""
    parallel, head = config.parallel, models.head_size(hf_config)
    if parallel.context == 1:
        return 0.0
    of_rank = sequences * hf_config.num_hidden_layers / parallel.pipeline / parallel.tensor
    sent = 2 * length * hf_config.num_key_value_heads * head * config.policy.dtype.itemsize * of_rank
    within = parallel.tensor * parallel.context <= config.cluster.gpus_per_node
    products = 2 * length**2 * hf_config.num_attention_heads * head * of_rank / parallel.context
    return max(0.0, sent / (gpu.link if within else gpu.network) - products / gpu.flops / _STATISTICS)


def _reduction(config: RunConfig, gpu: Gpu, parameters: int, replicas: int) -> float:
    """Seconds of an update's sum of gradients and gathering of parameters over the replicas, where they are not overlapped."""
    parallel, optimizer = config.parallel, config.optimizer
    # Of experts this counts too many, whose gradients are summed over fewer ranks.
    count = parameters / parallel.tensor / parallel.pipeline / (parallel.expert if parallel.expert > 1 else 1)
    gradients = 0.0 if optimizer.overlap_gradients else 4 * count * (1 if optimizer.distributed else 2)
    gathered = (
        config.policy.dtype.itemsize * count if optimizer.distributed and not optimizer.overlap_parameters else 0.0
    )
    return (gradients + gathered) * (replicas - 1) / replicas / gpu.network


def _rollout(hf_config: PretrainedConfig, gpu: Gpu, fleet: Fleet, work: Work) -> float:
    """Seconds of drawing all responses, summed over the positions of a response, from the first to the last that may be.

    A position costs no less for more responses that reach it, and no fewer reach it if they are longer on average. So longer
    responses never take less time, whatever limits the engines.
    """
    room = fleet.room
    if not room.fits or fleet.engines < 1:
        return math.inf
    of_engine = max(1.0, work.sequences / fleet.engines)
    forward = models.training_flops(hf_config, [1]) / 3
    bandwidth, products = room.gpus * gpu.memory * _OF_BANDWIDTH, room.gpus * gpu.flops * _OF_PRODUCTS

    def seconds(part: float) -> float:
        """Of the token at this fraction of the longest response."""
        there = of_engine * _reaching(part, work)
        length = work.prompt + part * work.longest
        at_once = max(1.0, room.tokens / length)
        passes = max(1.0, there / at_once)
        return max((passes * room.weights + there * length * room.token) / bandwidth, there * forward / products)

    return work.longest * statistics.fmean(seconds((place + 0.5) / _PLACES) for place in range(_PLACES))


def _reaching(part: float, work: Work) -> float:
    """Fraction of the responses that are longer than this part of the longest one.

    Lengths are spread as a power of a uniform number: evenly up to the longest if the mean is half of it, and the shorter the
    mean, the fewer come near to the longest.
    """
    if work.response >= work.longest:
        return 1.0
    return 1.0 - part ** (work.response / (work.longest - work.response))
