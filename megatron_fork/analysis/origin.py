"""Where a run came from, for the head of the report: what was trained on what, and with what, as far as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from megatron_fork.analysis.run_record import RunRecord
from megatron_fork.analysis.tokens import visible
from megatron_fork.recipe import plain, read_yaml


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return labels with their texts, made visible; what the run folder does not hold is left out."""
    told = provenance(record)
    found = {
        "Model": model_of(record),
        "Data": text_of(record.configured("data", "source")),
        "Verifier": text_of(record.configured("rewards", "kind")),
        "Recipe": text_of(record.configured("run", "name")),
        "Engine": engine_of(record),
        "Layout": text_of(record.summary.fields.get("layout")) or text_of(told.get("layout")),
        "Date": text_of(told.get("written")).replace("T", " "),
        "Machine": ", ".join(filter(None, [text_of(told.get("host")), text_of(told.get("device"))])),
        "Versions": versions_of(told.get("versions")),
        "Commit": text_of(told.get("commit")),
        "Command": text_of(told.get("command")),
    }
    return [(label, visible(text)) for label, text in found.items() if text]


def model_of(record: RunRecord) -> str:
    path, family = record.configured("model", "path"), record.configured("model", "hf_config", "model_type")
    return text_of(path) or (f"{family}, weights drawn at random" if family else "")


def engine_of(record: RunRecord) -> str:
    engine, rollout = text_of(record.configured("rollout", "engine")), record.config.get("rollout")
    servers = rollout.get("servers") if isinstance(rollout, dict) else None
    if not engine or not isinstance(servers, list) or not servers:
        return engine
    return f"{engine}, {len(servers)} server{'' if len(servers) == 1 else 's'}"


def versions_of(versions: object) -> str:
    if not isinstance(versions, Mapping):
        return ""
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def text_of(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def provenance(record: RunRecord) -> Mapping[str, Any]:
    """Return what the summary says of it; before there is one, the comments above the resolved config do."""
    told = record.summary.fields.get("provenance")
    if isinstance(told, Mapping):
        return told
    lines = record.config_text.splitlines()
    comments = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    try:
        head = plain(read_yaml("\n".join(comments)))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # comments of a person's
        return {}
    found = head.get("provenance") if isinstance(head, dict) else None
    return found if isinstance(found, dict) else {}
