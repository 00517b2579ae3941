"""`megatron-fork launch`: checks a recipe for its nodes and submits it to Slurm.

Before the queue it checks whatever can be known on the machine that submits; the job itself checks the rest in its first step.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_fork import models, planning
from megatron_fork.cluster import ClusterConfig, check_images, job_script, job_variables
from megatron_fork.config import RunConfig
from megatron_fork.data import GENERATED
from megatron_fork.errors import ConfigError, MegatronForkError, NotInstalledError, shown
from megatron_fork.files import as_file_name
from megatron_fork.rollout import engine_kind


def with_nodes(config: RunConfig, nodes: int | None) -> RunConfig:
    """`config` for a job of `nodes` nodes in all, those of servers included; raises `ConfigError` if none is left to train."""
    if nodes is None:
        return config
    cluster = config.cluster
    if nodes <= cluster.engine_nodes:
        raise ConfigError(
            f"cluster.engine_nodes={cluster.engine_nodes} leaves none of {nodes} nodes to the trainer",
            hint=f"ask for {cluster.engine_nodes + cluster.nodes} (--nodes), or set cluster.engine_nodes=0",
        )
    return replace(config, cluster=replace(cluster, nodes=nodes - cluster.engine_nodes))


def check_nodes(config: RunConfig, nodes: int | None) -> None:
    """Raise `ConfigError` where the job got another number of nodes than its recipe needs."""
    cluster = config.cluster
    needed = cluster.nodes + cluster.engine_nodes
    if nodes != needed:
        raise ConfigError(
            f"the job has {nodes} nodes, but cluster.nodes={cluster.nodes} and "
            f"cluster.engine_nodes={cluster.engine_nodes} make {needed}",
            hint=f"submit it with --nodes={needed}, or set cluster.nodes",
        )


def check_job(config: RunConfig, *, only_printed: bool = False) -> list[str]:
    """Raise a `MegatronForkError` for what would fail once the job runs, as far as this machine can tell.

    With `only_printed` files that are not on this machine are no error; returned is what could not be checked for want of them.
    """
    _check_servers(config)
    check_images(config.cluster.slurm)
    _check_setup(config.cluster.slurm.setup)
    if config.cluster.gpus_per_node:
        planning.check_memory(config.cluster.gpu, config.cluster.gpu_memory)
    from megatron_fork.run import check_settings, matching_model, matching_prompts

    slurm, unknown = config.cluster.slurm, list[str]()
    try:
        check_settings(config, ranks=config.cluster.ranks, servers_come=config.cluster.servers > 0)
    except NotInstalledError as error:
        if not (only_printed or slurm.container or slurm.setup):
            raise
        unknown.append(f"{error.message}; the job's nodes need it")
    config.parallel.data(config.cluster.ranks, config.cluster)
    model = config.model.path
    is_here = not model or Path(model).is_dir()
    if is_here or planning.shape_name(config.model):
        models.check_divides(planning.model_shape(config), config.parallel)
        if config.cluster.gpus_per_node:
            planning.plan(config, planning.Question()).refuse()
    # A path may be there in the container alone, or on the cluster and not where the script is only printed.
    if not is_here and (only_printed or slurm.container is not None):
        return [*unknown, f"model.path={model} is not on this machine: its files and the prompts were not looked at"]
    hf_config, _ = matching_model(config)
    try:
        matching_prompts(config, hf_config)
    except MegatronForkError as error:
        if not only_printed or config.data.source in GENERATED or Path(config.data.source).exists():
            raise
        return [*unknown, error.message]
    return unknown


def variables(config: RunConfig, job: str) -> str:
    """What the job's script needs to know of its recipe, as lines of shell."""
    _check_servers(config)
    config.parallel.data(config.cluster.ranks, config.cluster)
    cluster = config.cluster
    folder = Path(config.run.folder or Path("runs", f"{as_file_name(config.run.name)}-{job}")).absolute()
    return job_variables(
        {
            "folder": str(folder),
            "trainer_nodes": cluster.nodes,
            "ranks_per_node": max(1, cluster.gpus_per_node),
            "gpus_per_node": cluster.gpus_per_node,
            "servers_per_node": cluster.servers // max(1, cluster.engine_nodes),
            "engine": config.rollout.engine,
            "engine_tensor": cluster.engine_tensor,
            "engine_options": " ".join(
                engine_kind(config.rollout.engine).replay_options(
                    config.rollout, config.experts.replay, cluster.gpus_per_node > 0
                )
            ),
            "model": config.model.path or "",
            "steps": config.train.steps,
        }
    )


def script(config: RunConfig, recipe: Path, overrides: list[str]) -> str:
    """The job's script."""
    return job_script(config.cluster, name=config.run.name, words=[str(recipe), *overrides])


def submit(text: str, cluster: ClusterConfig) -> str:
    """Hand the script to sbatch; returns its words. Raises `MegatronForkError` where there is no Slurm, or it refuses."""
    if shutil.which("sbatch") is None:
        raise MegatronForkError(
            "sbatch is not on PATH: this machine does not submit to Slurm",
            hint="run it on a login node, or print the script with --dry-run",
        )
    _check_partition(cluster)
    done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = shown(done.stderr.replace("sbatch: error: ", "").strip().partition("\n")[0])
        raise MegatronForkError(
            f"sbatch refuses the job: {said}",
            hint="correct cluster.slurm, cluster.nodes or cluster.gpus_per_node",
        )
    return done.stdout.strip()


def _check_servers(config: RunConfig) -> None:
    cluster, rollout = config.cluster, config.rollout
    talks_to_servers = engine_kind(rollout.engine).has_servers
    if talks_to_servers and not cluster.engine_nodes and not rollout.servers:
        raise ConfigError(
            f"rollout.engine={rollout.engine} with cluster.engine_nodes=0 and no rollout.servers",
            hint="set cluster.engine_nodes=1 or more for servers of the job, or name running ones",
        )
    if not cluster.engine_nodes:
        return
    if not talks_to_servers:
        raise ConfigError(
            f"cluster.engine_nodes={cluster.engine_nodes} with rollout.engine={rollout.engine}, which has no servers",
            hint="set rollout.engine=vllm or sglang, or cluster.engine_nodes=0",
        )
    if rollout.servers:
        raise ConfigError(
            f"cluster.engine_nodes={cluster.engine_nodes} with rollout.servers={rollout.servers}",
            hint="the job starts servers of its own: leave rollout.servers out, or set cluster.engine_nodes=0",
        )
    if not config.model.path:
        raise ConfigError(
            f"cluster.engine_nodes={cluster.engine_nodes} without model.path: servers start from a Hugging Face folder",
            hint="set model.path=FOLDER; `megatron-fork sft` leaves one of a warm start",
        )


def _check_setup(lines: Sequence[str]) -> None:
    """Raise `ConfigError` where the lines are not whole commands of bash, which would take the rest of the script with them."""
    if not lines or shutil.which("bash") is None:
        return
    told = subprocess.run(
        ["bash", "-n"], input="\n".join([*lines, ""]), capture_output=True, text=True, check=False
    ).stderr
    if told:
        raise ConfigError(
            f"cluster.slurm.setup cannot be read by bash: {shown(told.strip().partition(chr(10))[0])}",
            hint="close every quote, block and here-document within these lines",
        )


def _check_partition(cluster: ClusterConfig) -> None:
    """Slurm keeps a job in the queue for ever that a partition can never hold, so its nodes are counted here."""
    sizes, default = _partitions()
    wanted = cluster.slurm.partition or default
    if not sizes or wanted is None:
        return
    names = wanted.split(",")
    for name in names:
        if name not in sizes:
            raise ConfigError(
                f"cluster.slurm.partition={name} is not a partition here", hint=f"there are {', '.join(sorted(sizes))}"
            )
    needed, most = cluster.nodes + cluster.engine_nodes, max(sizes[name] for name in names)
    if needed > most:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes} and cluster.engine_nodes={cluster.engine_nodes} make {needed} nodes, "
            f"but cluster.slurm.partition={wanted} has {most}",
            hint="ask for fewer nodes, or choose another partition",
        )


def _partitions() -> tuple[dict[str, int], str | None]:
    """Each partition's number of nodes, and the default partition; nothing where Slurm does not say."""
    sizes: dict[str, int] = {}
    default = None
    if shutil.which("sinfo") is None:
        return sizes, default
    done = subprocess.run(["sinfo", "--noheader", "--format=%P %D"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        name, count = line.split()
        if name.endswith("*"):
            name = default = name.removesuffix("*")
        sizes[name] = sizes.get(name, 0) + int(count)
    return sizes, default
