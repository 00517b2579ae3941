"""Engines that draw responses, and the collector that turns them into scored groups."""

from megatron_fork.rollout.collect import Collector, Rollouts
from megatron_fork.rollout.embedded import EmbeddedEngine
from megatron_fork.rollout.engine import Completion, Config, Engine, Request

__all__ = ["Collector", "Completion", "Config", "EmbeddedEngine", "Engine", "Request", "Rollouts"]
