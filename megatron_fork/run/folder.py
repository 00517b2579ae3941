"""What a run leaves behind: resolved.yaml, metrics.jsonl, alerts.jsonl, traces/, checkpoints/, summary.json, report.html.

Rank 0 writes; on the other ranks every method does nothing. A full or read-only disk is one clear line.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from megatron_fork.analysis import StepMetrics
from megatron_fork.config import AlertsConfig
from megatron_fork.errors import RunFolderError, TraceError, masked, way_out
from megatron_fork.files import replace_file
from megatron_fork.run.alerts import Alert, Alerts, active_causes
from megatron_fork.run.metric_names import PeerNames
from megatron_fork.run.prometheus import MetricsServer
from megatron_fork.run.tensorboard import TensorBoard
from megatron_fork.traces import Origin, TracedResponse, write_traces


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing to `path` into a `RunFolderError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} cannot be written: its folder was removed while the run wrote to it",
            hint="do not touch a run's folder until the run has ended; start the run again",
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}", hint=way_out(error, elsewhere="run.folder")
        ) from error


@contextmanager
def _cause_of_trace_errors() -> Iterator[None]:
    """Raise what the system refused, where that is why traces could not be written."""
    try:
        yield
    except TraceError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a reader sees either the old text or the new."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


class RunFolder:
    """The folder of one run."""

    def __init__(
        self,
        path: Path,
        *,
        writes: bool,
        wandb_project: str | None = None,
        resolved: str = "",
        lock: TextIO | None = None,
        peer_names: PeerNames | None = None,
        tensorboard: bool = False,
        prometheus: tuple[str, int] | None = None,
        alerts: AlertsConfig | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`writes`: whether this rank writes; `lock` stays open until `close`, so that no other process uses the folder.

        Metrics are also written for TensorBoard, and shown at the address `prometheus`; `alerts` says what is told with `say`.
        """
        self.path = path
        self.writes = writes
        self._lock, self._resolved, self._wandb_project = lock, resolved, wandb_project
        self._peer_names = peer_names or PeerNames()
        self._wandb = None
        self._say = say
        self._tensorboard = TensorBoard(path / "tensorboard") if tensorboard and writes else None
        self._prometheus_at = prometheus
        self._server: MetricsServer | None = None
        self._alerts_config = alerts
        self._alerts: Alerts | None = None
        if writes:
            with writing_to(path):
                path.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Write resolved.yaml and start Weights & Biases; not earlier, so that a refused start leaves the folder unchanged."""
        if not self.writes:
            return
        write_atomically(self.path / "resolved.yaml", self._resolved)
        if self._wandb_project:
            self._wandb = _start_wandb(self._wandb_project, self.path, self._resolved, self._peer_names.all())
        if self._prometheus_at is not None:
            self._server = MetricsServer(*self._prometheus_at)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.writes:
            return
        alerts = self._alerts_of(stage, step, values)
        values = {**values, **alerts}
        aliases = self._peer_names.of(stage, values)
        self._append(self.path / "metrics.jsonl", StepMetrics(stage, step, {**values, **aliases}).fields())
        if self._wandb is not None:
            logged = {f"{stage}/{name}": value for name, value in values.items()} | aliases
            finite = {name: value for name, value in logged.items() if math.isfinite(value)}
            self._wandb.log({**finite, f"{stage}/step": step})
        if self._tensorboard is not None:
            self._tensorboard.write(stage, step, {**values, **aliases})
        if self._server is not None:
            self._server.latest.update(stage, step, {**values, **aliases})

    def _alerts_of(self, stage: str, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Tell what is new, and which causes for alarm a trainer step has."""
        alerts = self._begun_alerts()
        if alerts is None:
            return {}
        alerts.progress()
        return alerts.look(step, values) if stage == "train" else {}

    def ends_by_gradients(self, step: int, message: str) -> None:
        """Tell that the run ends within a step, since too many of its updates were not finite."""
        if self.writes and (alerts := self._begun_alerts()) is not None:
            alerts.ends(step, message)

    def _begun_alerts(self) -> Alerts | None:
        if self._alerts is None and self._alerts_config is not None:
            # Not before `forget` has removed what a resumed run repeats.
            active = active_causes(self.path / "alerts.jsonl")
            self._alerts = Alerts(self._alerts_config, self._tell, active=active)
        return self._alerts

    def _tell(self, alert: Alert) -> None:
        self._say(
            f"{'ALERT' if alert.is_raised else 'alert cleared'}: {alert.cause}, step {alert.step}: {alert.message}"
        )
        self._append(self.path / "alerts.jsonl", alert.fields())
        if self._wandb is not None and alert.is_raised:
            self._wandb.alert(title=f"{self.path.name}: {alert.cause}", text=f"step {alert.step}: {alert.message}")

    def updates(self, step: int, values: Sequence[Mapping[str, float]]) -> None:
        """Append a line to updates.jsonl for each optimizer step of a trainer step."""
        if self.writes:
            for number, update in enumerate(values):
                self._append(self.path / "updates.jsonl", {"step": step, "update": number, **update})

    def traces(
        self,
        step: int,
        responses: Iterable[TracedResponse],
        origin: Origin,
        *,
        of: Literal["step", "evaluation"] = "step",
    ) -> None:
        """Write the traced responses of a step or of the evaluation after it; no file if there are none.

        Every rank goes through `responses`, which may be collected from all of them.
        """
        remaining = iter(responses)
        first = next(remaining, None)
        if self.writes and first is not None:
            path = self.path / "traces" / f"{of}-{step:06d}.parquet"
            with writing_to(path), _cause_of_trace_errors():
                write_traces(path, itertools.chain([first], remaining), origin)
        for _ in remaining:
            pass

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json: the run has finished."""
        if self.writes:
            write_atomically(self.path / "summary.json", json.dumps(_finite(values), indent=2) + "\n")

    def forget(
        self, *, warm_start_after: int | None = None, after: int | None = None, evaluations_after: int | None = None
    ) -> None:
        """Remove the records that a resumed run will write again; None removes nothing of that stage.

        Args:
            warm_start_after: remove lines of the warm start past this step.
            after: remove lines, updates and traces of training past this step; -1 removes all.
            evaluations_after: remove lines and traces of evaluations past this step; -1 removes all.

        """
        if not self.writes:
            return
        last = {"sft": warm_start_after, "train": after, "evaluation": evaluations_after}
        for stage, kept_to in last.items():
            if kept_to is not None and self._tensorboard is not None:
                self._tensorboard.forget(stage, kept_to)
        for name in ("metrics.jsonl", "updates.jsonl", "alerts.jsonl"):
            file = self.path / name
            if file.is_file():
                kept = [line + "\n" for line in file.read_text(encoding="utf-8").splitlines() if _stands(line, last)]
                write_atomically(file, "".join(kept))
        with writing_to(self.path):
            (self.path / "summary.json").unlink(missing_ok=True)  # it means that the run has finished
            for left in (self.path / "traces").glob(".*.parquet.*"):  # half-written by a process that was killed
                left.unlink()
            for trace in [*(self.path / "traces").glob("*-*.jsonl"), *(self.path / "traces").glob("*-*.parquet")]:
                kept_to = evaluations_after if trace.name.startswith("evaluation-") else after
                if kept_to is not None and not _step_of(trace) <= kept_to:
                    trace.unlink()

    def close(self) -> None:
        for each in (self._alerts, self._server, self._tensorboard):
            if each is not None:
                each.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._lock is not None:
            self._lock.close()

    def _append(self, file: Path, record: dict[str, Any]) -> None:
        with writing_to(file), file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(_finite(record)) + "\n")


def _stands(line: str, last: Mapping[str, int | None]) -> bool:
    """Whether to keep a line: it is whole, and its step is not past its stage's last kept one; updates belong to training."""
    try:
        record = json.loads(line)
        kept = last[record.get("stage", "train")]
        return bool(record["step"] <= (math.inf if kept is None else kept))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _step_of(trace: Path) -> float:
    number = trace.stem.removeprefix("step-").removeprefix("evaluation-")
    return int(number) if number.isdecimal() else math.inf


def _start_wandb(project: str, path: Path, resolved: str, of_training: Sequence[str]) -> Any:
    """Start the Weights & Biases run of a folder or continue the one that it has; `of_training`: further metric names."""
    try:
        import wandb
    except ImportError as error:
        raise RunFolderError(f"run.wandb={project}, but wandb is not installed", hint="pip install wandb") from error
    import yaml

    has_login = bool(os.environ.get("WANDB_API_KEY")) or _netrc_names_wandb()
    if "WANDB_MODE" not in os.environ and not has_login:
        os.environ["WANDB_MODE"] = "offline"
    kept = path / "wandb_run"
    if not kept.is_file():
        write_atomically(kept, secrets.token_hex(4) + "\n")
    typed = sys.argv
    sys.argv = [masked(each) for each in typed]  # wandb stores the command line
    try:
        run = wandb.init(
            project=project,
            name=path.name,
            dir=path,
            config=yaml.safe_load(masked(resolved)),
            id=kept.read_text(encoding="utf-8").strip(),
            resume="allow",
        )
    finally:
        sys.argv = typed
    # Charts use the run's own steps: steps that a resumed run repeats lie over the first ones.
    for stage in ("sft", "train", "evaluation"):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    for name in of_training:
        run.define_metric(name, step_metric="train/step")
    return run


def _netrc_names_wandb() -> bool:
    file = Path.home() / ".netrc"
    return file.is_file() and "api.wandb.ai" in file.read_text(encoding="utf-8", errors="replace")
