"""What responses to prompts say about a model: drawing them, estimators with intervals, and comparisons."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.evaluation.comparing import Finished, compare_evaluations, comparison_markdown, read_evaluation
    from megatron_fork.evaluation.config import EvaluationConfig, PromptSet, held_out_set, prompt_sets
    from megatron_fork.evaluation.drawing import Drawing
    from megatron_fork.evaluation.estimators import (
        LEVEL,
        RESAMPLES,
        bootstrap_interval,
        bootstrap_intervals,
        check_k,
        majority_at_k,
        pass_at_k,
        standard_error,
    )
    from megatron_fork.evaluation.folder import RESULTS, EvaluationFolder, claim_folder, differences, read_json
    from megatron_fork.evaluation.pass_rate import Evaluation, SetEvaluation, average_at_k, evaluate, evaluate_set
    from megatron_fork.evaluation.problems import Problem, Wanted, digest, missing, problems_of
    from megatron_fork.evaluation.results import COLUMNS, Outcomes, gather, interval_in_words, powers, results_of_set
    from megatron_fork.evaluation.tables import estimate_rows, markdown
    from megatron_fork.evaluation.votes import Ballot, ballots
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "EvaluationConfig"})

__all__ = [
    "COLUMNS",
    "LEVEL",
    "RESAMPLES",
    "RESULTS",
    "Ballot",
    "Drawing",
    "Evaluation",
    "EvaluationConfig",
    "EvaluationFolder",
    "Finished",
    "Outcomes",
    "Problem",
    "PromptSet",
    "SetEvaluation",
    "Wanted",
    "average_at_k",
    "ballots",
    "bootstrap_interval",
    "bootstrap_intervals",
    "check_k",
    "claim_folder",
    "compare_evaluations",
    "comparison_markdown",
    "differences",
    "digest",
    "estimate_rows",
    "evaluate",
    "evaluate_set",
    "gather",
    "held_out_set",
    "interval_in_words",
    "majority_at_k",
    "markdown",
    "missing",
    "pass_at_k",
    "powers",
    "problems_of",
    "prompt_sets",
    "read_evaluation",
    "read_json",
    "results_of_set",
    "standard_error",
]
