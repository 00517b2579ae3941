"""Engines that draw responses, and the collector that turns them into scored groups."""

from megatron_fork.rollout.collect import Collector, Rollouts
from megatron_fork.rollout.colocated import ColocatedConfig, ColocatedEngine
from megatron_fork.rollout.config import Config, RemoteConfig
from megatron_fork.rollout.dealt import DealtEngine
from megatron_fork.rollout.embedded import EmbeddedEngine
from megatron_fork.rollout.ends import ends_in_words, stop_tokens_of
from megatron_fork.rollout.engine import Begun, Completion, Engine, Request
from megatron_fork.rollout.probe import probe
from megatron_fork.rollout.producer import Tally
from megatron_fork.rollout.remote import RemoteEngine
from megatron_fork.rollout.vllm_process import check_colocated
from megatron_fork.rollout.weights import PolicyWeights
from megatron_fork.rollout.window import Group

__all__ = [
    "Begun",
    "ColocatedConfig",
    "ColocatedEngine",
    "Collector",
    "Completion",
    "Config",
    "DealtEngine",
    "EmbeddedEngine",
    "Engine",
    "Group",
    "PolicyWeights",
    "RemoteConfig",
    "RemoteEngine",
    "Request",
    "Rollouts",
    "Tally",
    "check_colocated",
    "ends_in_words",
    "probe",
    "stop_tokens_of",
]
