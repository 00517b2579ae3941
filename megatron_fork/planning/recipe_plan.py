"""The plan of a recipe: its own layout on its own nodes, what would fit besides, and how many GPUs it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import ConfigError, LayoutError, ModelError, size
from megatron_fork.models import ParameterCounts
from megatron_fork.planning.hardware import gpu_named
from megatron_fork.planning.head import update_head, whole_logits
from megatron_fork.planning.held import replica_ranks
from megatron_fork.planning.layer import Backend, Machine
from megatron_fork.planning.layouts import (
    Estimate,
    Setting,
    balanced,
    estimate,
    fewest_nodes,
    largest_budget,
    suggestions,
)
from megatron_fork.planning.memory import longest_sequence, selected_fraction
from megatron_fork.planning.shapes import model_shape, shape_name
from megatron_fork.planning.time import Work, sync_bytes
from megatron_fork.rollout import engine_kind

_MOST_SUGGESTED = 5


@dataclass(frozen=True)
class Question:
    """What is asked about a recipe; None: as the recipe's `cluster` says."""

    gpus: int | None = None
    """All GPUs, of the trainer and of engines."""
    gpu_memory: float | None = None
    """GiB."""
    nodes: int | None = None
    """All nodes."""
    response: int | None = None
    """Mean tokens of a response."""


@dataclass(frozen=True)
class Plan:
    """What `megatron-fork plan` shows."""

    name: str
    shape: str | None
    """The published shape that stands in for the model's folder."""
    parameters: int
    own: Estimate
    """The recipe's own layout on the GPUs that were asked about."""
    longest: int
    """Tokens of the longest sequence."""
    budget: int
    """Tokens of a micro-batch that would fit; 0: not even the longest sequence."""
    sync: int
    """Bytes of a weight update."""
    head: dict[str, float]
    """Bytes at the LM head of one response of the greatest length, on one rank."""
    suggested: list[Estimate]
    fewest: Estimate | None = None
    balanced: Estimate | None = None

    def refuse(self) -> None:
        """Raise `LayoutError` with the largest part and the way out if the recipe's own layout does not fit."""
        own, room = self.own, self.own.fleet.room
        if own.peak > own.usable:
            stage = own.fullest
            part = max(stage.parts, key=lambda name: stage.parts[name])
            raise LayoutError(
                f"{self.name} needs {size(own.peak)} on a rank of pipeline stage {stage.stage}, of {size(own.usable)}: most of "
                f"it for {part}, {size(stage.parts[part])}",
                hint=self._way_out(part),
            )
        if not room.fits:
            raise LayoutError(
                f"{self.name}: the weights of an engine take {size(room.weights)}, more than {room.gpus} GPUs have room for",
                hint="raise cluster.engine_tensor",
            )

    def _way_out(self, part: str) -> str:
        for found in (self.suggested[0] if self.suggested else None, self.fewest):
            if found is not None:
                changes = " ".join(layout_fields(found.config.parallel, self.own.config.parallel))
                return f"{changes or 'the same layout'} fits on {found.ranks} trainer ranks"
        config = self.own.config
        if part in ("weights", "gradients", "optimizer", "optimizer step"):
            sharded = "" if config.optimizer.distributed else "set optimizer.distributed=true, "
            return f"{sharded}raise parallel.tensor or parallel.pipeline, or use more GPUs or GPUs with more memory"
        if part == "engine's weights" or part == "rollout":
            return "use engines of their own: rollout.engine=vllm, and cluster.engine_nodes"
        ways = [] if config.compute.recompute == "full" else ["set compute.recompute=full"]
        if config.compute.recompute == "full" and config.compute.recompute_layers > 1:
            ways.append("lower compute.recompute_layers")
        ways.append("raise parallel.tensor or parallel.context")
        longer = self.longest < config.policy.tokens_per_micro_batch
        ways.append("lower " + ("policy.tokens_per_micro_batch" if longer else "rollout.max_response_tokens"))
        return ", or ".join(ways)


def layout_fields(parallel: ParallelConfig, written: ParallelConfig | None = None) -> list[str]:
    """The overrides that make this layout; with `written` also those that take back what such a recipe sets."""
    usual = vars(ParallelConfig())
    others = [usual, vars(written)] if written else [usual]
    return [
        f"parallel.{name}={str(value).lower()}"
        for name, value in vars(parallel).items()
        if any(value != other[name] for other in others)
    ]


def plan(config: RunConfig, question: Question) -> Plan:
    """Plan a recipe; nothing is allocated. Raises a `MegatronForkError` for GPUs that the layout cannot use."""
    config = _on_asked(config, question)
    hf_config = model_shape(config)
    setting = _setting(config, hf_config, question)
    ranks, engines = config.cluster.ranks, config.cluster.servers
    if question.gpus is not None:
        ranks, engines = _split(config, question.gpus)
    _check(config, hf_config, ranks)
    own = estimate(config, setting, ranks=ranks, engines=engines)
    fewest = fewest_nodes(config, setting) if question.gpus is None and question.nodes is None else None
    return Plan(
        name=config.run.name,
        shape=shape_name(config.model),
        parameters=setting.parameters,
        own=own,
        longest=longest_sequence(config),
        budget=largest_budget(config, setting, ranks=ranks, engines=engines),
        sync=sync_bytes(config, setting.parameters),
        head=_head_of_one_response(config, hf_config, setting.machine),
        suggested=suggestions(config, setting, ranks=ranks, engines=engines)[:_MOST_SUGGESTED],
        fewest=fewest,
        balanced=balanced(setting, fewest) if fewest is not None and config.cluster.engine_nodes else None,
    )


def _on_asked(config: RunConfig, question: Question) -> RunConfig:
    cluster, longest = config.cluster, config.rollout.max_response_tokens
    if question.response is not None and question.response > longest:
        raise ConfigError(
            f"--response={question.response} is more than rollout.max_response_tokens={longest}",
            hint="give the mean length of a response, or raise the longest",
        )
    if cluster.gpus_per_node == 0:
        raise ConfigError(
            "cluster.gpus_per_node=0: there is no GPU to plan for", hint="name the nodes' GPUs: cluster.gpus_per_node=8"
        )
    if question.gpu_memory is not None:
        cluster = replace(cluster, gpu_memory=question.gpu_memory)
    if question.nodes is not None:
        of_engines = min(question.nodes - 1, round(question.nodes * _engine_fraction(config)))
        if cluster.engine_nodes and not of_engines:
            raise ConfigError(
                f"--nodes={question.nodes} leaves no node to the engines",
                hint="give 2 or more, or set cluster.engine_nodes=0",
            )
        cluster = replace(cluster, nodes=question.nodes - of_engines, engine_nodes=of_engines)
    return replace(config, cluster=cluster)


def _check(config: RunConfig, hf_config: PretrainedConfig, ranks: int) -> None:
    """Raise what `train` would on so many ranks, and refuse ranks that would have nothing to do."""
    models.check_divides(hf_config, config.parallel)
    models.check_recomputation(hf_config, config.parallel, config.compute)
    models.check_fused(hf_config, config.parallel, config.compute, config.policy.dtype)
    # Not all of what a run checks: the engine need not be installed where one plans.
    together = engine_kind(config.rollout.engine).ranks_per_engine(config.rollout)
    if config.cluster.engine_nodes == 0 and ranks % together:
        raise LayoutError(
            f"rollout.engine={config.rollout.engine} has engines of {together} ranks, and {ranks} ranks do not divide into "
            "them",
            hint="choose a divisor of the number of ranks: rollout.colocated.tensor",
        )
    room = models.longest_sequence(hf_config)
    if config.rollout.max_response_tokens >= room:
        raise ModelError(
            f"rollout.max_response_tokens={config.rollout.max_response_tokens} leaves no token of the model's "
            f"max_position_embeddings={room} to a prompt",
            hint="lower rollout.max_response_tokens, or add rope_parameters of rope_type yarn to config.json",
        )
    responses = config.train.prompts_per_mini_batch * config.rollout.samples
    job = config.cluster if ranks == config.cluster.ranks else None
    if (replicas := config.parallel.data(ranks, job)) > responses:
        raise LayoutError(
            f"{ranks} trainer ranks are {replicas} replicas of the model, and a mini-batch has {responses} responses: "
            f"{replicas - responses} replicas would have none",
            hint="use fewer GPUs, or raise train.prompts_per_mini_batch or rollout.samples",
        )


def _engine_fraction(config: RunConfig) -> float:
    return config.cluster.engine_nodes / (config.cluster.nodes + config.cluster.engine_nodes)


def _split(config: RunConfig, gpus: int) -> tuple[int, int]:
    """(trainer ranks, engines) of so many GPUs, in the recipe's proportion; raises if the layout cannot use them."""
    cluster, replica = config.cluster, replica_ranks(config)
    if gpus > cluster.gpus_per_node and gpus % cluster.gpus_per_node:
        raise ConfigError(
            f"--gpus={gpus} is not a multiple of cluster.gpus_per_node={cluster.gpus_per_node}",
            hint="nodes are used whole: give a multiple, or override cluster.gpus_per_node",
        )
    least = cluster.engine_tensor if cluster.engine_nodes else 0
    ranks = math.floor((gpus - max(least, gpus * _engine_fraction(config))) / replica) * replica
    if ranks < replica and gpus - least >= replica:
        ranks = replica
    if ranks < replica:
        raise LayoutError(
            f"--gpus={gpus} is less than the {replica} ranks of the recipe's layout"
            + (f" and the {least} GPUs of an engine" if least else ""),
            hint="give more GPUs, or lower parallel.tensor, pipeline or context",
        )
    return ranks, (gpus - ranks) // cluster.engine_tensor if cluster.engine_nodes else 0


def _setting(config: RunConfig, hf_config: PretrainedConfig, question: Question) -> Setting:
    counts = ParameterCounts.of(hf_config)
    backend: Backend = "local" if config.compute.backend == "auto" else config.compute.backend
    if config.compute.backend == "auto" and config.policy.precision == "bf16":
        backend = "either"  # in float32 `auto` takes local layers
    return Setting(
        counts=counts,
        parameters=counts.total,
        machine=Machine(backend),
        gpu=gpu_named(config.cluster.gpu),
        gpu_bytes=config.cluster.gpu_memory * 2**30,
        work=Work.of(config, response=question.response),
    )


def _head_of_one_response(config: RunConfig, hf_config: PretrainedConfig, machine: Machine) -> dict[str, float]:
    """What training only the selected rows saves: bytes for those, for all rows, and for all logits at once."""
    tokens, itemsize = config.rollout.max_response_tokens / config.parallel.context, config.policy.dtype.itemsize

    def of(rows: float) -> float:
        head = update_head(hf_config, config.parallel, config.vocab_parallel, machine, rows=rows, itemsize=itemsize)
        return sum(head.values())

    ratio = selected_fraction(config)
    return {
        "selected rows": of(tokens * ratio),
        "all rows": of(tokens),
        "all logits at once": whole_logits(hf_config, config.parallel, rows=tokens, itemsize=itemsize),
        "fraction selected": ratio,
        "fraction of products": _share_of_head(hf_config, int(tokens * config.parallel.context)),
    }


def _share_of_head(hf_config: PretrainedConfig, tokens: int) -> float:
    """Fraction of the operations of an update over all rows that the LM head makes."""
    head = 6 * hf_config.vocab_size * hf_config.hidden_size * tokens
    # The usual count has the embedding too, which costs no product.
    return head / (models.training_flops(hf_config, [tokens]) - head)
