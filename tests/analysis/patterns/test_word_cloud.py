"""Words of a cloud never lie over each other or outside of it, and heavier ones are larger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.analysis.patterns.word_cloud import HEIGHT, WIDTH, placed_words

WORDS = [("wait", 1.0), ("however", 0.9), ("thus", 0.7), ("since", 0.6), ("assume", 0.5), ("given", 0.2), ("so", 0.0)]


def apart(words: list[tuple[str, float]]) -> int:
    placed = placed_words(words)
    for number, each in enumerate(placed):
        left, bottom, right, top = each.box
        assert -WIDTH * 36 <= left < right <= WIDTH * 36 and -HEIGHT * 36 <= bottom < top <= HEIGHT * 36
        for other in placed[:number]:
            assert left >= other.box[2] or other.box[0] >= right or bottom >= other.box[3] or other.box[1] >= top
    return len(placed)


def test_all_of_a_few_words() -> None:
    assert apart(WORDS) == len(WORDS)
    sizes = [each.size for each in placed_words(WORDS)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(34) and sizes[-1] == pytest.approx(7)


@given(st.lists(st.tuples(st.text("abcWX.,", min_size=1, max_size=30), st.floats(0, 1)), max_size=15))
@settings(max_examples=8)
def test_any_words(words: list[tuple[str, float]]) -> None:
    apart(sorted(words, key=lambda word: -word[1]))
