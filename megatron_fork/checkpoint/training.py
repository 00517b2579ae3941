"""The state of a run, written by Megatron's distributed writer while training goes on, and read under any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

from megatron_fork.checkpoint import folder, optimizer_state, random_state
from megatron_fork.checkpoint.folder import Saved
from megatron_fork.checkpoint.manifest import Descriptions, step_of
from megatron_fork.checkpoint.requests import one_after_the_other
from megatron_fork.checkpoint.safe_pickle import require_known_classes
from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.versions import own_writer
from megatron_fork.errors import CheckpointError

BESIDE = "step"
_REFUSALS = (OSError, RuntimeError, CheckpointingException, CheckpointException)


class Trained(Protocol):
    """A model and its optimizer, such as the policy and the critic."""

    @property
    def model(self) -> Sequence[MegatronModule]: ...

    @property
    def optimizer(self) -> MegatronOptimizer: ...


@dataclass
class _Writing:
    """A checkpoint that is being written: Megatron's writers first, then checksums, then the rename."""

    aside: Path
    progress: dict[str, Any]
    writers: AsyncCallsQueue
    described: Future[Descriptions] | None = None


class Checkpoints:
    """The checkpoints of one run; every rank makes the same calls.

    `save` returns when the state is copied; `poll`, once a step, completes a checkpoint that has been written; `wait` waits
    for it. Each raises `CheckpointError` if writing fails; the previous checkpoint is then still complete.
    """

    def __init__(
        self,
        root: Path,
        *,
        run: str = "",
        formerly: Sequence[str] = (),
        keep: int = 2,
        keep_every: int = 0,
        write_model_files: Callable[[Path], None] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Checkpoints in `root`.

        Args:
            root: their folder; created by the first `save`.
            run: fingerprint of the run, which no other run's checkpoint has.
            formerly: the run's fingerprints in earlier versions.
            keep: how many of the newest are kept.
            keep_every: checkpoints of every so many steps are kept as well; 0: none.
            write_model_files: writes config.json and tokenizer into a folder, for later conversions of the checkpoint.
            say: prints a line about checkpoints that somebody has removed.

        """
        self.root = root
        self.run, self._formerly = run, formerly
        self.keep = keep
        self.keep_every = keep_every
        self._write_model_files = write_model_files
        self.newest: int | None = None
        """Step of the checkpoint that was last saved or resumed from; None if that was within a step."""
        self._say = say
        self._complete: set[str] = set()
        """On the first rank: names of the checkpoints that must exist."""
        self._writing: _Writing | None = None
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checksums")

    def latest(self) -> Saved | None:
        """The checkpoint to resume from; None if the run has none."""
        saved = folder.latest(self.root, run=self.run, formerly=self._formerly, group=dist.group.WORLD)
        self._complete = {path.name for path in folder.complete_folders(self.root)}
        return saved

    def holds(self, step: int) -> bool:
        """Whether the whole step is saved or being saved, and was not removed; every rank must call it."""
        if self.newest != step or self._writing is not None:
            return self.newest == step
        complete = folder.complete_folders(self.root) if dist.get_rank() == 0 else []
        is_there = dist.get_rank() != 0 or any(step_of(path.name)[0] == step for path in complete)
        if not _everywhere(is_there):
            self.newest = None
        return self.newest == step

    def save(
        self,
        step: int,
        networks: Mapping[str, Trained],
        progress: dict[str, Any],
        *,
        is_whole: bool = True,
        write_beside: Callable[[Path], None] | None = None,
    ) -> None:
        """Start to write `step-NNNNNN`, each network in a folder of its name; completes an earlier checkpoint first.

        Args:
            step: finished trainer steps.
            networks: by name.
            progress: values that JSON can hold, among them `step`.
            is_whole: whether nothing of the next step has been done.
            write_beside: called on every rank to write its own files into the folder `BESIDE` of the checkpoint.

        """
        self.wait()
        with self._refusals_of(step):
            aside = self.root / f"step-{step:06d}.partial"
            if dist.get_rank() == 0:
                folder.begin(self.root, step, [*networks, *([BESIDE] if write_beside else [])])
                if self._write_model_files is not None:
                    self._write_model_files(aside / "hugging_face")
            dist.barrier()
            random_state.save(aside)
            if write_beside is not None:
                write_beside(aside / BESIDE)
            writing = _Writing(aside, progress, AsyncCallsQueue())
            with _one_thread():
                requests = [
                    dist_checkpointing.save(
                        _sharded(network, loading=False), str(aside / name), async_sharded_save=True, **own_writer()
                    )
                    for name, network in networks.items()
                ]
                writing.writers.schedule_async_request(one_after_the_other(requests))
            self._writing = writing
            self.newest = step if is_whole else None

    def poll(self) -> None:
        """Complete what can be completed without waiting, and report checkpoints that were removed."""
        self._advance(blocking=False)
        if dist.get_rank() == 0:
            with self._refusals_of(self.newest or 0):
                self._notice_removed()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete."""
        self._advance(blocking=True)

    def _advance(self, *, blocking: bool) -> None:
        writing = self._writing
        if writing is None:
            return
        with self._refusals_of(writing.progress.get("step", -1)):
            if writing.described is None:
                writing.writers.maybe_finalize_async_calls(blocking=blocking)
                if writing.writers.get_num_unfinalized_calls():
                    return
                writing.described = self._hashing.submit(_flush_share, writing.aside)
            if not blocking and not _everywhere(writing.described.done()):
                return
            shares = collectives.gather_objects(_result(writing.described), dist.group.WORLD)
            self._publish(writing, shares)

    def _notice_removed(self) -> None:
        """Print which checkpoints somebody removed, and point `LATEST` to one that is left."""
        left = {path.name for path in folder.complete_folders(self.root)}
        gone = sorted(self._complete - left)
        self._complete &= left
        if gone or (left and folder.names_nothing(self.root)):
            newest = folder.point_to_newest(self.root)
            what = f"checkpoint {', '.join(gone)}" if gone else "LATEST"
            now = f"would resume from {newest.name}" if newest else "would start over"
            self._say(f"{what} was removed from {self.root} during the run: after a kill before the next save it {now}")

    def _publish(self, writing: _Writing, shares: list[Descriptions | OSError]) -> None:
        self._writing = None
        for share in shares:
            if isinstance(share, OSError):
                raise share
        if dist.get_rank() == 0:
            files = {name: entry for share in shares for name, entry in share.items()}  # type: ignore[union-attr]
            self._notice_removed()
            folder.publish(writing.aside, files, run=self.run, progress=writing.progress)
            folder.keep_only(self.root, newest=self.keep, every=self.keep_every)
            self._complete = {path.name for path in folder.complete_folders(self.root)}
        dist.barrier()

    @contextmanager
    def _refusals_of(self, step: int) -> Iterator[None]:
        try:
            yield
        except _REFUSALS as error:
            self._writing = None
            hint = "free some space and start the same command again: it resumes from the previous checkpoint"
            if not self.root.parent.is_dir():
                hint = f"{self.root.parent} was removed while the run wrote to it; start the run again"
            raise CheckpointError(
                f"checkpoint {self.root / f'step-{step:06d}'} cannot be written: {_reason(error)}", hint=hint
            ) from error


def load_training_state(saved: Saved, networks: Mapping[str, Trained]) -> None:
    """Fill models, optimizers and generators from a checkpoint, under the present layout."""
    for name, network in networks.items():
        if not (saved.folder / name).is_dir():
            raise CheckpointError(
                f"checkpoint {saved.folder} has no {name}", hint="resume with the settings of the run's resolved.yaml"
            )
        require_known_classes(saved.folder / name)
        try:
            state = dist_checkpointing.load(_sharded(network, loading=True), str(saved.folder / name))
        except (CheckpointingException, CheckpointException, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {saved.folder} does not fit this {name}: {_reason(error)}",
                hint="resume with the model and optimizer settings of the run's resolved.yaml",
            ) from error
        for name_of_chunk, chunk in _chunks(network).items():
            empty = {key: torch.empty(0, dtype=torch.uint8) for key in chunk.state_dict() if key.endswith(_OF_NORMS)}
            chunk.load_state_dict({**empty, **state[name_of_chunk]})
        optimizer_state.load_state(network.optimizer, state["optimizer"], state["updates"])
    random_state.load(saved.folder)


# Transformer Engine's norms say that they have no state beside their weights; other layers' norms do not say so.
_OF_NORMS = "layernorm._extra_state"


def _sharded(network: Trained, *, loading: bool) -> dict[str, Any]:
    states = {
        name: {key: part for key, part in chunk.sharded_state_dict().items() if not key.endswith(_OF_NORMS)}
        for name, chunk in _chunks(network).items()
    }
    optimizer = optimizer_state.sharded_state(network.optimizer, states, loading=loading)
    return {**states, "optimizer": optimizer, "updates": optimizer_state.updates_of(network.optimizer)}


def _chunks(network: Trained) -> dict[str, MegatronModule]:
    """A model, or its virtual pipeline stages, under the names that Megatron's optimizer expects."""
    if len(network.model) == 1:
        return {"model": network.model[0]}
    return {f"model{index}": chunk for index, chunk in enumerate(network.model)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread while Megatron's writer forks: the child of a process with OpenMP threads hangs at a parallel region."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _flush_share(aside: Path) -> Descriptions:
    """Flush this rank's part of a folder's files to the disk, and return their sizes and checksums."""
    return folder.flush_and_describe(aside, folder.file_names(aside)[dist.get_rank() :: dist.get_world_size()])


def _result(described: Future[Descriptions]) -> Descriptions | OSError:
    """The thread's result, or the `OSError` that all ranks must raise."""
    try:
        return described.result()
    except OSError as error:
        return error


def _everywhere(done: bool) -> bool:
    waiting = torch.tensor(float(not done), device=device())
    return not collectives.all_reduce_max(waiting, dist.group.WORLD)


def _reason(error: BaseException) -> str:
    """The last line of an error, which says what was wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
