"""What a Slurm job is submitted with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import Pattern, PositiveInt, Settings

# A word that stands in an `#SBATCH` line as it is.
_WORD = r"^[A-Za-z0-9_.@+][A-Za-z0-9_.,:@+-]*$"
_TIME = re.compile(r"[0-9]{1,8}(?::[0-9]{1,2}){0,2}|[0-9]{1,5}-[0-9]{1,2}(?::[0-9]{1,2}){0,2}").fullmatch
_MOUNT = re.compile(r"/[^:,\s]*:/[^:,\s]*(?::[a-z,]+)?").fullmatch
# sbatch takes quotes and backslashes out of a line, and what follows a blank and # is a comment for it.
_OPTION = re.compile(r"--[a-z][a-z-]*(?:=[^\s\"'\\#]+)?").fullmatch
# Options that the job's other settings give, or that make another job of it.
_TAKEN = (
    *("--nodes", "--partition", "--account", "--qos", "--time", "--requeue", "--no-requeue", "--signal"),
    *("--job-name", "--gpus", "--gpus-per-node", "--ntasks", "--ntasks-per-node", "--wrap", "--array"),
)
# A file's name holds 255 bytes, and the job's log has more than its name in it.
_LONGEST_NAME = 100


def _seconds(time: str) -> int:
    """A time as Slurm writes it; 0 is without limit. After days, hours come first; of three parts too; else minutes."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    scales = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * scale for part, scale in zip(parts, scales, strict=False))


@dataclass
class SlurmConfig(Settings, room="cluster.slurm"):
    """What a job of Slurm is submitted with; `launch` reads this."""

    partition: Annotated[str, Pattern(_WORD)] | None = None
    """Partition, one word; by default Slurm's own default."""
    account: Annotated[str, Pattern(_WORD)] | None = None
    """Account that the job is charged to, one word."""
    qos: Annotated[str, Pattern(_WORD)] | None = None
    """Quality of service, one word."""
    time_limit: str | None = None
    """Longest time of one start of the job, as Slurm writes it: by default the partition's."""
    warning_seconds: PositiveInt = 300
    """Seconds before the time limit at which the run saves and the job goes back into the queue."""
    requeue: bool = True
    """The job goes back into the queue after the time limit, preemption, a node's failure, or a rank's after some progress."""
    container: str | None = None
    """Image that the trainer runs in: a file, or for Pyxis an address too; by default none."""
    engine_container: str | None = None
    """Image that servers run in; by default the trainer's."""
    container_kind: Literal["pyxis", "apptainer"] = "pyxis"
    """What starts the image: pyxis (srun --container-image, with Enroot), apptainer (apptainer exec)."""
    mounts: list[str] = field(default_factory=list)
    """Folders that the containers see, as /outside:/inside; the run's folder and the one of the submission are seen anyway."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that the job begins with, such as `module load cuda` or `source /home/me/venv/bin/activate`."""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch, such as --constraint=h100."""

    def check(self) -> None:
        if self.time_limit is not None and not _TIME(self.time_limit):
            raise ConfigError(
                f"cluster.slurm.time_limit={self.time_limit!r} is not a time of Slurm's",
                hint="write minutes, hours:minutes:seconds or days-hours:minutes:seconds, such as 24:00:00",
            )
        if self.time_limit is not None and 0 < _seconds(self.time_limit) <= self.warning_seconds:
            raise ConfigError(
                f"cluster.slurm.time_limit={self.time_limit} leaves no time before the warning, "
                f"warning_seconds={self.warning_seconds}",
                hint="raise time_limit (one number is minutes, 1:00 is a minute), or lower warning_seconds",
            )
        for mount in self.mounts:
            if not _MOUNT(mount):
                raise ConfigError(
                    f"cluster.slurm.mounts: {mount!r} is not a mount", hint="write it as /outside:/inside"
                )
        for option in self.options:
            if not _OPTION(option):
                raise ConfigError(
                    f"cluster.slurm.options: {option!r} is not an option of sbatch", hint="write it as --name=value"
                )
            if option.partition("=")[0] in _TAKEN:
                raise ConfigError(
                    f"cluster.slurm.options: {option!r} is set elsewhere",
                    hint="cluster.nodes and the other fields of cluster.slurm give it",
                )
        for name, text in (("container", self.container), ("engine_container", self.engine_container)):
            if text is not None and (not text.isprintable() or not text.strip()):
                raise ConfigError(
                    f"cluster.slurm.{name}={text!r} is not an image", hint="name a file, or null for none"
                )
        for line in self.setup:
            if "\0" in line:
                raise ConfigError(f"cluster.slurm.setup: {line!r} is not a line of shell", hint="leave the NUL out")

    def options_of(self, nodes: int, gpus_per_node: int, name: str) -> list[str]:
        """The options of sbatch for a job of so many nodes; every one is a whole word."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "time": self.time_limit}
        return [
            f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:_LONGEST_NAME] or 'run'}",
            f"--nodes={nodes}",
            *([f"--gpus-per-node={gpus_per_node}"] if gpus_per_node else []),
            *(f"--{option}={value}" for option, value in named.items() if value),
            "--exclusive",
            "--requeue" if self.requeue else "--no-requeue",
            "--open-mode=append",
            "--output=%x-%j.out",
            f"--signal=B:USR1@{self.warning_seconds}",
            *self.options,
        ]
