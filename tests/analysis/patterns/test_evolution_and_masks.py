"""Overlaps, changes by percentile and differences of two selections are those of sets of tokens counted one by one."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.analysis import (
    Evolution,
    EvolutionSums,
    compared,
    comparison_record,
    evolution_record,
    json_text,
    save_evolution,
)
from megatron_fork.analysis.patterns.evolution import bins_of
from megatron_fork.run import selected_tokens
from megatron_fork.selection import SelectionConfig


def top_fifth(entropy_t: np.ndarray) -> np.ndarray:
    return entropy_t >= np.sort(entropy_t)[-(len(entropy_t) // 5)]


def test_stages_against_sets(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    base, later, final = (generator.gamma(0.5, 1, 400).astype(np.float32) for _ in range(3))
    sums = EvolutionSums(base, final, top_fifth, 0.2)
    stage = sums.stage("later", later)
    order = np.argsort(-base)
    sets = [set(np.argsort(-each)[:80].tolist()) for each in (base, later, final)]
    assert stage.overlap_base == len(sets[0] & sets[1]) / 80 and stage.overlap_final == len(sets[2] & sets[1]) / 80
    for number in range(20):
        tokens = order[::-1][20 * number : 20 * number + 20]
        assert stage.change[number] == pytest.approx(
            np.mean([float(later[t]) - float(base[t]) for t in tokens]), abs=1e-6
        )
    same = sums.stage("base", base)
    assert same.overlap_base == 1.0 and same.change == [0.0] * 20
    assert stage.percentiles[80.0] == pytest.approx(np.percentile(later.astype(float), 80))
    found = Evolution([same, stage, sums.stage("final", final)], 400, 0.2)
    written = save_evolution(tmp_path, found)
    assert json.loads((tmp_path / "evolution.json").read_text()) == json.loads(json_text(evolution_record(found)))
    assert {path.name for path in written if path.suffix == ".svg"} == {
        "overlap.svg",
        "entropy_change.svg",
        "percentiles.svg",
    }


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=90))
def test_bins_are_even_whatever_the_ties(values: list[float]) -> None:
    bins = bins_of(np.array(values))
    counts = np.bincount(bins, minlength=20)
    assert counts.max() - counts.min() <= 1 and len(counts) == 20
    assert all(values[a] <= values[b] for a in range(len(values)) for b in range(len(values)) if bins[a] < bins[b])


def selected_one_by_one(entropies: list[float], lengths: list[int], ratio: Fraction, scope: str, rule: str) -> set[int]:
    """The paper's choice, from its words: the top `ratio` of all tokens or of each response, ties kept or the first taken."""
    starts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    parts = (
        [range(starts[n], starts[n + 1]) for n in range(len(lengths))] if scope == "sequence" else [range(starts[-1])]
    )
    found: set[int] = set()
    for part in parts:
        wanted = math.ceil(ratio * len(part))
        in_order = sorted(part, key=lambda place: (-entropies[place], place))[:wanted]
        if rule == "threshold" and in_order:
            in_order = [place for place in part if entropies[place] >= entropies[in_order[-1]]]
        found |= set(in_order)
    return found


# Few values and many tokens: nearly every cut is among ties, and -0.0 is 0.
TIED = st.sampled_from([-0.0, 0.0, 0.25, 0.5, 1.0, 3.0])


@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["minibatch", "sequence"]))
@settings(max_examples=60, deadline=None)
def test_overlap_and_bins_with_ties_are_those_counted_one_by_one(
    data: st.DataObject, lengths: list[int], scope: str
) -> None:
    rule = data.draw(st.sampled_from(["threshold", "exact_k"]))
    ratio = data.draw(st.sampled_from(["0.07", "0.2", "0.5", "1.0"]))
    base, later, final = (data.draw(st.lists(TIED, min_size=sum(lengths), max_size=sum(lengths))) for _ in range(3))
    config = SelectionConfig(ratio=float(ratio), scope=scope, rule=rule)  # type: ignore[arg-type]
    arrays = [np.array(each, dtype=np.float32) for each in (base, later, final)]
    sums = EvolutionSums(
        arrays[0], arrays[2], lambda entropy_t: selected_tokens(entropy_t, np.array(lengths), config), config.ratio
    )
    of_base, of_later, of_final = (
        selected_one_by_one(each, lengths, Fraction(ratio), scope, rule) for each in (base, later, final)
    )
    stage = sums.stage("later", arrays[1])
    assert stage.selected == len(of_later)
    assert stage.overlap_base == len(of_later & of_base) / len(of_later)
    assert stage.overlap_final == len(of_later & of_final) / len(of_later)
    in_order = sorted(range(len(base)), key=lambda place: (base[place], place))
    for number in range(20):
        tokens = [place for rank, place in enumerate(in_order) if number <= Fraction(20 * rank, len(base)) < number + 1]
        if tokens:
            assert stage.change[number] == pytest.approx(
                sum(later[t] - base[t] for t in tokens) / len(tokens), abs=1e-12
            )
        else:
            assert math.isnan(stage.change[number])
    for percentile, value in stage.percentiles.items():
        place = percentile / 100 * (len(later) - 1)
        low, high = sorted(later)[math.floor(place)], sorted(later)[math.ceil(place)]
        assert value == pytest.approx(low + (high - low) * (place - math.floor(place)), abs=1e-9)


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("xyz")), max_size=9), max_size=5))
@settings(max_examples=60)
def test_two_selections_against_sets(responses: list[list[tuple[bool, bool, str]]]) -> None:
    flat = [token for response in responses for token in response]
    a, b = ({place for place, token in enumerate(flat) if token[which]} for which in (0, 1))
    masks = (np.array([token[which] for token in flat], dtype=bool) for which in (0, 1))
    found = compared(*masks, [[token[2] for token in response] for response in responses])
    assert (found.selected, found.both) == ((len(a), len(b)), len(a & b))
    assert found.differ == len(a ^ b) / max(1, len(flat))
    assert found.jaccard == (len(a & b) / len(a | b) if a | b else 1.0)
    for counted, only in zip(found.only, (a - b, b - a), strict=True):
        assert dict(counted) == {text: n for text in "xyz" if (n := sum(flat[place][2] == text for place in only))}
    differing = sum(any(left != right for left, right, _ in response) for response in responses)
    assert len(found.examples) == min(3, differing)
    for example in found.examples:
        here = responses[example.response][example.start : example.start + len(example.texts)]
        assert example.marks == ["a" * left + "b" * right for left, right, _ in here]
        assert {"a", "b"} & set(example.marks)
    json.loads(json_text(comparison_record(found)))
