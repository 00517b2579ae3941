"""The metrics of a run as TensorBoard event files, a folder for each stage, since each stage counts its own steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_fork.errors import RunFolderError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_NEVER_PURGED = -1


class TensorBoard:
    """Event files below `folder`; TensorBoard shows each stage as one run, and the steps of a resumed run once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._repeated: dict[str, int] = {}

    def forget(self, stage: str, after: int) -> None:
        """Hide what was written of a stage past step `after`; to be called before anything is written of it."""
        self._repeated[stage] = after + 1

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write the finite metrics of a step; they can be read when this returns."""
        writer = self._writer(stage)
        for name, value in values.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, stage: str) -> SummaryWriter:
        if stage not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RunFolderError(
                    "run.tensorboard=true, but tensorboard is not installed", hint="pip install tensorboard"
                ) from error
            repeated = self._repeated.get(stage, _NEVER_PURGED)
            self._writers[stage] = SummaryWriter(
                str(self._folder / stage), purge_step=None if repeated == _NEVER_PURGED else repeated
            )
        return self._writers[stage]
