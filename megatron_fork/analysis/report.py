"""The report of a run: the page over its metrics and traces, in its folder."""

from __future__ import annotations

from pathlib import Path

from megatron_fork.analysis.page import write_page
from megatron_fork.analysis.run_record import check_run

REPORT = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    The same folder gives the same bytes. Raises `AnalysisError` or `TraceError` if the folder cannot be read as a run,
    `RunFolderError` if the report cannot be written.
    """
    check_run(run_folder)
    return write_page([run_folder], run_folder / REPORT)
