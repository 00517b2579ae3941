"""The engines that `rollout.engine` can name, how each is built and what it can do.

A new engine is one file with a class and one entry here. The user's own engine is named `rollout.engine: module:name`, where
the name is an `EngineKind` or a function that returns an engine. Nothing here imports torch: settings are checked with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import check_part, entry_named, is_custom, part, told_by_name

if TYPE_CHECKING:  # the table is read before any of these is needed
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from megatron_fork.distributed import collectives
    from megatron_fork.rollout.config import RolloutConfig
    from megatron_fork.rollout.engine import Engine
    from megatron_fork.rollout.servers.server import Server

SyncWay = Literal["disk", "gloo", "nccl"]
_ROOM = "megatron_fork.rollout"


@dataclass(frozen=True)
class EngineContext:
    """What an engine may need to be built; its weights come with the first update."""

    config: RolloutConfig
    hf_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    """Any of them ends a response; the tokenizer's own comes first."""
    longest_prompt: int
    """In tokens."""
    folder: Path
    """The run's folder; an engine writes into a folder of its own in there."""
    world: collectives.Group
    """All ranks, each of which builds an engine."""
    device: torch.device
    dtype: torch.dtype
    """The policy's."""
    records_experts: bool = False
    """Completions must name the experts that each token was routed to."""
    save: Callable[[], None] = lambda: None
    """Saves the run before a wait that may end it; every rank calls it."""
    stop_point: Callable[[], None] = lambda: None
    """Raises `StopRequested` on the first rank if the run is to stop; long waits call it."""
    say: Callable[[str], None] = lambda line: None

    @property
    def pad_token(self) -> int:
        """Fills the places after a response; any token would do."""
        padding: int | None = self.tokenizer.pad_token_id
        return self.stop_tokens[0] if padding is None else padding


@dataclass(frozen=True)
class EngineKind:
    """How an engine is built, and what it can do."""

    build: str | Callable[[EngineContext], Engine]
    """A function, or `module:function`, which is imported when it is first called."""
    title: str = "engine"
    """What `doctor` calls it."""
    server: str | Callable[..., Server] | None = None
    """The class that talks to each of `rollout.servers`; None: the engine runs in the trainer's processes."""
    sync_ways: tuple[SyncWay, ...] = ()
    """How its servers can get new weights."""
    takes_changes: bool = False
    """Its servers keep a copy of their weights, and can be sent what has changed."""
    rests: bool = True
    """It shares the trainer's processors, and draws nothing while the policy trains."""
    draws_in_rounds: bool = False
    """A response depends on its seed and the weights alone: drawn in rounds, a part on each rank, a run repeats bit for bit."""
    full_softmax: bool = True
    """Log-probs are those of the whole vocabulary even with top-p and top-k."""
    reports_kept: bool = False
    """Completions can name what each token was drawn from, for `rollout.replay_sampling_mask`."""
    kept_needs_top_k: bool = False
    """It does so only for requests with a `top_k`, which bounds the report."""
    replay_options: Callable[[RolloutConfig, bool, bool], list[str]] = lambda config, experts, on_gpu: []
    """What its servers must be started with to report what the settings, and `experts.replay`, ask for."""
    reports_experts: bool = False
    """Completions can name the experts of a mixture, for `experts.replay`."""
    ranks_per_engine: Callable[[RolloutConfig], int] = lambda config: 1
    """How many consecutive ranks form one engine and make the same calls; the first of them reports for it."""
    holds_weights: bool = False
    """The engine's weights are on the trainer's ranks beside the policy, a part on each rank of an engine."""
    takes_share: bool = False
    """While it is awake it holds `rollout.colocated.gpu_memory_utilization` of each GPU, its weights among that."""
    memory: str = ""
    """What `doctor` says about the memory of its weights."""
    check: str | Callable[[RolloutConfig, int], None] | None = None
    """Raises `ConfigError` if this machine, or this number of ranks, cannot run it."""

    @property
    def has_servers(self) -> bool:
        return self.server is not None


_EXPERTS = "--enable-return-routed-experts"


def _of_vllm(config: RolloutConfig, experts: bool, on_gpu: bool) -> list[str]:
    masks = ["--return-sampling-mask"] if on_gpu else ["--max-logprobs", str(config.top_k)]
    return [*(masks if config.replays_mask else []), *([_EXPERTS] if experts else [])]


def _of_sglang(config: RolloutConfig, experts: bool, on_gpu: bool) -> list[str]:
    masks = ["--sampling-mask-max-tokens", str(max(4096, 2 * config.top_k))]  # ties at its end are kept as well
    return [*(masks if config.replays_mask else []), *([_EXPERTS] if experts else [])]


def _of_servers(
    name: str,
    server: str,
    *,
    full_softmax: bool,
    takes_changes: bool,
    options: Callable[[RolloutConfig, bool, bool], list[str]],
) -> EngineKind:
    return EngineKind(
        f"{_ROOM}.servers.remote:RemoteEngine.of",
        title="servers",
        server=f"{_ROOM}.servers.{name}:{server}",
        sync_ways=("disk", "gloo", "nccl"),
        takes_changes=takes_changes,
        rests=False,
        full_softmax=full_softmax,
        reports_kept=True,
        kept_needs_top_k=True,
        replay_options=options,
        reports_experts=True,
        memory="they hold the weights that they draw with",
    )


ENGINES: dict[str, EngineKind] = {
    "embedded": EngineKind(
        f"{_ROOM}.in_process.embedded:EmbeddedEngine.of",
        title="embedded engine",
        draws_in_rounds=True,
        reports_kept=True,
        reports_experts=True,
        holds_weights=True,
        memory="weights, whole on every rank",
    ),
    "vllm_colocated": EngineKind(
        f"{_ROOM}.in_process.vllm:ColocatedEngine.of",
        title="vLLM on the trainer's ranks",
        full_softmax=False,
        ranks_per_engine=lambda config: config.colocated.tensor,
        holds_weights=True,
        takes_share=True,
        memory="weights; its cache comes on top",
        check=f"{_ROOM}.in_process.vllm_process:check_colocated",
    ),
    "vllm": _of_servers("vllm", "VllmServer", full_softmax=False, takes_changes=True, options=_of_vllm),
    "sglang": _of_servers("sglang", "SglangServer", full_softmax=True, takes_changes=False, options=_of_sglang),
}


@cache
def engine_kind(name: str) -> EngineKind:
    """The engine of this name; raises `ConfigError` if there is none."""

    def made(found: object) -> EngineKind | None:
        return found if isinstance(found, EngineKind) else EngineKind(found) if callable(found) else None

    kind = entry_named("rollout.engine", name, ENGINES, "engine", made=made)
    if is_custom(name):
        for what, named in (("build", kind.build), ("server", kind.server), ("check", kind.check)):
            check_part("rollout.engine", name, what, named)
    return kind


def check_settings(config: RolloutConfig, kind: EngineKind) -> None:
    """Raise `ConfigError` for settings that an engine of this kind does not support."""
    if config.max_staleness and kind.rests and config.tail != "stop":
        raise ConfigError(
            f"rollout.max_staleness={config.max_staleness} with rollout.engine={config.engine}, which rests during training",
            hint="set rollout.tail=stop, or use servers",
        )
    if config.servers and not kind.has_servers:
        raise ConfigError(
            f"rollout.engine={config.engine} with rollout.servers={config.servers}",
            hint=f"it has no servers: leave them out, or set rollout.engine to one of {_names_of_servers()}",
        )
    if config.replays_mask:
        _check_replay(config, kind)
    if config.remote.delta_updates and kind.has_servers and not kind.takes_changes:
        those = ", ".join(name for name, each in ENGINES.items() if each.takes_changes)
        raise ConfigError(
            f"rollout.remote.delta_updates=true with rollout.engine={config.engine}, whose servers take only whole weights",
            hint=f"set rollout.remote.delta_updates=false, or rollout.engine={those}",
        )
    if kind.has_servers and config.sync not in kind.sync_ways:
        raise ConfigError(
            f"rollout.sync={config.sync} with rollout.engine={config.engine}",
            hint=f"it gets weights by {' or '.join(kind.sync_ways) or 'none of these ways'}",
        )


def _check_replay(config: RolloutConfig, kind: EngineKind) -> None:
    if not kind.reports_kept:
        those = ", ".join(name for name, each in ENGINES.items() if each.reports_kept)
        raise ConfigError(
            f"rollout.replay_sampling_mask=true with rollout.engine={config.engine}, which does not say what it drew from",
            hint=f"set it to false with rollout.mismatch_limit=.inf, or rollout.engine to one of {those}",
        )
    if kind.kept_needs_top_k and not config.top_k:
        raise ConfigError(
            f"rollout.replay_sampling_mask=true with rollout.engine={config.engine} and rollout.top_k=0: it reports what it "
            "drew from only where top_k bounds that",
            hint="set rollout.top_k beside top_p or min_p, so large that it hardly cuts, for example 256",
        )


def _names_of_servers() -> str:
    return ", ".join(name for name, each in ENGINES.items() if each.has_servers)


def check_engine(
    config: RolloutConfig, *, ranks: int, replays_experts: bool = False, servers_come: bool = False
) -> None:
    """Raise `ConfigError` if the engine of `config` cannot run here, or does not support the settings.

    `servers_come`: a job starts the servers, and none need be named yet.
    """
    kind = engine_kind(config.engine)
    config.check_kind(kind)
    if kind.has_servers and not config.servers and not servers_come:
        raise ConfigError(
            f"rollout.engine={config.engine} with rollout.servers={config.servers}",
            hint=f"it needs at least one address, such as http://node7:8000: only {_names_of_servers()} draw at servers; "
            "`megatron-fork launch` starts a job with both",
        )
    if replays_experts and not kind.reports_experts:
        those = ", ".join(name for name, each in ENGINES.items() if each.reports_experts)
        raise ConfigError(
            f"experts.replay=true with rollout.engine={config.engine}, which does not say where it routes tokens",
            hint=f"set experts.replay=false, or rollout.engine to one of {those}",
        )
    with told_by_name("rollout.engine", config.engine):
        if kind.check is not None:
            part(kind.check)(config, ranks)
        together = kind.ranks_per_engine(config)
    if not (isinstance(together, int) and together > 0):
        raise ConfigError(
            f"rollout.engine={config.engine} has ranks_per_engine={together!r}",
            hint="give a function of a count from 1 on",
        )
    if ranks % together:
        raise ConfigError(
            f"rollout.engine={config.engine} has engines of {together} ranks, and {ranks} ranks do not divide into them",
            hint="choose a divisor of the number of ranks",
        )


def build_engine(context: EngineContext) -> Engine:
    """This rank's engine, which draws responses."""
    from megatron_fork.distributed import collectives  # imports torch, which checking settings does not need
    from megatron_fork.rollout.engine import Engine

    config = context.config
    kind = engine_kind(config.engine)
    with told_by_name("rollout.engine", config.engine):
        engine = part(kind.build)(context)
    missing = sorted({each for each in vars(Engine) if not each.startswith("_")} - set(dir(engine)))
    if missing:
        raise ConfigError(
            f"rollout.engine={config.engine} built a {type(engine).__name__} without {', '.join(missing)}",
            hint="derive it from megatron_fork.rollout.InProcessEngine, which has most of them",
        )
    if is_custom(config.engine):
        from megatron_fork.rollout.outside import OutsideEngine

        engine = OutsideEngine(engine, config.engine, vocabulary=context.hf_config.vocab_size)
    draws_alone = engine.is_coordinated or (kind.draws_in_rounds and config.max_staleness == 0)
    if draws_alone or collectives.size(context.world) == 1:
        return engine
    from megatron_fork.rollout.in_process.load_balanced import LoadBalancedEngine

    ranks = kind.ranks_per_engine(config)
    return LoadBalancedEngine(engine, world=context.world, ranks_per_engine=ranks, batch_size=config.batch_size)
