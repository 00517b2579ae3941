"""Published prompt sets: columns, answer form and number of rows of their files. docs/data.md says where each comes from.

A preset is a part of a recipe; fields of the recipe itself take precedence.
"""

from __future__ import annotations

from typing import Any

DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'


def _preset(prompt: str, answer: str, rows: int, *, split: str | None = None, **fields: Any) -> dict[str, Any]:
    columns = {"prompt": prompt, "answer": answer, **fields.pop("columns", {})}
    return {"data": {"columns": columns, "rows": rows, "split": split, "template": "paper", **fields}}


PRESETS: dict[str, dict[str, Any]] = {
    "dapo_math_17k": _preset(
        "prompt.0.content",
        "reward_model.ground_truth",
        1_791_700,  # each of the 17,398 problems about a hundred times
        duplicates="drop",
        prompt_prefix=DAPO_PREFIX,
        prompt_suffix=DAPO_SUFFIX,
    ),
    # Seven subjects, each a subset; the last of several boxes is the answer, as in all evaluations.
    "math": _preset("problem", "solution", 7_500, split="train", answer_form="boxed", subset="*", boxes="last"),
    "math_test": _preset("problem", "solution", 5_000, split="test", answer_form="boxed", subset="*", boxes="last"),
    "gsm8k": _preset("question", "answer", 7_473, split="train", answer_form="hashes"),
    "gsm8k_test": _preset("question", "answer", 1_319, split="test", answer_form="hashes"),
    "aime_2024": _preset("problem", "answer", 30, columns={"id": "id"}),
    "aime_2025": _preset("problem", "answer", 30, columns={"id": "id"}),
    "amc_2023": _preset("question", "answer", 40, columns={"id": "id"}),
    "math_500": _preset("problem", "answer", 500, columns={"id": "unique_id"}),
    "minerva_math": _preset("question", "answer", 272),
    "olympiad_bench": _preset("question", "final_answer", 674, columns={"id": "id"}, answer_lists="parts"),
}
