"""What a recipe needs before it runs: memory, room on engines, time, layouts that fit; and other trainers' settings."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.planning.engines import EngineRoom, cache_bytes
    from megatron_fork.planning.hardware import Gpu, check_memory, gpu_named
    from megatron_fork.planning.held import (
        Held,
        Replicas,
        checkpoint_bytes,
        engine_weights,
        held_by_stage,
        optimizer_bytes,
        replica_ranks,
    )
    from megatron_fork.planning.layer import LayerMemory, Machine, Row, layer_memory
    from megatron_fork.planning.layouts import Estimate, Setting, estimate, fewest_nodes, suggestions
    from megatron_fork.planning.memory import Load, StageMemory, kept_of_row, memory_by_stage, micro_batches_of
    from megatron_fork.planning.peers import PEERS, PeerTable, TranslatedRow, Translation, reference, translate
    from megatron_fork.planning.recipe_plan import Plan, Question, layout_fields, plan
    from megatron_fork.planning.shapes import known_shapes, model_shape, shape_name
    from megatron_fork.planning.time import Fleet, StepTime, Work, step_time, sync_bytes
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "PEERS",
    "PeerTable",
    "TranslatedRow",
    "Translation",
    "reference",
    "translate",
    "Estimate",
    "Fleet",
    "Gpu",
    "Plan",
    "Question",
    "Setting",
    "StepTime",
    "Work",
    "estimate",
    "fewest_nodes",
    "gpu_named",
    "layout_fields",
    "plan",
    "step_time",
    "suggestions",
    "EngineRoom",
    "Held",
    "LayerMemory",
    "Load",
    "Machine",
    "Replicas",
    "Row",
    "StageMemory",
    "cache_bytes",
    "check_memory",
    "checkpoint_bytes",
    "engine_weights",
    "held_by_stage",
    "kept_of_row",
    "layer_memory",
    "memory_by_stage",
    "micro_batches_of",
    "optimizer_bytes",
    "replica_ranks",
    "sync_bytes",
    "known_shapes",
    "model_shape",
    "shape_name",
]
