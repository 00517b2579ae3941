"""What `doctor` tries before a job is queued, with the run's own parts: ranks, disk, prompts, a step, engines, a checkpoint."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.preflight.findings import Finding, Status, fixes, refused, unchecked
    from megatron_fork.preflight.sections import Preflight, preflight
else:
    __getattr__ = opened(__name__, __file__)

__all__ = ["Finding", "Preflight", "Status", "fixes", "preflight", "refused", "unchecked"]
