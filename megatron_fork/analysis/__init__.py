"""The self-contained HTML report of a training run."""

from megatron_fork.analysis.json_lines import AnalysisError as AnalysisError
from megatron_fork.analysis.report import write_report as write_report
