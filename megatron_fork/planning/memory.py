"""The largest memory of a rank of every pipeline stage, from what it holds and what each phase of a step adds.

A peak is the held bytes and the largest phase: phases follow each other, and none keeps what another needs. Activations of a
pipeline count once for each micro-batch in flight (1F1B, arXiv 2104.04473).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.models import ParameterCounts
from megatron_fork.planning.engines import cache_bytes
from megatron_fork.planning.head import statistics_head, update_head
from megatron_fork.planning.held import Held, engine_weights, held_by_stage
from megatron_fork.planning.layer import LayerMemory, Machine, Row, layer_memory
from megatron_fork.rollout import engine_kind
from megatron_fork.selection import token_choice

# CUDA's context and NCCL's channels; an estimate, since both depend on driver and topology.
_CONTEXT = 1.5 * 2**30


@dataclass(frozen=True)
class Load:
    """The rows of a step that decide its memory."""

    update: Row
    statistics: Row
    selected: float
    """Fraction of the response tokens that carry gradient."""

    @classmethod
    def possible(cls, config: RunConfig) -> list[Load]:
        """Rows at their budget, of sequences as long as can be and of shorter ones, where these may need more."""
        longest, context, policy = longest_sequence(config), config.parallel.context, config.policy
        budgets = policy.tokens_per_micro_batch, policy.tokens_per_statistics_batch
        loads = [[Row.filled(budget, longest, context) for budget in budgets]]
        if context == 1 and longest > min(budgets):
            # A sequence that is longer than the budget is a row of its own, without the copies that shorter ones need.
            loads.append([Row.filled(budget, min(budget, longest)) for budget in budgets])
        return [cls(update, statistics, selected_fraction(config)) for update, statistics in loads]


def selected_fraction(config: RunConfig) -> float:
    """Of the response tokens, that which carries gradient."""
    return 1.0 if token_choice(config.selection.tokens).score is None else config.selection.ratio


def longest_sequence(config: RunConfig) -> int:
    """Tokens of the longest prompt with the longest response."""
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens


@dataclass(frozen=True)
class StageMemory:
    """Bytes of a rank of one pipeline stage."""

    stage: int
    held: dict[str, Held]
    always: dict[str, float]
    """Beside the networks, for the whole run."""
    activations: float
    """Of all micro-batches in flight."""
    in_flight: float
    phases: dict[str, float]

    @property
    def base(self) -> float:
        return sum(each.total for each in self.held.values()) + sum(self.always.values())

    @property
    def peak(self) -> float:
        return self.base + max(self.phases.values())

    @property
    def fullest_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def parts(self) -> dict[str, float]:
        """All that makes up the peak, by what it is."""
        held = self.held.values()
        return {
            "weights": sum(each.weights for each in held),
            "gradients": sum(each.gradients for each in held),
            "optimizer": sum(each.optimizer for each in held),
            **self.always,
            self.fullest_phase: self.phases[self.fullest_phase],
        }


def memory_by_stage(
    config: RunConfig, counts: ParameterCounts, machine: Machine, load: Load, *, ranks: int, micro_batches: int
) -> list[StageMemory]:
    """Every stage's memory; `micro_batches`: of one update on a rank. Raises `LayoutError` for an impossible layout."""
    held, itemsize = held_by_stage(config, counts, ranks), config.policy.dtype.itemsize
    # Layers are alike on all stages, and each of a pipeline's is asked for its memory.
    update, statistics = (
        layer_memory(counts.config, config.parallel, config.compute, machine, row, itemsize=itemsize)
        for row in (load.update, load.statistics)
    )
    return [
        _stage(config, counts, machine, load, (update, statistics), stage, each, micro_batches=micro_batches)
        for stage, each in enumerate(held)
    ]


def in_flight(config: RunConfig, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations a stage keeps at a time; interleaved stages keep parts of several."""
    parallel = config.parallel
    later, virtual = parallel.pipeline - stage - 1, parallel.virtual_pipeline
    if virtual == 1:
        return float(min(micro_batches, later + 1))
    chunks = 2 * later + (virtual - 1) * parallel.pipeline + 1
    return min(float(micro_batches), chunks / virtual)


def kept_of_row(config: RunConfig, hf_config: PretrainedConfig, machine: Machine, row: Row) -> float:
    """Bytes that a rank without pipeline stages keeps of a row for backward, without its LM head's."""
    layer = layer_memory(
        hf_config, config.parallel, config.compute, machine, row, itemsize=config.policy.dtype.itemsize
    )
    layers = _kept(config, hf_config, layer, hf_config.num_hidden_layers, row)
    return layers + 8.0 * row.tokens + final_norm(hf_config, config, row.tokens)


def _kept(config: RunConfig, hf_config: PretrainedConfig, layer: LayerMemory, layers: int, row: Row) -> float:
    """Bytes that the layers of a stage keep of one micro-batch until its backward."""
    head = models.head_size(hf_config)
    # Cosines and sines of all tokens, which the layers share.
    turns = head * config.policy.dtype.itemsize * row.tokens
    if config.compute.recompute != "full":
        return layer.saved * layers + turns
    # Every group's input, and the rotary angles of the longest sequence, one float32 tensor that all groups are given.
    return layer.boundary * layers / config.compute.recompute_layers + 4.0 * head * max(row.lengths) + turns


def _stage(
    config: RunConfig,
    counts: ParameterCounts,
    machine: Machine,
    load: Load,
    of_rows: tuple[LayerMemory, LayerMemory],
    stage: int,
    held: dict[str, Held],
    *,
    micro_batches: int,
) -> StageMemory:
    hf_config, parallel, itemsize = counts.config, config.parallel, config.policy.dtype.itemsize
    layers = hf_config.num_hidden_layers // parallel.pipeline - config.compute.offload_layers
    layer, statistics_layer = of_rows
    tokens, first, last = load.update.tokens, stage == 0, stage == parallel.pipeline - 1
    flying = in_flight(config, stage, micro_batches)
    kept = (_kept(config, hf_config, layer, layers, load.update) + 8.0 * tokens * first) * flying
    exchanged = 2 * layer.boundary if parallel.pipeline > 1 else 0.0
    final = final_norm(hf_config, config, tokens) if last else 0.0
    recomputed = layer.saved * config.compute.recompute_layers if config.compute.recompute == "full" else 0.0
    if config.compute.recompute == "selective" and (
        machine.backend != "local" or models.family_of(hf_config).has_experts
    ):
        recomputed = (
            tokens * hf_config.num_attention_heads / parallel.tensor * (models.head_size(hf_config) * itemsize + 4)
        )
    phases = {"backward": kept + final + recomputed + layer.backward + exchanged}
    if last:
        at_head = update_head(
            hf_config, parallel, config.vocab_parallel, machine, rows=tokens * load.selected, itemsize=itemsize
        )
        whole_row = tokens * hf_config.hidden_size * itemsize
        phases["LM head"] = kept + final + whole_row + sum(at_head.values()) + exchanged
    phases["statistics"] = 2 * statistics_layer.boundary + statistics_layer.forward
    if last:
        of_head = statistics_head(
            hf_config, parallel, config.vocab_parallel, machine, rows=load.statistics.tokens, itemsize=itemsize
        )
        at_last = load.statistics.tokens * hf_config.hidden_size * itemsize + of_head
        phases["statistics"] = max(phases["statistics"], 2 * statistics_layer.boundary + at_last)
    phases["weight update"] = _weight_update(config, hf_config, itemsize)
    if machine.on_gpu and machine.backend != "transformer_engine":
        # Torch's Adam takes the roots of all second moments at a time.
        phases["optimizer step"] = held["policy"].optimizer / (3 if itemsize < 4 else 2)
    always = {"engine's weights": engine_weights(config, counts.total)}
    kind = engine_kind(config.rollout.engine)
    if kind.takes_share:
        share = config.rollout.colocated.gpu_memory_utilization * config.cluster.gpu_memory * 2**30
        always["engine's weights"] = 0.0 if config.rollout.colocated.sleep else share
        phases["rollout"] = share if config.rollout.colocated.sleep else 0.0
    elif kind.holds_weights:
        phases["rollout"] = config.rollout.batch_size * longest_sequence(config) * cache_bytes(hf_config, itemsize)
    if machine.on_gpu:
        always["CUDA and NCCL"] = _CONTEXT
    return StageMemory(stage, held, {name: count for name, count in always.items() if count}, kept, flying, phases)


def final_norm(hf_config: PretrainedConfig, config: RunConfig, tokens: float) -> float:
    """What the last stage's norm saves, as any other."""
    width = hf_config.hidden_size / (config.parallel.tensor if config.parallel.sequence else 1)
    return tokens * (width * config.policy.dtype.itemsize + 4)


def _weight_update(config: RunConfig, hf_config: PretrainedConfig, itemsize: int) -> float:
    """The largest whole tensor, gathered from its shards, and a bucket of copies on the first rank."""
    whole = hf_config.vocab_size * hf_config.hidden_size * itemsize
    remote, colocated = config.rollout.remote, config.rollout.colocated
    bucket = remote.bucket_mebibytes if config.rollout.servers else colocated.bucket_mebibytes
    return whole * (2 if config.parallel.tensor > 1 else 1) + max(whole, bucket * 2**20)


def micro_batches_of(config: RunConfig, ranks: int) -> int:
    """Micro-batches of an update on a rank if all responses have their greatest length; at least one."""
    longest = longest_sequence(config)
    each = max(1, config.policy.tokens_per_micro_batch // longest)
    of_rank = config.train.prompts_per_mini_batch * config.rollout.samples / config.parallel.data(ranks)
    count = max(1, math.ceil(of_rank / each))
    stages = config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1
    return -(-count // stages) * stages
