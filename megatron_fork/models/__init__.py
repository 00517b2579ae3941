"""Megatron models from Hugging Face configs."""

from megatron_fork.models.build import build_model
from megatron_fork.models.families import check_divides, family_of
from megatron_fork.models.source import Config, config_from_recipe
from megatron_fork.models.statistics_model import StatisticsModel

__all__ = ["Config", "StatisticsModel", "build_model", "check_divides", "config_from_recipe", "family_of"]
