"""The text of a job: one script, with the options and words of a recipe in the place of those of its head."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from megatron_fork.cluster.config import ClusterConfig

_SCRIPT = Path(__file__).with_name("train.sbatch")
_MARK = "# --- the recipe's words follow\n"


def job_script(cluster: ClusterConfig, *, name: str, words: Sequence[str]) -> str:
    """What `launch` submits: `scripts/slurm/train.sbatch` for one recipe.

    Args:
        cluster: nodes, and what the job is submitted with.
        name: of the job.
        words: the recipe and its overrides.

    """
    head, mark, body = _SCRIPT.read_text(encoding="utf-8").partition(_MARK)
    assert mark
    slurm = cluster.slurm
    shell, *comments = [line for line in head.splitlines() if not line.startswith("#SBATCH")]
    options = slurm.options_of(cluster.nodes + cluster.engine_nodes, cluster.gpus_per_node, name)
    variables = {
        "MEGATRON_FORK_CONTAINER": slurm.container,
        "MEGATRON_FORK_ENGINE_CONTAINER": slurm.engine_container,
        "MEGATRON_FORK_CONTAINER_KIND": slurm.container_kind if slurm.container or slurm.engine_container else None,
        "MEGATRON_FORK_MOUNTS": ",".join(slurm.mounts),
    }
    return "\n".join(
        [
            shell,
            *(f"#SBATCH {option}" for option in options),
            *comments,
            *slurm.setup,
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items() if value),
            f"set -- {shlex.join(words)}",
            mark + body,
        ]
    )


def job_variables(values: dict[str, str | int]) -> str:
    """Lines that a shell evaluates to these variables, whatever characters the values hold."""
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())
