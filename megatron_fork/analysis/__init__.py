"""The self-contained HTML report of runs and traces, and what it is made of."""

from megatron_fork.analysis.json_lines import AnalysisError as AnalysisError
from megatron_fork.analysis.metrics import StepMetrics as StepMetrics
from megatron_fork.analysis.outcome import Outcome as Outcome
from megatron_fork.analysis.outcome import read_outcome as read_outcome
from megatron_fork.analysis.page import PlottedCurve as PlottedCurve
from megatron_fork.analysis.page import save_curves as save_curves
from megatron_fork.analysis.page import write_page as write_page
from megatron_fork.analysis.report import write_report as write_report
from megatron_fork.analysis.traces import Trace as Trace
from megatron_fork.analysis.traces import mixture as mixture
