"""A run folder, read and checked; its traces are read apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_fork.analysis.json_lines import AnalysisError, JsonLine, parse_object, read_bytes, shortened
from megatron_fork.analysis.metrics import Metrics, read_metrics
from megatron_fork.recipe import plain, read_yaml


@dataclass(frozen=True)
class RunRecord:
    """The files of a run.

    `summary` is empty until the run writes it. `config` is the mapping of `resolved.yaml` and `config_text` its text;
    both are empty if the file is missing.
    """

    name: str
    metrics: Metrics
    summary: JsonLine
    config: dict[str, Any]
    config_text: str

    @property
    def finished(self) -> bool:
        """Whether the run has written the score of its final policy."""
        return self.summary.number("pass_rate_after") is not None

    def configured(self, *path: str) -> str | int | float | bool | None:
        """Return the scalar at a path of the resolved config, None if there is none."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, str | int | float | bool) else None


def check_run(folder: Path) -> None:
    """Raise AnalysisError if there is no `metrics.jsonl`."""
    if not (folder / "metrics.jsonl").is_file():
        raise AnalysisError(
            f"{folder} is not a run folder: it has no metrics.jsonl",
            hint="give the folder that `megatron-fork train` wrote",
        )


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raise AnalysisError if it is none, or if a file cannot be read as what it claims to be.
    """
    check_run(folder)
    config, config_text = read_config(folder / "resolved.yaml")
    summary = folder / "summary.json"
    return RunRecord(
        name=folder.resolve().name,
        metrics=read_metrics(folder / "metrics.jsonl"),
        summary=parse_object(read_bytes(summary), summary.name) if summary.exists() else JsonLine(summary.name, {}),
        config=config,
        config_text=config_text,
    )


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    if not path.exists():
        return {}, ""
    text = read_bytes(path).decode(errors="replace")
    try:
        config = plain(read_yaml(text))
        if isinstance(config, dict):
            OmegaConf.create(config)  # refuses invalid references
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise AnalysisError(f"{path.name}{line}: not YAML ({shortened(str(error))})") from error
    if config is None:  # a file with only comments
        config = {}
    if not isinstance(config, dict):
        raise AnalysisError(f"{path.name}: not a YAML mapping")
    return config, text
