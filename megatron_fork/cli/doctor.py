"""`megatron-fork doctor`: what this machine has, and whether a recipe would start here.

Nothing is allocated until the recipe has been read; then `preflight` tries the parts of a run. At the end the first thing that
the recipe needs and does not find raises the same error as in `train`; what depends on it was not checked, and a line says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from megatron_fork import __version__, distributed, models, planning, vocab_parallel
from megatron_fork.cli.doctor_recipe import Known, recipe_sections
from megatron_fork.config import RunConfig
from megatron_fork.distributed import launch
from megatron_fork.errors import ConfigError, Interrupted, MegatronForkError, PreflightError, masked, size
from megatron_fork.preflight import Finding, Preflight, Status, fixes, preflight, refused
from megatron_fork.run import check_kernels

_GIB = 2**30


class _Optional(NamedTuple):
    """A package that some recipes need."""

    module: str
    package: str
    gain: str
    """What a run uses it for."""
    field: str = ""
    value: object = True
    """The setting that cannot do without it; True: whatever is set."""

    def needed_for(self, config: RunConfig) -> str:
        """The recipe's setting that needs it; empty if there is none."""
        if not self.field:
            return ""
        found = attrgetter(self.field)(config)
        is_needed = bool(found) if self.value is True else found == self.value
        return f"{self.field}={found}" if is_needed else ""


_OPTIONAL = (
    _Optional(
        "transformer_engine",
        "transformer-engine",
        "fused layers, offload and fp8 on a GPU",
        "compute.backend",
        "transformer_engine",
    ),
    _Optional("flash_attn", "flash-attn", "attention kernels", "compute.attention", "flash"),
    _Optional("triton", "triton", "kernels of LM head and layers on a GPU", "vocab_parallel.kernels", "triton"),
    _Optional("vllm", "vllm", "rollout engine", "rollout.engine", "vllm_colocated"),
    _Optional("sglang", "sglang", "rollout engine"),
    _Optional("wandb", "wandb", "run.wandb", "run.wandb"),
    _Optional("tensorboard", "tensorboard", "run.tensorboard", "run.tensorboard"),
    _Optional("math_verify", "math-verify", "rewards.kind=math_verify", "rewards.kind", "math_verify"),
)


def diagnose(
    config: RunConfig | None, console: Console, *, ranks: int | None = None, trying: Preflight | None = None
) -> None:
    """Print what is found; raises a `MegatronForkError` for the first thing that `config` needs and does not find.

    Args:
        config: the recipe; None: only the machine is looked at.
        console: of the first rank.
        ranks: the number of ranks to assume; by default those that were started, or as few as the layout needs.
        trying: which parts of a run are tried; None: none. One that fails raises `PreflightError` after the others.

    """
    shown = _Shown(console)
    shown.section("machine", _machine())
    shown.section("computing", _computing(config or RunConfig()))
    shown.section("optional packages", _packages(config or RunConfig()))
    if config is None:
        shown.end()
        return
    world = ranks or _ranks(config)
    known = Known()
    for title, findings in recipe_sections(config, world, known):
        known.missing = shown.section(title, findings) or known.missing
    if trying is not None:
        for title, findings in preflight(
            config,
            known.checked,
            trying,
            ranks=world,
            bytes_per_rank=known.bytes_per_rank,
            hf_config=known.hf_config,
            missing=known.missing,
        ):
            shown.section(title, findings)
    shown.end()


class _Shown:
    """What was printed so far, and what was refused."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.findings: list[Finding] = []
        self.refused: dict[str, tuple[str, MegatronForkError]] = {}
        """By its message, and with the title of the section that it has ended first."""

    def section(self, title: str, findings: Iterable[Finding]) -> str:
        """Print a table on a terminal, lines in a log; returns the title if an error has ended it, else nothing.

        Under a launcher, where ranks go on together or not at all, the error is raised.
        """
        found: list[Finding] = []
        refusal = ""
        try:
            for finding in findings:
                found.append(finding)
                if not self.console.is_terminal:
                    self._line(finding)
        except MegatronForkError as error:
            if error.message not in self.refused:
                self.refused[error.message] = (title, error)
                found.append(refused(title, error))
                if not self.console.is_terminal:
                    self._line(found[-1])
            if distributed.is_launched() or isinstance(error, Interrupted):
                raise
            refusal = self.refused[error.message][0]
        finally:
            self.findings += found
            if self.console.is_terminal and found:
                table = Table(title=title, title_justify="left", show_header=False)
                for finding in found:
                    table.add_row(finding.status, finding.name, finding.found, finding.note)
                self.console.print(table)
        return refusal

    def end(self) -> None:
        """How many findings of each kind there are; raises what was refused first, or if anything else is to be fixed."""
        counts = {status: sum(each.status == status for each in self.findings) for status in ("ok", "note", "fix")}
        wrong = fixes(self.findings)
        status: Status = "fix" if wrong else "ok"
        said = f"{counts['ok']} ok, {counts['note']} to know, {counts['fix']} to fix"
        self._line(Finding("summary", said, status=status))
        if self.refused:
            raise next(iter(self.refused.values()))[1]
        if wrong:
            raise PreflightError(
                f"{len(wrong)} of {len(self.findings)} checks are to be fixed: {', '.join(wrong)}",
                hint="each has a line above that begins with `fix`",
            )

    def _line(self, finding: Finding) -> None:
        note = f"  ({finding.note})" if finding.note else ""
        line = f"{finding.status:<4}  {finding.name}: {finding.found}{note}"
        self.console.print(masked(line), markup=False, soft_wrap=True)


def _ranks(config: RunConfig) -> int:
    """The ranks that were started, or as few as the layout needs."""
    return distributed.world_size() if distributed.is_launched() else planning.replica_ranks(config)


def _machine() -> Iterator[Finding]:
    yield Finding("megatron-fork", __version__)
    yield Finding("Python", platform.python_version())
    for package in ("torch", "megatron-core", "transformers"):
        yield Finding(package, importlib.metadata.version(package))
    cores = len(os.sched_getaffinity(0))
    instructions = {
        "AVX-512": torch.cpu._is_avx512_supported(),
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    present = ", ".join(name for name, here in instructions.items() if here) or "no AVX-512"
    fast = instructions["AVX512-BF16"] or instructions["AMX"]
    yield Finding(
        "CPU",
        f"{cores} cores, {present}",
        "bf16 instructions; the LM head uses fp32" if fast else "no bf16 instructions: fp32 is faster here",
    )
    waiting = "OMP_WAIT_POLICY"
    yield Finding("threads", distributed.choose_threads(), f"{waiting}={os.environ.get(waiting, 'OpenMP default')}")
    yield Finding("memory", size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        yield Finding(f"GPU {index}", f"{device.name}, {size(device.total_memory)}", capability)
    if not torch.cuda.is_available():
        yield Finding("GPU", "none", f"torch is built for {torch.version.cuda or 'CPU only'}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).total
        few = torch.cuda.device_count() > 1 and room < _GIB
        yield Finding("/dev/shm", size(room), "NCCL needs 1 GiB: docker run --shm-size=8g" if few else "")


def _computing(config: RunConfig) -> Iterator[Finding]:
    chosen = models.choose_backend(config.compute, config.policy.dtype)
    yield Finding("layers", chosen.backend, chosen.reason)
    check_kernels(config)
    if chosen.backend == "local":
        attention = models.choose_attention(config.compute, config.policy.dtype)
        elementwise = models.choose_elementwise(config.compute)
        yield Finding("attention", attention.kernel, attention.reason)
        yield Finding("norms, rotations, SwiGLU", elementwise.kernels, elementwise.reason)
    yield _lm_head(config.vocab_parallel)
    yield _logits(config.vocab_parallel)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    place = launch()
    yield Finding(
        "ranks",
        f"{distributed.world_size()}, {backend}",
        f"started by {place.launcher}, rendezvous {place.address or 'no'}:{place.port}" if place else "no launcher",
    )


def _lm_head(config: vocab_parallel.VocabParallelConfig) -> Finding:
    """Which kernels compute the LM head; they are tried on two equal logits, whose entropy is ln 2."""
    on_gpu = torch.cuda.is_available()
    has_triton = importlib.util.find_spec("triton") is not None
    device = distributed.device()
    targets = torch.zeros(1, dtype=torch.long, device=device)
    entropy = vocab_parallel.token_statistics(torch.zeros(1, 2, device=device), targets, kernels=config.kernels).entropy
    if not math.isclose(float(entropy), math.log(2.0), rel_tol=1e-6):
        raise ConfigError(
            f"the LM-head kernels compute an entropy of {float(entropy)} for two equal logits, not {math.log(2.0)}",
            hint="set vocab_parallel.kernels=torch",
        )
    if config.kernels != "auto":
        return Finding("LM-head kernels", config.kernels, f"vocab_parallel.kernels={config.kernels}; tried")
    if on_gpu and has_triton:
        return Finding("LM-head kernels", "triton", "a GPU and Triton are here; tried")
    return Finding("LM-head kernels", "torch", f"{'Triton is not installed' if on_gpu else 'no GPU is visible'}; tried")


def _logits(config: vocab_parallel.VocabParallelConfig) -> Finding:
    """How many logits the LM head makes at a time: set, or chosen for what is free on this device now."""
    device = distributed.device()
    taken, most = vocab_parallel.logits_bytes(config, device, None), config.chunk_bytes(device.type)
    reason = "by default" if taken == most else "a quarter of what is free"
    return Finding(
        "LM-head logits", f"{taken >> 20} MiB at a time", "vocab_parallel.chunk_mib" if config.chunk_mib else reason
    )


def _packages(config: RunConfig) -> Iterator[Finding]:
    """What is installed; a package that a setting of the recipe needs is said to be needed, and is to be fixed if missing."""
    for each in _OPTIONAL:
        needed = each.needed_for(config)
        note = f"{each.gain}; needed for {needed}" if needed and needed != each.gain else each.gain
        if importlib.util.find_spec(each.module) is None:
            status: Status = "fix" if needed else "ok"
            yield Finding(each.package, "not installed", note + f": pip install {each.package}" * bool(needed), status)
            continue
        try:
            yield Finding(each.package, importlib.metadata.version(each.package), note)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(each.package, "installed", note)
