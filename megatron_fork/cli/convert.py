"""`megatron-fork convert ...`: checkpoints between Hugging Face and Megatron, and a check that both are the same model."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import CheckpointError, ConfigError, Interrupted, Preempted, StopRequested, size
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork.conversion import Converted

app = typer.Typer(
    no_args_is_help=True, help="Checkpoints between Hugging Face and Megatron, without ranks and without a GPU."
)

HfDir = Annotated[
    Path,
    typer.Argument(
        parser=path_at_home,
        metavar="HF_DIR",
        help="Hugging Face folder: config.json and *.safetensors",
        show_default=False,
    ),
]
MegatronDir = Annotated[
    Path,
    typer.Argument(
        parser=path_at_home,
        metavar="MEGATRON_DIR",
        help="torch_dist folder, Megatron-LM folder, run folder or checkpoint",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Argument(parser=path_at_home, metavar="OUT", help="folder to write; must not exist", show_default=False)
]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; by default unchanged", show_default=False)]
Workers = Annotated[int, typer.Option(help="parameters converted at the same time; more need more memory", min=1)]
Restart = Annotated[
    bool, typer.Option("--restart", help="begin anew, where an interrupted conversion would go on from OUT.partial")
]


@app.command("to-megatron")
def to_megatron(
    hf_dir: HfDir, out: Out, dtype: Dtype = None, workers: Workers = 2, restart: Restart = False, debug: Debug = False
) -> None:
    """Write a torch_dist checkpoint that loads under every layout; one that was interrupted goes on."""

    def work() -> None:
        from megatron_fork.conversion import to_megatron

        with _progress("to Megatron") as progress, _can_be_taken_up(out) as stop_point:
            done = to_megatron(
                hf_dir,
                out,
                dtype=cast(Any, dtype),
                workers=workers,
                restart=restart,
                progress=progress,
                stop_point=stop_point,
            )
        _tell(done)

    _run(work, debug, dtype)


@app.command("to-hf")
def to_hf(
    megatron_dir: MegatronDir,
    out: Out,
    hf_files: Annotated[
        Path | None,
        typer.Option(
            parser=path_at_home,
            metavar="PATH",
            help="folder with config.json and tokenizer, if the checkpoint has none",
        ),
    ] = None,
    dtype: Dtype = None,
    shard_gb: Annotated[float, typer.Option(help="size of a safetensors file", min=0.001, max=1e6)] = 5.0,
    workers: Workers = 2,
    restart: Restart = False,
    debug: Debug = False,
) -> None:
    """Write a Hugging Face folder that transformers, vLLM and SGLang load; a conversion that was interrupted goes on."""

    def work() -> None:
        from megatron_fork.conversion import to_hf

        with _progress("to Hugging Face") as progress, _can_be_taken_up(out) as stop_point:
            done = to_hf(
                megatron_dir,
                out,
                model_files=hf_files,
                dtype=cast(Any, dtype),
                shard_bytes=int(shard_gb * 1e9),
                workers=workers,
                restart=restart,
                progress=progress,
                stop_point=stop_point,
            )
        _tell(done)

    _run(work, debug, dtype)


@app.command("verify")
def verify(
    hf_dir: HfDir,
    megatron_dir: MegatronDir,
    prompt: Annotated[list[str] | None, typer.Option(help="text to compare logits on; may be repeated")] = None,
    logits: Annotated[bool, typer.Option(help="run both models, one after the other, in float32")] = True,
    workers: Workers = 2,
    debug: Debug = False,
) -> None:
    """Compare names, every bit, config and logits; exit code 1 if they are not the same model."""

    def work() -> None:
        from megatron_fork.conversion import PROMPTS, verify

        found = verify(hf_dir, megatron_dir, prompts=tuple(prompt or PROMPTS), logits=logits, workers=workers)
        typer.echo(f"tensors  {found.tensors:,}, same names in both, compared bit for bit as {found.compared_as}")
        for name in found.different:
            typer.echo(f"  differs: {name}")
        typer.echo("config   no field differs" if not found.config else "config")
        for difference in found.config:
            typer.echo(f"  {difference.weight}: {difference}")
        if found.logits is not None:
            typer.echo(f"logits   largest difference {found.logits:.1e}, relative to their size")
        if not found.holds:
            raise CheckpointError(
                f"{hf_dir} and {megatron_dir} are not the same model", hint="the differences are listed above"
            )
        typer.echo("the same model")

    _run(work, debug)


def _run(work: Callable[[], None], debug: bool, dtype: str | None = None) -> None:
    # Large pages for torch's tensors: each is new memory, whose first use in small pages costs as much as reading it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    def quietly() -> None:
        if dtype not in (None, "fp32", "bf16", "fp16"):
            raise ConfigError(f"--dtype {dtype} is not known", hint="fp32, bf16 or fp16")
        from megatron_fork.run import quiet_libraries

        quiet_libraries()
        from megatron_fork import distributed

        work()
        distributed.finalize()

    guarded(quietly, debug=debug)


def _tell(done: Converted) -> None:
    before = f", of which {done.kept:,} were there from an interrupted conversion" if done.kept else ""
    typer.echo(f"{done.folder}: {done.tensors:,} tensors, {size(done.bytes)}{before}")


@contextmanager
def _can_be_taken_up(out: Path) -> Iterator[Callable[[], None]]:
    """A stop point for the conversion to `out`: the first signal ends it between two parameters."""
    from megatron_fork.conversion import partial_of
    from megatron_fork.run import StopRequest

    with StopRequest() as request:
        try:
            yield request.local_stop_point
        except StopRequested:
            kind = Interrupted if request.received == signal.SIGINT else Preempted
            if not partial_of(out).exists():
                raise kind("the conversion was interrupted before a tensor was written") from None
            raise kind(
                f"the conversion was interrupted; what it wrote is in {partial_of(out)}",
                hint="the same command goes on from there; with --restart it begins anew",
            ) from None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing in a log: at its end a conversion prints what it wrote."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
