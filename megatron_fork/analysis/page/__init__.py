"""The report page: one self-contained HTML file over the traces of runs and evaluations, and its figures for publication."""

from megatron_fork.analysis.page.building import write_page as write_page
from megatron_fork.analysis.publication import PlottedCurve as PlottedCurve
from megatron_fork.analysis.publication import save_curves as save_curves
