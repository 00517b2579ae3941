"""What a run folder holds: settings that differ from the defaults, checkpoints and whether they are whole, the last metrics.

python tools/inspect_run.py runs/quickstart-20260101-120000
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_fork import checkpoint
from megatron_fork.config import RunConfig, differences
from megatron_fork.errors import MegatronForkError


def report(folder: Path) -> bool:
    """Print what is known of a run; False when its latest checkpoint is damaged."""
    resolved = folder / "resolved.yaml"
    if not resolved.is_file():
        print(f"error: {folder} has no resolved.yaml: it is not a run folder", file=sys.stderr)
        return False
    print("set by the recipe:", ", ".join(differences(resolved.read_text(), RunConfig())))
    summary = folder / "summary.json"
    print("summary:", json.loads(summary.read_text()) if summary.is_file() else "the run has not finished")
    for each in sorted((folder / "checkpoints").glob("step-*")):
        print("checkpoint:", each.name)
    try:
        saved = checkpoint.latest(folder / "checkpoints")
    except MegatronForkError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return False
    print("latest:", f"{saved.folder.name}, every file as in its manifest, {saved.progress}" if saved else "none")
    for reason in saved.refused if saved else ():
        print("not used:", reason)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sys.exit(0 if report(parser.parse_args().folder) else 1)


if __name__ == "__main__":
    main()
