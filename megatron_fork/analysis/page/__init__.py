"""The report page: one self-contained HTML file over the traces of runs and evaluations, and its figures."""

from megatron_fork.analysis.page.building import write_page as write_page
