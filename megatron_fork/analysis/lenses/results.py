"""What the lenses found: agreement of each pair, the tokens that each puts first, costs; as JSON, JSON lines and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fork.analysis.lenses.agreement import Agreement, agreement, ranks, why_not
from megatron_fork.analysis.lenses.dependence import peaks
from megatron_fork.analysis.lenses.responses import LensResponse
from megatron_fork.analysis.lenses.scoring import Lens, ReferenceTokens
from megatron_fork.analysis.saving import save_figures, save_record, writing
from megatron_fork.files import replace_file

Pair = tuple[str, str]
_REFERENCES = "entropy of reference tokens"


@dataclass(frozen=True)
class Lenses:
    """Everything that was scored."""

    responses: Sequence[LensResponse]
    lenses: Sequence[Lens]
    references: Sequence[ReferenceTokens]
    """Of the variance lens."""
    sentences: Sequence[Sequence[tuple[str, float]]]
    """Of each response, in order: sentence and resampling importance in nats; empty where it was not resampled."""
    share: float
    """Top share whose overlap is counted."""
    seed: int
    about: Mapping[str, Any]

    def agreements(self) -> dict[Pair, Agreement]:
        """Of every pair of lenses that have tokens of responses in common, and of variance and entropy on reference tokens."""
        values = {lens.name: lens.values for lens in self.lenses}
        found = {}
        for first, second in combinations(values, 2):
            if pair := agreement(values[first], values[second], share=self.share, seed=self.seed):
                found[first, second] = pair
        deviation, entropy = [each.deviation for each in self.references], [each.entropy for each in self.references]
        if pair := agreement(deviation, entropy, share=self.share, seed=self.seed):
            found["variance", _REFERENCES] = pair
        return found

    def not_compared(self) -> dict[Pair, str]:
        """Why pairs of lenses have no agreement: no response has tokens enough, or all of these are equal for one of both."""
        compared, found = self.agreements(), {}
        for (first, one), (second, other) in combinations([(lens.name, lens.values) for lens in self.lenses], 2):
            if (first, second) not in compared and "variance" not in (first, second):
                found[first, second] = why_not(one, other, first, second)
        if any(lens.name == "variance" for lens in self.lenses) and ("variance", _REFERENCES) not in compared:
            deviation, entropy = (
                [each.deviation for each in self.references],
                [each.entropy for each in self.references],
            )
            why = why_not(deviation, entropy, "variance", _REFERENCES)
            found["variance", _REFERENCES] = why if self.references else "no prompt has two responses that were read"
        return found

    def first_tokens(self, name: str, *, least: int, count: int) -> list[tuple[str, int, float]]:
        """(text, occurrences, mean place in the response's order from 0 to 1) of the tokens that a lens puts first."""
        places: dict[str, list[float]] = {}
        (lens,) = (each for each in self.lenses if each.name == name)
        for response, values in zip(self.responses, lens.values, strict=True):
            known = np.flatnonzero(np.isfinite(values))
            if len(known) > 1:
                for token, place in zip(known, (ranks(values[known]) - 1) / (len(known) - 1), strict=True):
                    places.setdefault(response.texts[int(token)], []).append(float(place))
        found = [(text, len(each), float(np.mean(each))) for text, each in places.items() if len(each) >= least]
        return sorted(found, key=lambda each: (-each[2], each[0]))[:count]

    def reference_tokens(self, *, count: int) -> list[tuple[str, int, float, float]]:
        """(text, occurrences, mean deviation, mean entropy in nats) of the reference tokens that vary most over rollouts."""
        found: dict[str, list[tuple[float, float]]] = {}
        for each in self.references:
            for text, deviation, entropy in zip(each.tokens, each.deviation, each.entropy, strict=True):
                found.setdefault(text, []).append((float(deviation), float(entropy)))
        means = [(text, len(pairs), *np.mean(pairs, axis=0).tolist()) for text, pairs in found.items()]
        return sorted(means, key=lambda each: (-each[2], each[0]))[:count]

    def peak_counts(self) -> dict[str, int] | None:
        """Of the mutual information: how many tokens have a value, and how many of them are peaks; None without it."""
        by_name = {lens.name: lens.values for lens in self.lenses}
        if "mi" not in by_name:
            return None
        marked = [peaks(values) for values in by_name["mi"]]
        tokens = sum(int(np.isfinite(values).sum()) for values in by_name["mi"])
        return {"tokens": tokens, "peaks": sum(int(each.sum()) for each in marked)}


def lenses_record(found: Lenses, *, least: int = 5, count: int = 15) -> dict[str, Any]:
    """The lenses as JSON."""
    return {
        **found.about,
        "responses": len(found.responses),
        "share": found.share,
        "lenses": {
            lens.name: {
                "read_tokens": lens.read,
                "drawn_tokens": lens.drawn,
                "left_out": lens.left_out,
                "first_tokens": [
                    {"text": text, "count": number, "place": place}
                    for text, number, place in found.first_tokens(lens.name, least=least, count=count)
                ],
            }
            for lens in found.lenses
        },
        "agreement": [
            {"first": first, "second": second, **asdict(pair)} for (first, second), pair in found.agreements().items()
        ],
        "not_compared": [
            {"first": first, "second": second, "why": why} for (first, second), why in found.not_compared().items()
        ],
        "mi_peaks": found.peak_counts(),
        "reference_tokens": [
            {"text": text, "count": number, "deviation": deviation, "entropy": entropy}
            for text, number, deviation, entropy in found.reference_tokens(count=count)
        ],
    }


def save_lenses(folder: Path, found: Lenses) -> list[Path]:
    """Write lenses.json, lens_values.jsonl (all values of all tokens) and the figure; raises `RunFolderError`."""
    from megatron_fork.analysis.lenses.lens_figures import figures_of

    values = folder / "lens_values.jsonl"
    record = save_record(folder / "lenses.json", lenses_record(found))
    with writing(values):
        replace_file(values, "".join(json.dumps(each) + "\n" for each in _rows(found)))
    return [record, values, *save_figures(folder, figures_of(found))]


def _rows(found: Lenses) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": response.prompt_id,
            "sample": response.sample,
            "reward": response.reward,
            "tokens": list(response.texts),
            "reasoning_tokens": response.reasoning,
            **{
                lens.name: [value if np.isfinite(value) else None for value in lens.values[place].tolist()]
                for lens in found.lenses
                if lens.name != "variance"
            },
            **({"sentences": found.sentences[place]} if found.sentences[place] else {}),
        }
        for place, response in enumerate(found.responses)
    ]
    return rows + [
        {
            "prompt_id": each.prompt_id,
            "rollouts": each.rollouts,
            "reference_tokens": list(each.tokens),
            "variance": each.deviation.tolist(),
            "entropy": each.entropy.tolist(),
        }
        for each in found.references
    ]
