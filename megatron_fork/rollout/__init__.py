"""Engines that draw responses, and the collector that turns them into scored groups."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.rollout.collector import Collector, Rollouts
    from megatron_fork.rollout.config import ColocatedConfig, RemoteConfig, RolloutConfig
    from megatron_fork.rollout.engine import Completion, Engine, InProcessEngine, PartialResponse, Request
    from megatron_fork.rollout.engines import EngineContext, EngineKind, build_engine, check_engine, engine_kind
    from megatron_fork.rollout.in_flight import PromptGroup
    from megatron_fork.rollout.in_process.embedded import EmbeddedEngine
    from megatron_fork.rollout.in_process.load_balanced import LoadBalancedEngine
    from megatron_fork.rollout.in_process.vllm import ColocatedEngine
    from megatron_fork.rollout.probing import compare, probe
    from megatron_fork.rollout.responses import (
        ends_in_words,
        request_for,
        seed_of,
        stop_tokens_of,
        text_of,
        trajectory_of,
    )
    from megatron_fork.rollout.scheduler import RolloutCounts
    from megatron_fork.rollout.servers.remote import RemoteEngine
    from megatron_fork.rollout.servers.scoring import ScoringServers
    from megatron_fork.rollout.servers.survey import ServerAnswer, ask_servers
    from megatron_fork.rollout.servers.wire import server_states
    from megatron_fork.rollout.signal_share import SignalShare
    from megatron_fork.rollout.weights import PolicyWeights
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "RolloutConfig"})

__all__ = [
    "PartialResponse",
    "ColocatedConfig",
    "ColocatedEngine",
    "Collector",
    "Completion",
    "RolloutConfig",
    "LoadBalancedEngine",
    "EmbeddedEngine",
    "Engine",
    "EngineContext",
    "EngineKind",
    "InProcessEngine",
    "PromptGroup",
    "PolicyWeights",
    "RemoteConfig",
    "RemoteEngine",
    "Request",
    "Rollouts",
    "RolloutCounts",
    "ScoringServers",
    "ServerAnswer",
    "SignalShare",
    "ask_servers",
    "build_engine",
    "check_engine",
    "compare",
    "engine_kind",
    "ends_in_words",
    "probe",
    "request_for",
    "seed_of",
    "server_states",
    "stop_tokens_of",
    "text_of",
    "trajectory_of",
]
