"""The self-contained HTML report of a training run."""

from megatron_fork.analysis.json_lines import AnalysisError as AnalysisError
from megatron_fork.analysis.metrics import StepMetrics as StepMetrics
from megatron_fork.analysis.outcome import Outcome as Outcome
from megatron_fork.analysis.outcome import read_outcome as read_outcome
from megatron_fork.analysis.report import write_report as write_report
from megatron_fork.analysis.traces import Trace as Trace
from megatron_fork.analysis.traces import mixture as mixture
