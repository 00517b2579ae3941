"""What a recipe needs before it runs: memory of every rank, room on the engines, time of a step, and layouts that fit."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.planning.shapes import known_shapes, model_shape, shape_name
else:
    __getattr__ = opened(__name__, __file__)

__all__ = ["known_shapes", "model_shape", "shape_name"]
