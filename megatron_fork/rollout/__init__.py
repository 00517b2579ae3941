"""Engines that draw responses, and the collector that turns them into scored groups."""

from typing import TYPE_CHECKING

from megatron_fork import front_door

if TYPE_CHECKING:
    from megatron_fork.rollout.collect import Collector, Rollouts
    from megatron_fork.rollout.colocated import ColocatedEngine
    from megatron_fork.rollout.colocated_config import ColocatedConfig
    from megatron_fork.rollout.config import Config, RemoteConfig
    from megatron_fork.rollout.dealt import DealtEngine
    from megatron_fork.rollout.embedded import EmbeddedEngine
    from megatron_fork.rollout.ends import ends_in_words, stop_tokens_of
    from megatron_fork.rollout.engine import Begun, Completion, Engine, Request
    from megatron_fork.rollout.probing import probe
    from megatron_fork.rollout.producer import Tally
    from megatron_fork.rollout.reachability import server_states
    from megatron_fork.rollout.remote import RemoteEngine
    from megatron_fork.rollout.vllm_process import check_colocated
    from megatron_fork.rollout.weights import PolicyWeights
    from megatron_fork.rollout.window import Group
else:
    __getattr__ = front_door.opened(__name__, __file__)

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
    "server_states",
    "stop_tokens_of",
]
