"""What a run and its responses look like: the report of a run, and the entropy patterns of traces."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.analysis.counting import PAPER_ENTROPY
    from megatron_fork.analysis.intervention import (
        PAPER_TEMPERATURES,
        Cell,
        CellResult,
        Intervention,
        cell_result,
        cells_of,
        intervention_record,
        save_intervention,
    )
    from megatron_fork.analysis.json_lines import AnalysisError
    from megatron_fork.analysis.lenses.agreement import Agreement, agreement, jaccard, spearman, top_share
    from megatron_fork.analysis.lenses.anchors import SMOOTHING, divergence, resampling_importance, sentence_starts
    from megatron_fork.analysis.lenses.budget import TokenBudget
    from megatron_fork.analysis.lenses.dependence import (
        MutualInformation,
        centred,
        gaussian_kernel,
        hsic,
        normalised_cross_covariance,
        normalised_hsic,
        over_responses,
        peaks,
    )
    from megatron_fork.analysis.lenses.pruning import Objective, greedy_pruning, tokens_to_read
    from megatron_fork.analysis.lenses.reader import ModelReader, Reading
    from megatron_fork.analysis.lenses.resampling import Resampler
    from megatron_fork.analysis.lenses.responses import AnswerForm, LensResponse, read_responses
    from megatron_fork.analysis.lenses.results import Lenses, lenses_record, save_lenses
    from megatron_fork.analysis.lenses.scoring import Lens, LensScorer
    from megatron_fork.analysis.lenses.variance import cross_rollout_deviation
    from megatron_fork.analysis.metrics import StepMetrics
    from megatron_fork.analysis.outcome import Outcome, read_outcome
    from megatron_fork.analysis.page.building import write_page
    from megatron_fork.analysis.patterns.entropy import EntropyPattern, entropy_pattern
    from megatron_fork.analysis.patterns.evolution import Evolution, EvolutionSums, evolution_record
    from megatron_fork.analysis.patterns.evolution_figures import save_evolution
    from megatron_fork.analysis.patterns.masks import MaskComparison, compared, comparison_record
    from megatron_fork.analysis.patterns.results import entropy_record, save_entropy
    from megatron_fork.analysis.publication import PlottedCurve, save_curves
    from megatron_fork.analysis.report import write_report
    from megatron_fork.analysis.saving import json_text, save_record
    from megatron_fork.analysis.traces import Trace, mixture
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "SMOOTHING",
    "divergence",
    "resampling_importance",
    "sentence_starts",
    "Agreement",
    "agreement",
    "jaccard",
    "spearman",
    "top_share",
    "TokenBudget",
    "MutualInformation",
    "centred",
    "gaussian_kernel",
    "hsic",
    "normalised_cross_covariance",
    "normalised_hsic",
    "over_responses",
    "peaks",
    "Objective",
    "greedy_pruning",
    "tokens_to_read",
    "ModelReader",
    "Reading",
    "Resampler",
    "AnswerForm",
    "LensResponse",
    "read_responses",
    "Lenses",
    "lenses_record",
    "save_lenses",
    "Lens",
    "LensScorer",
    "cross_rollout_deviation",
    "PAPER_TEMPERATURES",
    "Cell",
    "CellResult",
    "Intervention",
    "cell_result",
    "cells_of",
    "intervention_record",
    "save_intervention",
    "PAPER_ENTROPY",
    "AnalysisError",
    "EntropyPattern",
    "Evolution",
    "EvolutionSums",
    "MaskComparison",
    "Outcome",
    "PlottedCurve",
    "StepMetrics",
    "Trace",
    "compared",
    "comparison_record",
    "entropy_pattern",
    "entropy_record",
    "evolution_record",
    "json_text",
    "save_evolution",
    "save_record",
    "mixture",
    "read_outcome",
    "save_curves",
    "save_entropy",
    "write_page",
    "write_report",
]
